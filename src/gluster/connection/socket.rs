//! The TCP socket: made, set up, and written to without waiting for ever.

use std::io::{self, IoSlice, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::pulse::{Pulse, Timeouts};
use super::{ConnectError, Deadline, Disconnect};

/// Connects to the first address of `host` that answers.
pub(super) fn dial(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let deadline = Deadline::after(timeout);
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(ConnectError::Resolve)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let left = deadline.left();
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect(last))
}

/// Sets every time-out of the socket; one without a pulse is read for ever.
pub(super) fn configure(
    stream: &TcpStream,
    timeouts: &Timeouts,
    pulse: Option<&Pulse>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(timeouts.send))?;
    stream.set_read_timeout(pulse.map(Pulse::tick))?;
    // The kernel notices a cut link too, where no reader is at work: a peer that
    // acknowledges nothing for as long as one that answers no ping.
    let dead_after = timeouts.dead_after();
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(dead_after))?;
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time(timeouts.ping_interval.max(second))
        .with_interval((timeouts.ping_timeout / 3).max(second))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// Writes the parts of records whole, within `timeout`.
pub(super) fn write_all(
    mut stream: &TcpStream,
    mut parts: &mut [IoSlice<'_>],
    timeout: Duration,
) -> Result<(), Disconnect> {
    let started = Instant::now();
    IoSlice::advance_slices(&mut parts, 0); // leaves empty ones out
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(Disconnect::Socket(io::ErrorKind::WriteZero.into())),
            Ok(count) => IoSlice::advance_slices(&mut parts, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                return Err(Disconnect::SendStuck { after: timeout });
            }
            Err(error) => return Err(Disconnect::Socket(error)),
        }
        if !parts.is_empty() && started.elapsed() > timeout {
            return Err(Disconnect::SendStuck { after: timeout });
        }
    }
    Ok(())
}

/// Did the socket's own time-out (or a signal) end the call? A dead link reads
/// as another error.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}
