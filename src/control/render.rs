//! The status report as one screen for people.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::status::{CopyStatus, QueueStatus, Serving, State, Status};

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
    writeln!(out, "{volume}{image}  {}", state(status.state))?;
    if let Some(detail) = &status.detail {
        writeln!(out, "  {detail}")?;
    }
    writeln!(
        out,
        "  size     {} ({size} bytes), gfid {gfid}",
        bytes(*size)
    )?;
    match &status.holder {
        Some(holder) => {
            let since = UNIX_EPOCH + Duration::from_secs(holder.since);
            let since = humantime::format_rfc3339_seconds(since);
            writeln!(
                out,
                "  held by  {} pid {} since {since}",
                holder.host, holder.pid
            )?;
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
    for copy in &status.copies {
        write_copy(out, copy)?;
    }
    if let Some(serving) = &status.serving {
        write_serving(out, serving)?;
    }
    Ok(())
}

fn state(state: State) -> &'static str {
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

fn write_copy(out: &mut String, copy: &CopyStatus) -> std::fmt::Result {
    let role = match (copy.local, copy.arbiter) {
        (true, _) => "local ",
        (_, true) => "arbiter",
        _ => "peer  ",
    };
    let health = match copy {
        CopyStatus { arbiter: true, .. } => "-",
        CopyStatus { stale: true, .. } => "stale",
        CopyStatus {
            reachable: true, ..
        } => "fresh",
        _ => "?",
    };
    let reach = match (&copy.reason, copy.reachable) {
        (_, true) => "reachable".to_owned(),
        (Some(reason), false) => format!("AWAY: {reason}"),
        (None, false) => "AWAY".to_owned(),
    };
    let marks = match &copy.marks {
        None => "unknown".to_owned(),
        Some(marks) => {
            let counters: Vec<_> = marks.iter().map(i32::to_string).collect();
            counters.join(" ")
        }
    };
    writeln!(
        out,
        "  {role:<7}  {}  {health:<5}  marks [{marks}]  {reach}",
        copy.brick
    )
}

fn write_serving(out: &mut String, serving: &Serving) -> std::fmt::Result {
    let front_end = if serving.front_end {
        "connected"
    } else {
        "no front-end"
    };
    let mode = if serving.read_only { ", read-only" } else { "" };
    writeln!(out, "  socket   {} ({front_end}{mode})", serving.socket)?;
    if serving.write_waiting {
        writeln!(out, "  gate     a write of the guest waits for the marks")?;
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

/// A number of bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
