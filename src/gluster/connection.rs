//! One TCP connection to a glusterd or a brick, with many calls in flight.
//!
//! It owns the socket, one reader thread, and the table of calls that wait for
//! their replies. Callers send from their own threads, each record whole; the
//! reader matches replies by transaction id, drops the peer's own calls (a
//! brick's notices need no answer), pings a silent peer and declares it dead
//! when that stays unanswered. The thread ends with the connection, and the
//! connection with its last handle. It never reconnects.

use std::collections::HashMap;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;

use super::record::{RecordDecoder, RecordError};
use super::rpc::{self, Call, Credentials, Message, Program, Rejection};
use super::xdr::XdrError;

mod pulse;

pub use pulse::Timeouts;
use pulse::{Beat, Pulse};

/// Calls that a brick counts and that may be unanswered at one time. A brick
/// stops reading from a client with more than `server.outstanding-rpc-limit`
/// (64) of them, pings included; staying below keeps the pings answered.
pub const MAX_COUNTED_CALLS: usize = 48;

/// All calls that may be unanswered at one time. Bricks do not count lock calls,
/// so that blocked ones cannot keep out the unlock they wait for
/// (`rpcsvc_can_outstanding_req_be_ignored`, rpc/rpc-lib/src/rpcsvc.c).
pub const MAX_CALLS: usize = 1024;

/// The reader's buffer: small replies cost one system call, the bytes of large
/// ones go past it.
const READ_BUFFER: usize = 16 << 10;

/// The transaction id of pings; no other call gets it.
const PING_XID: u32 = 0;
/// Procedure PING of the handshake program.
const PING: u32 = 3;

/// Why a connection is gone.
#[derive(Debug, Error)]
pub enum Disconnect {
    /// This side closed it.
    #[error("closed by this side")]
    Closed,
    /// The peer closed it: its process ended or refused to go on.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// The peer left a ping unanswered.
    #[error("the peer has been silent for {} s in spite of a ping", .after.as_secs_f32())]
    Silent {
        /// How long nothing came.
        after: Duration,
    },
    /// The peer did not take what was sent.
    #[error("the peer did not take a message within {} s", .after.as_secs_f32())]
    SendStuck {
        /// The send time-out.
        after: Duration,
    },
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[source] io::Error),
    /// The peer sent something that is no record.
    #[error("the peer does not follow the protocol")]
    Record(#[source] RecordError),
    /// The peer sent a record that is no RPC message.
    #[error("the peer does not follow the protocol")]
    Header(#[source] XdrError),
}

/// Why a connection could not be made.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("the name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// No address answered; the cause is that of the last one tried.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The socket could not be set up, or no thread was to be had.
    #[error("no connection could be set up")]
    Setup(#[source] io::Error),
}

/// Why a call has no results.
#[derive(Clone, Debug, Error)]
pub enum CallError {
    /// The connection is gone. Whether the peer ran the call is unknown.
    #[error("disconnected")]
    Disconnected(#[source] Arc<Disconnect>),
    /// No reply within that time. Whether the peer ran, or will run, the call is
    /// unknown.
    #[error("no answer within {} s", .after.as_secs_f32())]
    TimedOut {
        /// The time given.
        after: Duration,
    },
    /// The call is longer than a record may be. It was not sent.
    #[error("the message would be longer than the limit")]
    TooLong,
    /// The peer did not run it.
    #[error("rejected")]
    Rejected(#[source] Rejection),
}

/// Does the peer count a call among the outstanding ones?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// At most [`MAX_COUNTED_CALLS`]; the caller waits for its turn.
    Counted,
    /// A lock call.
    Uncounted,
}

/// A reply's record.
#[derive(Debug)]
pub struct Reply {
    record: Vec<u8>,
    results: usize,
}

impl Reply {
    /// The procedure's results.
    pub fn results(&self) -> &[u8] {
        self.record.get(self.results..).unwrap_or_default()
    }
}

type Answer = Result<Reply, CallError>;
type DisconnectListener = Box<dyn FnOnce(&Arc<Disconnect>) + Send>;

struct Waiter {
    answer: SyncSender<Answer>,
    weight: Weight,
    /// Set once nobody waits any more.
    undo: Option<Undo>,
}

#[derive(Default)]
struct State {
    calls: HashMap<u32, Waiter>,
    counted: usize,
    last_xid: u32,
    gone: Option<Arc<Disconnect>>,
    listeners: Vec<DisconnectListener>,
}

/// The call that gives back what another took, for when the other is answered
/// too late.
#[derive(Debug)]
pub struct Undo {
    /// Do these results say that something was taken?
    pub took: fn(results: &[u8]) -> bool,
    /// The program called.
    pub program: Program,
    /// Procedure number.
    pub procedure: u32,
    /// The caller.
    pub credentials: Credentials,
    /// The encoded arguments.
    pub arguments: Vec<u8>,
}

/// What the handles and the reader thread share.
struct Shared {
    stream: TcpStream,
    /// Held while one record is written.
    turn: Mutex<()>,
    send_timeout: Duration,
    state: Mutex<State>,
    room: Condvar,
}

/// Closes the connection when the last handle is gone.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.disconnect(Disconnect::Closed);
    }
}

