//! Waiting for a condition with a deadline. Nothing here waits for a fixed time.

use std::time::{Duration, Instant};

use crate::{Error, Result};

const POLL: Duration = Duration::from_millis(50);

/// Asks `probe` again and again until it says `Ok`, and gives back its value.
///
/// An `Err` from `probe` is the reason why it is not so yet; the last one is in
/// the error when `deadline` has passed.
pub fn wait_until<T>(
    what: impl Into<String>,
    deadline: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if begun.elapsed() >= deadline => {
                return Err(Error::Timeout {
                    what: what.into(),
                    after: deadline,
                    last,
                });
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
