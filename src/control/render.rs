//! The status report as one screen for people; [`heal`] is the part on the debt.

mod heal;
mod table;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::copy_status::CopyStatus;
use super::one_line::OneLine;
use super::serving_status::{QueueStatus, Serving};
use super::severity::away;
use super::status::{Fate, FilesStatus, State, Status, SyncFailed, Verified};

pub use table::table;

/// Marks that were read so many seconds ago, or more, are said to be as old as that.
const OLD_MARKS: u64 = 2;

/// The report of one image, ending in a newline.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_status(&mut out, status);
    out
}

fn write_status(out: &mut String, status: &Status) -> std::fmt::Result {
    let Status {
        volume,
        image,
        size,
        gfid,
        ..
    } = status;
    let image = OneLine(image);
    writeln!(out, "{volume}{image}  {}", headline(status))?;
    if let Some(detail) = &status.detail {
        writeln!(out, "  {}", OneLine(detail))?;
    }
    for warning in &status.warnings {
        writeln!(out, "  WARNING  {warning}")?;
    }
    match size {
        0 => writeln!(out, "  size     unknown, gfid {gfid}")?,
        size => writeln!(
            out,
            "  size     {} ({size} bytes), gfid {gfid}",
            bytes(*size)
        )?,
    }
    if let Some(files) = &status.files {
        write_files(out, files)?;
    }
    if status.copies.is_empty() && status.unserved.is_some() {
        return writeln!(
            out,
            "  copies   not asked: bypass-blk status {volume}{image} asks them"
        );
    }
    match &status.holder {
        Some(holder) => {
            let (host, pid, since) = (&holder.host, holder.pid, date(holder.since));
            writeln!(out, "  held by  {host} pid {pid} since {since}")?;
        }
        None if status.state == State::Unknown => {
            writeln!(out, "  held by  nobody that the bricks reached know of")?;
        }
        None => writeln!(out, "  held by  nobody")?,
    }
    let fenced = status.copies.iter().any(|copy| copy.fenced);
    match &status.fence {
        Some(fence) => writeln!(out, "  fence    {fence}")?,
        None if fenced && status.holder.is_none() => writeln!(
            out,
            "  fence    LEFT by a killed daemon: bypass-blk release {volume}{image}"
        )?,
        None => {}
    }
    if let Some(SyncFailed { reason, at }) = &status.sync_failed {
        let since = date(*at);
        writeln!(
            out,
            "  disk     NOT DURABLE since {since}: {reason}. The guest's flushes fail, the marks stay"
        )?;
    }
    for (child, copy) in status.copies.iter().enumerate() {
        write_copy(out, copy, status.state)?;
        if let Some(heal) = &status.heal {
            heal::write_peer(out, child, copy, heal)?;
        }
    }
    if let Some(heal) = &status.heal {
        heal::write_summary(out, &status.copies, heal)?;
    }
    if let Some(verified) = &status.last_verified {
        write_verified(out, verified)?;
    }
    if let Some(serving) = &status.serving {
        write_serving(out, serving)?;
    }
    Ok(())
}

/// Each file of the image that is marked, by its path in the volume.
pub fn marked_files(status: &Status) -> String {
    let marked = status.files.iter().flat_map(|files| &files.marked);
    let path = |number: &u32| match number {
        0 => format!("  marked   {}\n", OneLine(&status.image)),
        number => format!("  marked   /.shard/{}.{number}\n", status.gfid),
    };
    marked.map(path).collect()
}

/// The marked ones by their numbers, as far as they fit into a line.
fn write_files(out: &mut String, files: &FilesStatus) -> std::fmt::Result {
    const NAMED: usize = 8;
    let (count, piece) = (files.count, bytes(files.piece_bytes));
    write!(
        out,
        "  shards   {count} of {piece}, {} marked",
        files.marked.len()
    )?;
    let named: Vec<_> = files
        .marked
        .iter()
        .take(NAMED)
        .map(u32::to_string)
        .collect();
    let more = match files.marked.len() > NAMED {
        true => " …",
        false => "",
    };
    match named.is_empty() {
        true => writeln!(out),
        false => writeln!(out, ": {}{more}", named.join(" ")),
    }
}

fn headline(status: &Status) -> String {
    let away = away(&status.copies).count();
    match (status.state, &status.unserved) {
        (State::Unknown, Some(unserved)) => fate(unserved.daemon).to_owned(),
        (state @ State::Clean, _) if away > 0 => {
            let bricks = if away == 1 { "brick is" } else { "bricks are" };
            format!("{}, but {away} {bricks} AWAY", words(state))
        }
        (state, _) => words(state).to_owned(),
    }
}

