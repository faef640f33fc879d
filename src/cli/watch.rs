//! Showing a text, once or again and again: in place on a terminal, one after the
//! other elsewhere. Knows nothing of what the text says.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::daemon::failure::Failure;
use crate::daemon::shutdown::Stop;
use crate::image::error_chain::chain;

/// The shortest and the longest period.
const PERIODS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(86400));

/// A period on the command line: seconds, with or without a fraction.
pub fn period(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "expected a number of seconds")?;
    let period = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if period < PERIODS.0 || period > PERIODS.1 {
        return Err("expected 0.1 to 86400 seconds".to_owned());
    }
    Ok(period)
}

/// Prints `text`. A reader that has gone away wanted no more: that is no error.
///
/// # Errors
/// [`Failure::System`].
pub fn print(text: &str) -> Result<(), Failure> {
    write(text).map(|_| ()).map_err(printing)
}

/// Shows `next` every `period`, until SIGINT or SIGTERM ends the process with exit
/// code 0, or nobody reads any more. In place if `in_place` and on a terminal, else
/// one after the other with `between` in between.
///
/// # Errors
/// The first failure of `next`, so that a wrong name is told; a later one is shown
/// instead of the text, on standard error if that is not in place.
/// [`Failure::System`].
pub fn watch(
    period: Duration,
    in_place: bool,
    between: &str,
    next: impl Fn() -> Result<String, Failure>,
) -> Result<(), Failure> {
    let terminal = console::Term::stdout();
    let in_place = in_place && io::stdout().is_terminal();
    let stop = Stop::on_signals()?;
    // Nothing is to be tidied up, and what is waited for may take long.
    stop.tell(move || {
        if in_place {
            // The shell's prompt is not to follow the ^C.
            eprintln!();
        }
        std::process::exit(0)
    });
    let mut text = next()?;
    let mut before = if in_place { "\x1b[2J" } else { "" };
    loop {
        let begin = Instant::now();
        let shown = match in_place {
            true => format!("{before}{}", frame(&text, terminal.size())),
            false if text.is_empty() => String::new(),
            false => format!("{before}{text}"),
        };
        if write(&shown).map_err(printing)? == Reader::Gone
            || sleep(begin + period)? == Reader::Gone
        {
            return Ok(());
        }
        before = if in_place { "" } else { between };
        text = match next() {
            Ok(text) => text,
            Err(failure) if in_place => format!("bypass-blk: {}\n", chain(&failure)),
            Err(failure) => {
                failure.print();
                String::new()
            }
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Present,
    Gone,
}

fn write(text: &str) -> io::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        written => written.map(|()| Reader::Present),
    }
}

/// Sleeps until `deadline`, or until nobody reads the output any more.
fn sleep(deadline: Instant) -> Result<Reader, Failure> {
    let stdout = io::stdout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Reader::Present);
        }
        // Nothing is asked for: only errors are told.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        let left = left.try_into().ok();
        match poll(&mut fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(printing(errno.into())),
            Ok(0) => {}
            Ok(_) => return Ok(Reader::Gone),
        }
    }
}

fn printing(source: io::Error) -> Failure {
    Failure::System {
        what: "print the status",
        source,
    }
}

/// `text` over what is on a terminal of this size (rows and columns): every line is
/// cut to the width, and what does not fit is counted.
fn frame(text: &str, (rows, columns): (u16, u16)) -> String {
    let lines: Vec<_> = text.lines().collect();
    // The cursor's line stays empty.
    let room = usize::from(rows).saturating_sub(1).max(1);
    let (shown, more) = match lines.len() > room {
        true => lines.split_at(room - 1),
        false => (lines.as_slice(), &[][..]),
    };
    let more = match more.len() {
        0 => None,
        count => Some(format!("({count} more lines)")),
    };
    let mut frame = "\x1b[H".to_owned();
    for line in shown.iter().copied().chain(more.as_deref()) {
        frame += &console::truncate_str(line, usize::from(columns), "…");
        frame += "\x1b[K\n";
    }
    frame + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_a_number_of_seconds_that_is_not_absurd() {
        assert_eq!(period("2"), Ok(Duration::from_secs(2)));
        assert_eq!(period("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "x", "-1", "0", "0.01", "1e9", "NaN", "inf"] {
            assert!(period(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_frame_overwrites_the_one_before_and_fits() {
        let fits = frame("one\ntwo\n", (24, 80));
        assert_eq!(fits, "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J");
        let wide = frame("a long line\n", (24, 6));
        assert_eq!(wide, "\x1b[Ha lon…\x1b[K\n\x1b[J");
        let high = frame("1\n2\n3\n4\n5\n", (4, 80));
        assert_eq!(high, "\x1b[H1\x1b[K\n2\x1b[K\n(3 more lines)\x1b[K\n\x1b[J");
        assert_eq!(frame("1\n2\n", (0, 0)).lines().count(), 2);
    }
}
