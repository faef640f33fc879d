//! The encrypted half of a connection: a thread between the TCP socket, where TLS is spoken, and a
//! local socket, where the connection's reader and writers find the plain bytes.
//!
//! So nobody else knows of TLS: who writes waits in a socket with a time-out, who reads sleeps in
//! one, and a connection without TLS costs nothing for it. TLS's state is this thread's alone. It
//! takes more from one side only when the other has taken what it had, so it holds at most what is
//! in its buffers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::ClientConnection;

use super::{ConnectError, Deadline, Disconnect};
use crate::gluster::record::RecordEnds;
use crate::gluster::tls::{TlsError, TlsIdentity};

/// Plain bytes taken from the connection at one time.
const PLAIN: usize = 64 << 10;

/// Why the encrypted half ended, for the connection, which only sees a closed socket.
#[derive(Clone, Default)]
pub(super) struct RelayEnd(Arc<Mutex<Option<Disconnect>>>);

impl RelayEnd {
    /// Takes the reason, if the encrypted half ended first.
    pub fn take(&self) -> Option<Disconnect> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Shakes hands over `tcp`, which is set up, and starts the thread. Returns the local socket.
pub(super) fn encrypt(
    tcp: TcpStream,
    identity: TlsIdentity,
    host: &str,
    deadline: Deadline,
) -> Result<(UnixStream, RelayEnd), ConnectError> {
    let failed = |error: TlsError| ConnectError::Tls(error.into());
    let mut tls = identity.begin().map_err(failed)?;
    shake_hands(&tcp, &mut tls, &identity, deadline).map_err(failed)?;
    let end = RelayEnd::default();
    let local = (|| {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        // Nothing more is given to it before it has given away all that it had.
        tls.set_buffer_limit(None);
        tcp.set_nonblocking(true)?;
        let relay = Relay {
            tcp,
            local: theirs,
            tls,
            identity,
            inbox: Vec::new(),
            ends: RecordEnds::default(),
        };
        let end = end.clone();
        thread::Builder::new()
            .name(format!("gluster tls {host}"))
            .spawn(move || relay.run(&end))?;
        Ok(ours)
    })();
    Ok((local.map_err(ConnectError::Setup)?, end))
}

fn shake_hands(
    mut tcp: &TcpStream,
    tls: &mut ClientConnection,
    identity: &TlsIdentity,
    deadline: Deadline,
) -> Result<(), TlsError> {
    while tls.is_handshaking() || tls.wants_write() {
        while tls.wants_write() {
            tls.write_tls(&mut tcp).map_err(TlsError::CutOff)?;
        }
        if !tls.is_handshaking() {
            break;
        }
        let left = deadline.left();
        if left.is_zero() {
            return Err(TlsError::CutOff(ErrorKind::TimedOut.into()));
        }
        tcp.set_read_timeout(Some(left)).map_err(TlsError::CutOff)?;
        match tls.read_tls(&mut tcp) {
            // A peer that speaks no TLS has answered nothing that it understood.
            Ok(0) => return Err(TlsError::NotSpoken),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Err(TlsError::NotSpoken);
            }
            Err(error) => return Err(TlsError::CutOff(error)),
            Ok(_) => {}
        }
        if let Err(error) = tls.process_new_packets() {
            // The other end is told why, if it still listens.
            let _ = tls.write_tls(&mut tcp);
            return Err(identity.told(error));
        }
    }
    Ok(())
}

struct Relay {
    tcp: TcpStream,
    local: UnixStream,
    tls: ClientConnection,
    identity: TlsIdentity,
    /// Plain bytes that the connection has not taken yet.
    inbox: Vec<u8>,
    ends: RecordEnds,
}