/// Instead of a state that nobody was asked for.
fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Ended => "NOT SERVED",
        Fate::Killed => "KILLED",
        Fate::Silent => "NO ANSWER",
    }
}

fn words(state: State) -> &'static str {
    match state {
        State::Clean => "clean: no copy is marked as missing data",
        State::Dirty => "dirty: the stale copies below are behind",
        State::Marking => "marking: the first write waits for the marks",
        State::Stalled => "STALLED: writes wait",
        State::Failed => "FAILED: writes fail",
        State::Stopped => "STOPPED: every request fails",
        State::SplitBrain => "SPLIT-BRAIN: every copy is accused",
        State::Unknown => "unknown",
    }
}

fn write_copy(out: &mut String, copy: &CopyStatus, state: State) -> std::fmt::Result {
    let role = match (copy.local, copy.arbiter) {
        (true, _) => "local ",
        (_, true) => "arbiter",
        _ => "peer  ",
    };
    let health = match copy {
        CopyStatus { arbiter: true, .. } => "-",
        CopyStatus { stale: true, .. } => "stale",
        // Those who would accuse it may be among the bricks that did not answer.
        CopyStatus {
            reachable: true, ..
        } if state != State::Unknown => "fresh",
        _ => "?",
    };
    let reach = match (&copy.reason, copy.reachable) {
        (_, true) => "reachable".to_owned(),
        (Some(reason), false) => format!("AWAY: {}", OneLine(reason)),
        (None, false) => "AWAY".to_owned(),
    };
    let marks = match &copy.marks {
        None => "unknown".to_owned(),
        Some(marks) => {
            let counters: Vec<_> = marks.iter().map(i32::to_string).collect();
            counters.join(" ")
        }
    };
    let old = copy.marks_age_seconds.filter(|age| *age >= OLD_MARKS);
    let read = old.map_or_else(String::new, |age| format!(" (read {age}s ago)"));
    writeln!(
        out,
        "  {role:<7}  {}  {health:<5}  marks [{marks}]{read}  {reach}",
        copy.brick
    )
}

fn write_verified(out: &mut String, verified: &Verified) -> std::fmt::Result {
    let found = match (verified.differing_bytes, verified.repaired) {
        (0, _) if verified.behind_bytes > 0 => format!(
            "equal but for {} that was behind",
            bytes(verified.behind_bytes)
        ),
        (0, _) => "equal".to_owned(),
        (differing, true) => format!("{} differed and were repaired", bytes(differing)),
        (differing, false) => format!("{} DIFFERED", bytes(differing)),
    };
    let part = if verified.complete { "" } else { ", in part" };
    writeln!(out, "  verified {}{part}: {found}", date(verified.at))
}

fn write_serving(out: &mut String, serving: &Serving) -> std::fmt::Result {
    let front_end = if serving.front_end {
        "connected"
    } else {
        "no front-end"
    };
    let mode = if serving.read_only { ", read-only" } else { "" };
    let socket = OneLine(&serving.socket);
    writeln!(out, "  socket   {socket} ({front_end}{mode})")?;
    if let Some(full) = serving.full {
        writeln!(
            out,
            "  disk     FULL for {} s: {} writes of the guest wait for room, the first at byte {}. Free space on the brick",
            full.seconds, full.waiting, full.offset
        )?;
    }
    if serving.write_waiting {
        writeln!(out, "  gate     a write of the guest waits for the marks")?;
    }
    for trouble in serving.troubles() {
        writeln!(out, "  TROUBLE  {trouble}")?;
    }
    for (index, queue) in serving.queues.iter().enumerate() {
        write_queue(out, index, queue)?;
    }
    Ok(())
}

fn write_queue(out: &mut String, index: usize, queue: &QueueStatus) -> std::fmt::Result {
    writeln!(
        out,
        "  queue {index}  reads {} ({})  writes {} ({})  flushes {}  discards {}  zeroes {}  errors {}  in flight {}",
        queue.reads,
        bytes(queue.read_bytes),
        queue.writes,
        bytes(queue.written_bytes),
        queue.flushes,
        queue.discards,
        queue.write_zeroes,
        queue.errors,
        queue.in_flight,
    )
}

/// Whole seconds, rounded up, but for the first ones.
fn seconds(count: f64) -> String {
    if (0.0..10.0).contains(&count) {
        return format!("{count:.1}s");
    }
    match Duration::try_from_secs_f64(count.ceil()) {
        Ok(time) => humantime::format_duration(time).to_string(),
        Err(_) => "an unknown time".to_owned(),
    }
}

/// Seconds since the epoch as a date. Nobody's clock stands after the year 9999.
fn date(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let at = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// A number of bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
