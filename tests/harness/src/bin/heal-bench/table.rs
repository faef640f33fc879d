//! The one Markdown table of results beside their goals.

use std::fmt;
use std::fs;

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
#[derive(Default)]
pub struct Table(Vec<String>);

impl Table {
    /// Adds what was measured, the figures behind it, and their ratio.
    pub fn add(&mut self, what: &str, figures: &str, ratio: f64, goal: Goal) {
        let met = match goal {
            Goal::AtMost(limit) if ratio <= limit => "yes",
            Goal::AtLeast(limit) if ratio >= limit => "yes",
            Goal::None => "–",
            _ => "**no**",
        };
        let row = format!("| {what} | {figures} | {ratio:.3} | {goal} | {met} |");
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
