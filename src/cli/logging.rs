//! Logging to standard error.

use std::io::Write;

/// Starts logging at this level, one line a record: time, level, text.
pub fn start(level: log::LevelFilter) {
    // A second start in one process (a test) keeps the first.
    let _ = env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
            writeln!(out, "{now} {:<5} {}", record.level(), record.args())
        })
        .try_init();
}