/// A handle of a connection; clones share it.
#[derive(Clone)]
pub struct Connection(Arc<Owner>);

impl Connection {
    /// Connects to the first address of `host` that answers. With `pings`, a
    /// peer that goes silent is noticed (see [`Timeouts`]).
    pub fn connect(
        host: &str,
        port: u16,
        timeouts: &Timeouts,
        pings: bool,
    ) -> Result<Self, ConnectError> {
        let stream = dial(host, port, timeouts.connect)?;
        let pulse = pings.then(|| Pulse::new(timeouts, Instant::now()));
        configure(&stream, timeouts, pulse.as_ref()).map_err(ConnectError::Setup)?;
        let shared = Arc::new(Shared {
            stream,
            turn: Mutex::default(),
            send_timeout: timeouts.send,
            state: Mutex::default(),
            room: Condvar::new(),
        });
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("gluster {host}"))
            .spawn(move || reader.run(pulse))
            .map_err(ConnectError::Setup)?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Sends a call; the reply is waited for separately, so that many can be on
    /// their way. Waits until `deadline` for its turn among the counted calls.
    pub fn call(
        &self,
        call: &Call<'_>,
        weight: Weight,
        deadline: Deadline,
    ) -> Result<PendingCall, CallError> {
        let (xid, answer) = self.shared().enlist(weight, deadline)?;
        let Some(head) = call.encode(xid) else {
            self.shared().withdraw(xid);
            return Err(CallError::TooLong);
        };
        self.shared().send(&head, call.payload)?;
        Ok(PendingCall {
            xid,
            answer,
            shared: Arc::clone(self.shared()),
        })
    }

    /// Is the connection up, as far as known?
    pub fn is_connected(&self) -> bool {
        self.shared().lock().gone.is_none()
    }

    /// Ends the connection: every waiting call fails at once.
    pub fn close(&self) {
        self.shared().disconnect(Disconnect::Closed);
    }

    /// Runs `listener` once when the connection is gone, on the reader thread;
    /// at once on this thread if it is gone already. It must not wait for
    /// anything but short locks.
    pub fn on_disconnect(&self, listener: impl FnOnce(&Arc<Disconnect>) + Send + 'static) {
        let gone = {
            let mut state = self.shared().lock();
            match &state.gone {
                Some(reason) => Arc::clone(reason),
                None => {
                    state.listeners.push(Box::new(listener));
                    return;
                }
            }
        };
        listener(&gone);
    }
}

/// The point in time when waiting ends, and how long that was.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    /// Waiting longer than this makes no difference to anybody.
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

    /// `after` from now.
    pub fn after(after: Duration) -> Self {
        let after = after.min(Self::LONGEST);
        Self {
            at: Instant::now() + after,
            after,
        }
    }

    fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn missed(&self) -> CallError {
        CallError::TimedOut { after: self.after }
    }
}

