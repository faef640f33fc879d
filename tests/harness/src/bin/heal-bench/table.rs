//! The one table of results beside their goals, in Markdown; for JSON too.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What a goal asks of a ratio.
#[derive(Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// There is none; the figure explains another.
    None,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtMost(limit) => write!(f, "≤ {limit}"),
            Goal::AtLeast(limit) => write!(f, "≥ {limit}"),
            Goal::None => f.write_str("–"),
        }
    }
}

/// The rows.
#[derive(Default, Serialize)]
pub struct Table(Vec<Row>);

/// What was measured, with its verdict.
#[derive(Serialize)]
struct Row {
    measured: String,
    figures: String,
    ratio: f64,
    goal: String,
    /// None without a goal.
    met: Option<bool>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        let Row {
            measured,
            figures,
            ratio,
            goal,
            ..
        } = self;
        write!(
            f,
            "| {measured} | {figures} | {ratio:.3} | {goal} | {met} |"
        )
    }
}

impl Table {
    /// Adds what was measured, the figures behind it, and their ratio.
    pub fn add(&mut self, what: &str, figures: &str, ratio: f64, goal: Goal) {
        let row = Row {
            measured: what.to_owned(),
            figures: figures.to_owned(),
            ratio,
            goal: goal.to_string(),
            met: match goal {
                Goal::AtMost(limit) => Some(ratio <= limit),
                Goal::AtLeast(limit) => Some(ratio >= limit),
                Goal::None => None,
            },
        };
        eprintln!("  {row}");
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measured | figures | ratio | goal | met |")?;
        writeln!(f, "| --- | --- | --- | --- | --- |")?;
        for row in &self.0 {
            writeln!(f, "{row}")?;
        }
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        writeln!(
            f,
            "\nAll three nodes on one machine of {cpus} CPUs, load average {load} at the end."
        )
    }
}

/// Bytes in MiB, for a table.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
