//! Many images on the screen: a line each, the worst first.

use super::{bytes, seconds};
use crate::control::severity::{Severity, judge};
use crate::control::status::{State, Status};

/// Characters between two columns.
const GAP: usize = 2;

/// One line per image and a heading, ending in a newline.
pub fn table(images: &[Status]) -> String {
    let mut judged: Vec<_> = images.iter().map(|image| (judge(image), image)).collect();
    judged.sort_by_key(|((severity, _), image)| (*severity, &image.volume, &image.image));
    let heading = ["IMAGE", "STATE", "BEHIND", "OLDEST", ""].map(str::to_owned);
    let lines = judged.iter().map(|((_, why), image)| cells(image, why));
    let lines: Vec<_> = std::iter::once(heading).chain(lines).collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or_default() + GAP
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut out = String::new();
    for line in &lines {
        let padded = line.iter().zip(widths);
        let padded: String = padded
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out += padded.trim_end();
        out.push('\n');
    }
    out + &summary(judged.iter().map(|((severity, _), _)| *severity)) + "\n"
}

fn cells(image: &Status, why: &str) -> [String; 5] {
    let behind = image.copies.iter().filter_map(|copy| copy.behind);
    let behind = behind.fold(0, |sum: u64, one| sum.saturating_add(one.bytes));
    let heal = image.heal.as_ref().filter(|_| behind > 0);
    let age = heal.map(|heal| {
        let bound = if heal.oldest_unsent_at_least { ">" } else { "" };
        format!("{bound}{}", seconds(heal.oldest_unsent_seconds))
    });
    [
        format!("{}{}", image.volume, image.image),
        state(image).to_owned(),
        match behind {
            0 => "-".to_owned(),
            behind => bytes(behind),
        },
        age.unwrap_or_else(|| "-".to_owned()),
        why.to_owned(),
    ]
}

/// In capitals what somebody has to do something about.
fn state(image: &Status) -> &'static str {
    match (image.state, &image.unserved) {
        (State::Unknown, Some(unserved)) => super::fate(unserved.daemon),
        (State::Stalled, _) => "STALLED",
        (State::Failed, _) => "FAILED",
        (State::Stopped, _) => "STOPPED",
        (State::SplitBrain, _) => "SPLIT-BRAIN",
        (state, _) => state.name(),
    }
}

fn summary(found: impl Iterator<Item = Severity> + Clone) -> String {
    let count = |wanted: Severity| found.clone().filter(|one| *one == wanted).count();
    let parts = [
        (Severity::GuestSuffers, "bad for the guest"),
        (Severity::Unknown, "unknown"),
        (Severity::Unhealed, "not healed"),
        (Severity::Following, "following"),
        (Severity::Weaker, "weaker than could be"),
        (Severity::Well, "well"),
    ];
    let parts = parts.map(|(severity, words)| (count(severity), words));
    let parts: Vec<_> = (parts.iter())
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect();
    format!(
        "{} images: {}. More of one: bypass-blk status VOLUME/IMAGE; of all: --details",
        found.clone().count(),
        parts.join(", ")
    )
}
