//! One line over a unix socket, in bounded length and time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A stream whose reads and writes must be over by some moment, all of them together: a
/// peer that sends or takes a byte now and then gains no time.
pub struct Timed<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl<'a> Timed<'a> {
    /// From now on, for so long.
    pub fn new(stream: &'a UnixStream, limit: Duration) -> Self {
        let end = Instant::now() + limit;
        Self { stream, end }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(too_slow()),
            false => Ok(left),
        }
    }
}

/// Linux reports the end of a socket's time as `WouldBlock`.
fn in_time<T>(done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => too_slow(),
        _ => error,
    })
}

fn too_slow() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the other end takes too long")
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        in_time(self.stream.read(buffer))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        in_time(self.stream.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a line within `limit`.
///
/// # Errors
/// The connection's, `TimedOut`, and `InvalidData` for one that is too long or cut off.
pub fn read(stream: &UnixStream, limit: Duration) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(Timed::new(stream, limit).take(MAX_LINE)).read_line(&mut line)?;
    if !line.ends_with('\n') {
        let text = "the line is too long or cut off";
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    Ok(line)
}

/// Writes a line within `limit`.
///
/// # Errors
/// The connection's, and `TimedOut`.
pub fn write(stream: &UnixStream, line: &str, limit: Duration) -> io::Result<()> {
    let mut timed = Timed::new(stream, limit);
    timed.write_all(line.as_bytes())?;
    timed.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn a_line_that_drips_in_is_given_up_when_its_time_is_over() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let drip = std::thread::spawn(move || {
            while far.write_all(b"x").is_ok() {
                std::thread::sleep(LIMIT / 6);
            }
        });
        let error = read(&near, LIMIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(near);
        drip.join().unwrap();
    }

    #[test]
    fn a_line_that_is_taken_in_drips_is_given_up_as_well() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let drip = std::thread::spawn(move || {
            let mut some = [0; 4096];
            while far.read(&mut some).is_ok_and(|count| count > 0) {
                std::thread::sleep(LIMIT / 6);
            }
        });
        let error = write(&near, &"x".repeat(16 << 20), LIMIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(near);
        drip.join().unwrap();
    }
}
