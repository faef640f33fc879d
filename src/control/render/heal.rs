//! The debt on the screen: two lines under a copy that misses data, and a summary.

use std::fmt::Write;

use crate::control::copy_status::{BehindStatus, CopyStatus};
use crate::control::heal::{HealStatus, HealerStatus, PeerHeal, PeerState, WaitsFor};
use crate::image::heal::Figures;

use super::{bytes, seconds};

/// Characters of a progress bar.
const BAR: u64 = 30;

/// What the copy of child `child` misses; nothing is written when it misses nothing.
pub fn write_peer(
    out: &mut String,
    child: usize,
    copy: &CopyStatus,
    heal: &HealStatus,
) -> std::fmt::Result {
    let peer = heal.peers.iter().find(|peer| peer.copy == child);
    let (Some(behind @ BehindStatus { bytes: 1.., .. }), Some(peer)) = (copy.behind, peer) else {
        return Ok(());
    };
    let suspect = match behind.suspect {
        true => "; SUSPECT, so compared first",
        false => "",
    };
    let (bytes, extents) = (bytes(behind.bytes), behind.extents);
    let age = age(peer.oldest_unsent_seconds, peer.oldest_unsent_at_least);
    writeln!(
        out,
        "           behind {bytes} in {extents} extents, oldest unsent write {age} ago{suspect}"
    )?;
    let bar = bar(behind.bytes, peer.most_behind_bytes);
    writeln!(out, "           {bar}  {}", doing(peer))
}

/// What all copies miss, and the healer.
pub fn write_summary(
    out: &mut String,
    copies: &[CopyStatus],
    heal: &HealStatus,
) -> std::fmt::Result {
    let behind = copies.iter().filter_map(|copy| copy.behind);
    let behind: Vec<_> = behind.filter(|behind| behind.bytes != 0).collect();
    if behind.is_empty() {
        writeln!(
            out,
            "  debt     none: nothing acknowledged is missing on any copy"
        )?;
    } else {
        let total = behind.iter().map(|one| one.bytes);
        let copies = match behind.len() {
            1 => "1 copy".to_owned(),
            many => format!("{many} copies"),
        };
        let total = bytes(total.fold(0, u64::saturating_add));
        let age = age(heal.oldest_unsent_seconds, heal.oldest_unsent_at_least);
        writeln!(
            out,
            "  debt     {total} behind on {copies}, oldest unsent write {age} ago"
        )?;
    }
    if let Some(why) = &heal.healer_trouble {
        return writeln!(out, "  healer   CANNOT heal: {why}");
    }
    match &heal.healer {
        Some(healer) => writeln!(out, "  healer   {}", at_work(healer, heal)),
        None if behind.is_empty() => writeln!(out, "  healer   none on this host"),
        None => writeln!(out, "  healer   NONE on this host: run bypass-blk heald"),
    }
}

fn at_work(healer: &HealerStatus, heal: &HealStatus) -> String {
    let limit = match healer.bandwidth {
        Some(limit) => format!(" of at most {}/s", bytes(limit)),
        None => String::new(),
    };
    let rate = bytes(heal.rate.unwrap_or_default());
    let end = match heal.eta_seconds {
        None => ", end not known".to_owned(),
        Some(0) => String::new(),
        Some(eta) => format!(", done in {}", seconds(eta as f64)),
    };
    let mut sum = Figures::default();
    for figures in heal.peers.iter().filter_map(|peer| peer.figures) {
        sum += figures;
    }
    format!(
        "pid {}, {rate}/s{limit}{end}; sent {}, zeroed {}, compared {}",
        healer.pid,
        bytes(sum.bytes_sent),
        bytes(sum.bytes_zeroed),
        bytes(sum.bytes_compared)
    )
}

fn doing(peer: &PeerHeal) -> String {
    let why = peer.why.as_deref();
    let held_up = match peer.waits_for {
        None => "",
        Some(WaitsFor::Bandwidth) => ", as fast as its limit",
        Some(WaitsFor::Guest) => ", but the guest writes as fast",
        Some(WaitsFor::Healer) => return "WAITS for a healer".to_owned(),
        Some(WaitsFor::Peer) => return "WAITS for its brick".to_owned(),
        Some(WaitsFor::Obstacle) => return format!("WAITS: {}", why.unwrap_or("not said why")),
    };
    if peer.state != PeerState::Copying {
        return "noticed by the healer in a moment".to_owned();
    }
    let rate = bytes(peer.rate.unwrap_or_default());
    let end = peer
        .eta_seconds
        .map(|eta| format!(", done in {}", seconds(eta as f64)));
    format!("copying at {rate}/s{held_up}{}", end.unwrap_or_default())
}

/// How much of the greatest debt is gone.
fn bar(behind: u64, most: u64) -> String {
    let most = u128::from(most.max(behind).max(1));
    let done = most - u128::from(behind);
    let filled = usize::try_from(done * u128::from(BAR) / most).unwrap_or_default();
    let percent = done * 100 / most;
    let empty = (BAR as usize).saturating_sub(filled);
    format!(
        "[{}{}] {percent:>2} %",
        "#".repeat(filled),
        ".".repeat(empty)
    )
}

fn age(age: f64, at_least: bool) -> String {
    let bound = if at_least { "more than" } else { "at most" };
    format!("{bound} {}", seconds(age))
}