/// A call that was sent. Dropped, its reply is read and thrown away.
pub struct PendingCall {
    xid: u32,
    answer: Receiver<Answer>,
    shared: Arc<Shared>,
}

impl PendingCall {
    /// Waits for the reply.
    pub fn wait(self, deadline: Deadline) -> Answer {
        self.receive(deadline).unwrap_or(Err(deadline.missed()))
    }

    /// Waits for the reply; if it comes after all when nobody waits any more, and
    /// says that something was taken, `undo` gives that back.
    pub fn wait_or_undo(self, deadline: Deadline, undo: Undo) -> Answer {
        if let Some(answer) = self.receive(deadline) {
            return answer;
        }
        if let Some(waiter) = self.shared.lock().calls.get_mut(&self.xid) {
            waiter.undo = Some(undo);
            return Err(deadline.missed());
        }
        // The reader has just taken the call out of the table: its answer is
        // on the way through the channel.
        self.answer.recv().unwrap_or(Err(deadline.missed()))
    }

    fn receive(&self, deadline: Deadline) -> Option<Answer> {
        match self.answer.recv_timeout(deadline.left()) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            // Withdrawn without an answer, which only a gone connection does.
            Err(RecvTimeoutError::Disconnected) => {
                let gone = self.shared.lock().gone.clone();
                let reason = gone.unwrap_or_else(|| Arc::new(Disconnect::Closed));
                Some(Err(CallError::Disconnected(reason)))
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room and enters a call into the table.
    fn enlist(
        &self,
        weight: Weight,
        deadline: Deadline,
    ) -> Result<(u32, Receiver<Answer>), CallError> {
        let mut state = self.lock();
        loop {
            if let Some(reason) = &state.gone {
                return Err(CallError::Disconnected(Arc::clone(reason)));
            }
            if state.has_room(weight) {
                break;
            }
            let left = deadline.left();
            if left.is_zero() {
                return Err(deadline.missed());
            }
            (state, _) = self
                .room
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let xid = state.new_xid();
        // One answer at most, so the reader never waits for the caller.
        let (sender, answer) = mpsc::sync_channel(1);
        if weight == Weight::Counted {
            state.counted += 1;
        }
        let waiter = Waiter {
            answer: sender,
            weight,
            undo: None,
        };
        state.calls.insert(xid, waiter);
        Ok((xid, answer))
    }

    /// Takes a call out of the table, which makes room for the next.
    fn withdraw(&self, xid: u32) -> Option<Waiter> {
        let mut state = self.lock();
        let waiter = state.calls.remove(&xid)?;
        if waiter.weight == Weight::Counted {
            state.counted = state.counted.saturating_sub(1);
        }
        drop(state);
        self.room.notify_all();
        Some(waiter)
    }

    /// Sends one record; a failure in the middle of it ends the connection.
    fn send(&self, head: &[u8], payload: &[u8]) -> Result<(), CallError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &self.lock().gone {
            return Err(CallError::Disconnected(Arc::clone(reason)));
        }
        write_record(&self.stream, head, payload, self.send_timeout)
            .map_err(|reason| CallError::Disconnected(self.disconnect(reason)))
    }

    /// Sends a ping if that needs no waiting. Is it on its way?
    fn ping(&self) -> Result<bool, Disconnect> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Ok(false);
        };
        let call = Call {
            program: rpc::HANDSHAKE,
            procedure: PING,
            credentials: &Credentials::None,
            arguments: &[],
            payload: &[],
        };
        let bytes = call.encode(PING_XID).unwrap_or_default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, &bytes, flags) {
            Ok(sent) if sent == bytes.len() => Ok(true),
            // Half a ping: nothing can follow it.
            Ok(_) => Err(Disconnect::SendStuck {
                after: Duration::ZERO,
            }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Disconnect::Socket(error.into())),
        }
    }

    /// Ends the connection for `reason` unless it is gone already, and fails
    /// every waiting call. Returns the reason that holds. The reader thread
    /// notices by the shut-down socket and tells the listeners.
    fn disconnect(&self, reason: Disconnect) -> Arc<Disconnect> {
        let (reason, calls) = {
            let mut state = self.lock();
            if let Some(earlier) = &state.gone {
                return Arc::clone(earlier);
            }
            let reason = Arc::new(reason);
            state.gone = Some(Arc::clone(&reason));
            state.counted = 0;
            (reason, std::mem::take(&mut state.calls))
        };
        // Fails only where the socket is down already, which is what is wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
        for waiter in calls.into_values() {
            let answer = Err(CallError::Disconnected(Arc::clone(&reason)));
            // Fails where nobody waits any more.
            let _ = waiter.answer.try_send(answer);
        }
        self.room.notify_all();
        reason
    }

    /// The reader thread.
    fn run(&self, pulse: Option<Pulse>) {
        let reason = self.read(pulse);
        let reason = self.disconnect(reason);
        let listeners = std::mem::take(&mut self.lock().listeners);
        for listener in listeners {
            listener(&reason);
        }
    }

    fn read(&self, mut pulse: Option<Pulse>) -> Disconnect {
        let mut stream = BufReader::with_capacity(READ_BUFFER, &self.stream);
        let mut records = RecordDecoder::default();
        loop {
            match stream.read(records.space()) {
                Ok(0) => return Disconnect::ClosedByPeer,
                Ok(count) => {
                    if let Some(pulse) = &mut pulse {
                        pulse.heard(Instant::now());
                    }
                    match records.advance(count) {
                        Ok(None) => {}
                        Ok(Some(record)) => {
                            if let Err(error) = self.deliver(record) {
                                return Disconnect::Header(error);
                            }
                        }
                        Err(error) => return Disconnect::Record(error),
                    }
                }
                Err(error) if is_timeout(&error) => {
                    if let Some(reason) = self.on_silence(pulse.as_mut()) {
                        return reason;
                    }
                }
                Err(error) => return Disconnect::Socket(error),
            }
        }
    }

    fn on_silence(&self, pulse: Option<&mut Pulse>) -> Option<Disconnect> {
        let pulse = pulse?;
        let now = Instant::now();
        match pulse.beat(now) {
            Beat::Quiet => None,
            Beat::Dead { after } => Some(Disconnect::Silent { after }),
            Beat::Ping => match self.ping() {
                Ok(true) => {
                    pulse.pinged(now);
                    None
                }
                Ok(false) => None,
                Err(reason) => Some(reason),
            },
        }
    }

    /// Hands a record to the call it answers. Anything else — a brick's notice,
    /// a ping's reply, the reply to nobody — is dropped.
    fn deliver(&self, record: Vec<u8>) -> Result<(), XdrError> {
        let (xid, results) = match rpc::parse(&record)? {
            Message::Reply { xid, results } => (xid, results),
            Message::Call { program, procedure } => {
                log::trace!("notice {procedure} of program {program} from a brick");
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
            let _ = self.send(&head, &[]);
        }
    }
}

impl State {
    fn has_room(&self, weight: Weight) -> bool {
        self.calls.len() < MAX_CALLS
            && (weight == Weight::Uncounted || self.counted < MAX_COUNTED_CALLS)
    }

    /// An id that no unanswered call has; there are far fewer of those than ids.
    fn new_xid(&mut self) -> u32 {
        loop {
            self.last_xid = self.last_xid.wrapping_add(1);
            if self.last_xid != PING_XID && !self.calls.contains_key(&self.last_xid) {
                return self.last_xid;
            }
        }
    }
}

fn dial(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ConnectError> {
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

fn configure(stream: &TcpStream, timeouts: &Timeouts, pulse: Option<&Pulse>) -> io::Result<()> {
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

fn write_record(
    mut stream: &TcpStream,
    head: &[u8],
    payload: &[u8],
    timeout: Duration,
) -> Result<(), Disconnect> {
    let started = Instant::now();
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    let mut parts = &mut parts[..];
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

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    // A dead link also reads as ETIMEDOUT, but only the socket's own time-out
    // has the error number of an operation that would block.
    match error.kind() {
        WouldBlock | Interrupted => true,
        TimedOut => error.raw_os_error().is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