impl Relay {
    fn run(mut self, end: &RelayEnd) {
        let reason = self.pass_on().err().unwrap_or(Disconnect::Closed);
        *end.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        // Fail only where the sockets are down already, which is what is wanted.
        let _ = self.local.shutdown(Shutdown::Both);
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Until either side ends. `Ok`: the connection did.
    fn pass_on(&mut self) -> Result<(), Disconnect> {
        let mut plain = vec![0; PLAIN];
        loop {
            let closed = self.wait()?;
            if self.inbox.is_empty() {
                self.receive()?;
            }
            self.hand_over()?;
            if !self.tls.wants_write() {
                match (&self.local).read(&mut plain) {
                    Ok(0) => return self.farewell(),
                    Ok(count) => self.encrypt(plain.get(..count).unwrap_or_default())?,
                    Err(error) if is_later(&error) => {}
                    Err(error) => return Err(Disconnect::Socket(error)),
                }
            }
            self.send()?;
            if closed && self.tls.wants_write() {
                // What the peer does not take now nobody waits for any more.
                return Ok(());
            }
        }
    }

    /// Each RPC record begins in a TLS record of its own, as Gluster's clients do it. A brick that
    /// has read one goes back to waiting for its socket (`socket_event_poll_in`,
    /// rpc/rpc-transport/socket/src/socket.c): what came with it in one TLS record is not looked at
    /// before more comes.
    fn encrypt(&mut self, mut plain: &[u8]) -> Result<(), Disconnect> {
        while !plain.is_empty() {
            let (record, rest) = plain.split_at(self.ends.next(plain));
            let written = self.tls.writer().write_all(record);
            written.map_err(Disconnect::Socket)?;
            plain = rest;
        }
        Ok(())
    }

    /// Sleeps until something can be done that is wanted. Has the connection been closed?
    fn wait(&self) -> Result<bool, Disconnect> {
        let when = |wanted: bool, flag: PollFlags| match wanted {
            true => flag,
            false => PollFlags::empty(),
        };
        let (inward, outward) = (!self.inbox.is_empty(), self.tls.wants_write());
        let local = when(inward, PollFlags::OUT) | when(!outward, PollFlags::IN);
        let tcp = when(!inward, PollFlags::IN) | when(outward, PollFlags::OUT);
        let mut fds = [PollFd::new(&self.local, local), PollFd::new(&self.tcp, tcp)];
        // One of which nothing is wanted would say all the time that it is broken.
        let (fds, _) = fds.split_at_mut(if tcp.is_empty() { 1 } else { 2 });
        match poll(fds, None) {
            Ok(_) => {
                let local = fds.first().map(PollFd::revents);
                Ok(local.is_some_and(|found| found.contains(PollFlags::HUP)))
            }
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Disconnect::Socket(error.into())),
        }
    }

    /// Takes what has come, and decrypts it.
    fn receive(&mut self) -> Result<(), Disconnect> {
        let ended = match self.tls.read_tls(&mut &self.tcp) {
            Ok(count) => count == 0,
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(Disconnect::Socket(error)),
        };
        if let Err(error) = self.tls.process_new_packets() {
            let _ = self.tls.write_tls(&mut &self.tcp);
            return Err(Disconnect::Tls(self.identity.told(error).into()));
        }
        match self.tls.reader().read_to_end(&mut self.inbox) {
            Ok(_) => {}
            Err(error) if is_later(&error) => {}
            // Without TLS's farewell; what it means is the same.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(Disconnect::Socket(error)),
        }
        match ended && self.inbox.is_empty() {
            true => Err(Disconnect::ClosedByPeer),
            false => Ok(()),
        }
    }

    /// Gives the connection what there is for it.
    fn hand_over(&mut self) -> Result<(), Disconnect> {
        while !self.inbox.is_empty() {
            match (&self.local).write(&self.inbox) {
                Ok(count) => drop(self.inbox.drain(..count)),
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(Disconnect::Socket(error)),
            }
        }
        Ok(())
    }

    /// Sends what is encrypted.
    fn send(&mut self) -> Result<(), Disconnect> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut &self.tcp) {
                Ok(_) => {}
                Err(error) if is_later(&error) => break,
                // The peer has gone, and may have said why before.
                Err(error) => match self.receive() {
                    Err(why @ Disconnect::Tls(_)) => return Err(why),
                    _ => return Err(Disconnect::Socket(error)),
                },
            }
        }
        Ok(())
    }

    fn farewell(&mut self) -> Result<(), Disconnect> {
        self.tls.send_close_notify();
        self.send()
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
