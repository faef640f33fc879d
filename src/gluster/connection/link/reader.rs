//! The reader thread of a connection: what it reads, and when it looks at the clock.
//!
//! It sleeps in the socket, with the socket's own time-out: as long as an idle peer may be
//! silent, and after its ping as long as that may be unanswered.

use std::io::{self, BufReader, IoSlice, Read};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::super::pulse::Watch;
use super::super::socket::is_timeout;
use super::super::{CallError, Disconnect, Reply, Undo};
use super::Link;
use crate::gluster::notice::Notice;
use crate::gluster::record::RecordDecoder;
use crate::gluster::rpc::{self, Call, Message};
use crate::gluster::xdr::XdrError;

/// The reader's buffer: small replies cost one system call, the bytes of large
/// ones go past it.
const READ_BUFFER: usize = 16 << 10;

/// The shortest time-out of a socket: none would be for ever.
const SHORTEST: Duration = Duration::from_millis(1);

/// How long a read may take.
struct Patience<'a> {
    stream: &'a Socket,
    /// With an idle peer.
    usual: Option<Duration>,
    limited: bool,
}

impl<'a> Patience<'a> {
    /// As the socket was set up.
    fn of(stream: &'a Socket) -> io::Result<Self> {
        Ok(Self {
            stream,
            usual: stream.read_timeout()?,
            limited: false,
        })
    }

    fn limit(&mut self, limit: Duration) -> io::Result<()> {
        self.limited = true;
        self.stream.set_read_timeout(Some(limit.max(SHORTEST)))
    }

    fn restore(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.limited) {
            true => self.stream.set_read_timeout(self.usual),
            false => Ok(()),
        }
    }
}

impl Link {
    /// The reader thread.
    pub(in crate::gluster::connection) fn run(&self) {
        let reason = self.disconnect(self.read());
        let listeners = std::mem::take(&mut self.lock().listeners);
        for listener in listeners {
            listener(&reason);
        }
    }

    /// Reads until the connection ends.
    fn read(&self) -> Disconnect {
        let mut stream = BufReader::with_capacity(READ_BUFFER, self.stream.socket());
        let mut records = RecordDecoder::default();
        let mut patience = match Patience::of(self.stream.socket()) {
            Ok(patience) => patience,
            Err(error) => return Disconnect::Socket(error),
        };
        loop {
            if stream.buffer().is_empty() && records.is_between_records() {
                self.rest_while_held();
            }
            let waited = match stream.read(records.space()) {
                Ok(0) => return Disconnect::ClosedByPeer,
                Ok(count) => {
                    self.heard();
                    match records.advance(count) {
                        Ok(None) => {}
                        Ok(Some(record)) => {
                            if let Err(error) = self.deliver(record) {
                                return Disconnect::Header(error);
                            }
                        }
                        Err(error) => return Disconnect::Record(error),
                    }
                    patience.restore()
                }
                Err(error) if is_timeout(&error) => match self.look(Watch::Reader) {
                    Some(left) => patience.limit(left),
                    None => Ok(()),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                return Disconnect::Socket(error);
            }
        }
    }

    fn heard(&self) {
        if let Some(pulse) = &mut self.lock().pulse {
            pulse.heard(Instant::now());
        }
    }

    /// Hands a record to the call it answers, or to who wants to hear of notices. Anything
    /// else — another notice, a ping's reply, the reply to nobody — is dropped.
    fn deliver(&self, record: Vec<u8>) -> Result<(), XdrError> {
        let (xid, results) = match rpc::parse(&record)? {
            Message::Reply { xid, results } => (xid, results),
            Message::Call {
                program,
                procedure,
                arguments,
            } => {
                log::trace!("notice {procedure} of program {program}");
                let arguments = record.get(arguments..).unwrap_or_default();
                if let Some(notice) = Notice::parse(program, procedure, arguments)? {
                    self.tell(&notice);
                }
                return Ok(());
            }
        };
        let Some(waiter) = self.withdraw(xid) else {
            return Ok(());
        };
        let answer = results
            .map(|results| Reply { record, results })
            .map_err(CallError::Rejected);
        match (waiter.undo, answer) {
            (Some(undo), Ok(reply)) if (undo.took)(reply.results()) => self.send_undo(&undo),
            // Fails where the caller did not want to know.
            (_, answer) => drop(waiter.answer.try_send(answer)),
        }
        Ok(())
    }

    fn tell(&self, notice: &Notice) {
        let listener = self.lock().notices.clone();
        if let Some(listener) = listener {
            listener(notice);
        }
    }

    /// Sends a call whose reply is of no interest: it will find nobody.
    fn send_undo(&self, undo: &Undo) {
        let xid = self.lock().new_xid();
        let call = Call {
            program: undo.program,
            procedure: undo.procedure,
            credentials: &undo.credentials,
            arguments: &undo.arguments,
            payload: &[],
        };
        if let Some(head) = call.encode(xid) {
            // Fails where the connection is gone, and what was taken with it.
            let _ = self.send(&mut [IoSlice::new(&head)]);
        }
    }
}
