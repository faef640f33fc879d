//! The TCP socket: made, set up, and written to without waiting for ever. With TLS there is
//! [`super::relay`] in between, and what is read and written here is a local socket.

use std::io::{self, IoSlice, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket, TcpKeepalive};

use super::pulse::Timeouts;
use super::relay::RelayEnd;
use super::{ConnectError, Deadline, Disconnect, HoldError};

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

/// Has the kernel notice a lost link, without waking anybody up: a peer that acknowledges
/// nothing for as long as one that answers no ping. With the user time-out set, that and
/// not the number of questions decides (`tcp_keepalive_timer`, Linux).
pub(super) fn configure(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(timeouts.send))?;
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

/// What a connection reads from and writes to.
pub(super) struct Stream {
    socket: Socket,
    /// With TLS, why it ended.
    relay: Option<RelayEnd>,
}

impl Stream {
    /// Of a peer that speaks no TLS.
    pub fn plain(tcp: TcpStream) -> Self {
        Self {
            socket: tcp.into(),
            relay: None,
        }
    }

    /// The plain end of a connection with TLS.
    pub fn relayed(local: UnixStream, end: RelayEnd) -> Self {
        Self {
            socket: local.into(),
            relay: Some(end),
        }
    }

    /// Sets its time-outs; one whose peer is not pinged is read for ever.
    pub fn limit(&self, timeouts: &Timeouts, pings: bool) -> io::Result<()> {
        self.socket.set_write_timeout(Some(timeouts.send))?;
        let read = pings.then_some(timeouts.idle_interval);
        self.socket.set_read_timeout(read)
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Another handle of the TCP socket, for another process.
    pub fn share(&self) -> Result<TcpStream, HoldError> {
        match self.relay {
            Some(_) => Err(HoldError::Tls),
            None => match self.socket.try_clone() {
                Ok(socket) => Ok(socket.into()),
                Err(error) => Err(HoldError::Clone(error)),
            },
        }
    }

    /// Why it really ended, of one that seems to have ended for `reason`.
    pub fn explain(&self, reason: Disconnect) -> Disconnect {
        match (&self.relay, &reason) {
            (Some(relay), Disconnect::ClosedByPeer | Disconnect::Socket(_)) => {
                relay.take().unwrap_or(reason)
            }
            _ => reason,
        }
    }
}

/// Writes the parts of records whole, within `timeout`.
pub(super) fn write_all(
    mut stream: &Socket,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::fake_peer::listen;

    #[test]
    fn an_idle_socket_wakes_nobody_up_before_a_ping_is_due_and_is_watched_by_the_kernel() {
        let timeouts = Timeouts::default();
        let (port, _peer) = listen(|mut peer| peer.drain());
        let stream = dial("127.0.0.1", port, timeouts.connect).unwrap();
        configure(&stream, &timeouts).unwrap();
        let stream = Stream::plain(stream);
        stream.limit(&timeouts, true).unwrap();
        let socket = stream.socket();
        assert_eq!(socket.read_timeout().unwrap(), Some(timeouts.idle_interval));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), timeouts.ping_interval);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(timeouts.dead_after())
        );
        // The question after which the kernel gives up comes no later than that.
        let interval = socket.tcp_keepalive_interval().unwrap();
        let asked = timeouts.ping_interval.as_secs() + 3 * interval.as_secs();
        assert_eq!(asked, timeouts.dead_after().as_secs());
    }
}
