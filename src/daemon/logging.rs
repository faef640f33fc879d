//! Logging to standard error.

use std::io::Write;

use crate::control::one_line::OneLine;

/// Starts logging at this level, one line a record: time, level, text.
pub fn start(level: log::LevelFilter) {
    // A second start in one process (a test) keeps the first.
    let _ = env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
            let text = OneLine(record.args());
            writeln!(out, "{now} {:<5} {text}", record.level())
        })
        .try_init();
}
