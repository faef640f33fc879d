//! What `verify` prints: one screen, or a JSON document with everything.

use std::io::Write;

use serde::Serialize;
use uuid::Uuid;

use crate::control::one_line::OneLine;
use crate::control::render::bytes;
use crate::image::verify::{CopyReport, CopyVerdict, Report};

/// The most ranges of a copy that go on the screen; the document has more.
const RANGES: usize = 8;

/// What was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Subtitle {
    /// The volume's name.
    pub volume: String,
    /// The image's path in it.
    pub image: String,
    /// Gluster's identity of the image.
    pub gfid: Uuid,
    /// Beside a session of this host.
    pub served: bool,
}

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    subtitle: &'a Subtitle,
    /// `equal`, `differ` or `incomplete`.
    verdict: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// Prints the outcome on standard output.
///
/// # Errors
/// Of standard output.
pub fn print(subtitle: &Subtitle, report: &Report, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let document = Document {
            subtitle,
            verdict: verdict(report),
            report,
        };
        serde_json::to_writer_pretty(&mut out, &document)?;
        return writeln!(out);
    }
    out.write_all(screen(subtitle, report).as_bytes())
}

fn verdict(report: &Report) -> &'static str {
    match (report.differs(), report.is_equal()) {
        (true, _) => "differ",
        (false, false) => "incomplete",
        (false, true) => "equal",
    }
}

fn screen(subtitle: &Subtitle, report: &Report) -> String {
    let headline = match verdict(report) {
        "differ" => "the copies DIFFER".to_owned(),
        "incomplete" if report.is_empty() => "NOTHING could be compared".to_owned(),
        "incomplete" if report.is_complete() => format!(
            "no difference, but {} is BEHIND and was not compared",
            bytes(report.behind())
        ),
        "incomplete" => "no difference, but NOT ALL could be verified".to_owned(),
        _ => "the copies are equal".to_owned(),
    };
    let beside = match subtitle.served {
        true => "beside the session on this host",
        false => "served by nobody",
    };
    let mut lines = vec![
        format!(
            "{}{}  {headline}",
            subtitle.volume,
            OneLine(&subtitle.image)
        ),
        format!("  size     {}, {beside}", bytes(report.size)),
        format!("  took     {:.1} s", report.seconds),
    ];
    if let Some(why) = &report.ended_early {
        lines.push(format!("  ended early: {why}"));
    }
    for copy in &report.copies {
        lines.push(format!("  {}", line(copy)));
        lines.extend(ranges(copy));
    }
    if report.repaired && report.differs() {
        lines.push("  the differences are given to the healer, with this host's bytes".to_owned());
    }
    lines.join("\n") + "\n"
}

fn line(copy: &CopyReport) -> String {
    let state = match copy.state {
        CopyVerdict::Reference => "the reference",
        CopyVerdict::Compared if !copy.differing.is_empty() => "DIFFERS",
        CopyVerdict::Compared => "compared",
        CopyVerdict::Stale => "marked as behind: not compared",
        CopyVerdict::Away => "AWAY",
    };
    let figures = [
        (copy.differing.bytes, "differing"),
        (copy.verified, "equal"),
        (copy.behind, "behind"),
        (copy.busy, "busy"),
        (copy.not_verified, "not verified"),
    ];
    let figures = figures.iter().filter(|(count, _)| *count > 0);
    let figures: Vec<_> = figures
        .map(|(count, what)| format!("{} {what}", bytes(*count)))
        .collect();
    let mut line = format!("{}  {state}", copy.brick);
    if !figures.is_empty() {
        line += &format!(": {}", figures.join(", "));
    }
    if let Some(why) = &copy.why {
        line += &format!(" ({why})");
    }
    line
}

fn ranges(copy: &CopyReport) -> Vec<String> {
    let found = &copy.differing;
    let shown = found.ranges.iter().take(RANGES);
    let mut lines: Vec<_> = shown
        .map(|range| format!("    bytes {} to {}", range.start, range.end))
        .collect();
    let listed = found.ranges.len() as u64;
    let rest = listed.saturating_sub(RANGES as u64) + found.not_listed;
    if rest > 0 {
        lines.push(format!("    and {rest} more (--json lists more)"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::verify::Differences;

    fn copy(child: usize, state: CopyVerdict, verified: u64, behind: u64) -> CopyReport {
        CopyReport {
            child,
            brick: format!("node{child}:/b"),
            state,
            verified,
            differing: Differences::default(),
            behind,
            busy: 0,
            not_verified: 0,
            why: None,
        }
    }

    fn headline(peer: CopyReport) -> (&'static str, String) {
        let report = Report {
            reference: 0,
            size: 4096,
            extent_size: 4096,
            when: 0,
            seconds: 0.0,
            ended_early: None,
            copies: vec![copy(0, CopyVerdict::Reference, 0, 0), peer],
            repaired: false,
        };
        let subtitle = Subtitle {
            volume: "v".to_owned(),
            image: "/i".to_owned(),
            gfid: Uuid::nil(),
            served: true,
        };
        let screen = screen(&subtitle, &report);
        let first = screen.lines().next().unwrap_or_default();
        (
            verdict(&report),
            first.trim_start_matches("v/i  ").to_owned(),
        )
    }

    #[test]
    fn copies_are_called_equal_only_where_every_byte_was_compared() {
        let equal = headline(copy(1, CopyVerdict::Compared, 8192, 0));
        assert_eq!(equal, ("equal", "the copies are equal".to_owned()));
        let (verdict, behind) = headline(copy(1, CopyVerdict::Compared, 4096, 4096));
        assert_eq!(verdict, "incomplete");
        assert!(behind.contains("4.00 KiB is BEHIND"), "{behind}");
        let (verdict, nothing) = headline(copy(1, CopyVerdict::Away, 0, 0));
        assert_eq!(verdict, "incomplete");
        assert_eq!(nothing, "NOTHING could be compared");
    }
}
