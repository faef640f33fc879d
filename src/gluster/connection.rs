//! One TCP connection to a glusterd or a brick, with many calls in flight.
//!
//! It owns the socket, one reader thread, and the table of calls that wait for
//! their replies. Callers send from their own threads, each record whole; the
//! reader matches replies by transaction id, tells what the peer says unasked, and drops the peer's other
//! calls (a brick's notices need no answer). Who waits, caller or reader, pings a silent peer and
//! declares it dead when that stays unanswered. The thread ends with the connection, and the
//! connection with its last handle. It never reconnects.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::notice::Notice;
use super::record::RecordError;
use super::rpc::{Call, Credentials, Program, Rejection};
use super::tls::{TlsError, TlsFiles, TlsIdentity};
use super::xdr::XdrError;

mod link;
mod pulse;
mod relay;
mod socket;

use link::Link;
pub use pulse::Timeouts;
use pulse::{Pulse, Watch};
use socket::{Stream, configure, dial};

/// Calls that a brick counts and that may be unanswered at one time. A brick
/// stops reading from a client with more than `server.outstanding-rpc-limit`
/// (64) of them, pings included; staying below keeps the pings answered.
pub const MAX_COUNTED_CALLS: usize = 48;

/// All calls that may be unanswered at one time. Bricks do not count lock calls,
/// so that blocked ones cannot keep out the unlock they wait for
/// (`rpcsvc_can_outstanding_req_be_ignored`, rpc/rpc-lib/src/rpcsvc.c).
pub const MAX_CALLS: usize = 1024;

/// The most calls that are sent together: two such batches can be under way, so that
/// the brick has work while the next is made ready.
pub const MAX_BATCH: usize = MAX_COUNTED_CALLS / 2;

/// How often a caller who waits for a lock is asked whether he still wants it.
const GLANCE: Duration = Duration::from_millis(100);

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
    /// The peer sent a record that is no RPC message, or a notice that is not what it says.
    #[error("the peer does not follow the protocol")]
    Header(#[source] XdrError),
    /// TLS ended it.
    #[error("TLS ended it")]
    Tls(#[source] Box<TlsError>),
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
    /// TLS is wanted, and not to be had.
    #[error("no TLS")]
    Tls(#[source] Box<TlsError>),
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

/// Why a connection cannot rest.
#[derive(Debug, Error)]
pub enum HoldError {
    /// It is gone.
    #[error("disconnected")]
    Gone(#[source] Arc<Disconnect>),
    /// Calls are under way, or the peer does not answer.
    #[error("the peer owes an answer")]
    Busy,
    /// Its keys are this process's alone.
    #[error("a connection with TLS cannot go from one process to another")]
    Tls,
    /// There is no file descriptor left.
    #[error("no second handle of the socket is to be had")]
    Clone(#[source] io::Error),
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

/// Closes the connection when the last handle is gone.
struct Owner(Arc<Link>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.disconnect(Disconnect::Closed);
    }
}

/// A handle of a connection; clones share it.
#[derive(Clone)]
pub struct Connection(Arc<Owner>);

impl Connection {
    /// Connects to the first address of `host` that answers, with `tls` if the peer wants
    /// that. With `pings`, a peer that goes silent is noticed (see [`Timeouts`]).
    pub fn connect(
        host: &str,
        port: u16,
        timeouts: &Timeouts,
        pings: bool,
        tls: Option<&TlsFiles>,
    ) -> Result<Self, ConnectError> {
        let identity = tls.map(TlsIdentity::read).transpose();
        let identity = identity.map_err(|error| ConnectError::Tls(error.into()))?;
        let stream = dial(host, port, timeouts.connect)?;
        configure(&stream, timeouts).map_err(ConnectError::Setup)?;
        let stream = match identity {
            None => Stream::plain(stream),
            Some(identity) => {
                let deadline = Deadline::after(timeouts.connect);
                let (local, end) = relay::encrypt(stream, identity, host, deadline)?;
                Stream::relayed(local, end)
            }
        };
        Self::over(stream, 0, host, timeouts, pings)
    }

    /// Goes on with a connection of another process's, as its [`Connection::hold`] left it.
    pub fn adopt(
        stream: TcpStream,
        last_xid: u32,
        host: &str,
        timeouts: &Timeouts,
    ) -> Result<Self, ConnectError> {
        configure(&stream, timeouts).map_err(ConnectError::Setup)?;
        Self::over(Stream::plain(stream), last_xid, host, timeouts, true)
    }

    fn over(
        stream: Stream,
        last_xid: u32,
        host: &str,
        timeouts: &Timeouts,
        pings: bool,
    ) -> Result<Self, ConnectError> {
        let pulse = pings.then(|| Pulse::new(timeouts, Instant::now()));
        let limits = stream.limit(timeouts, pings);
        limits.map_err(ConnectError::Setup)?;
        let link = Arc::new(Link::new(stream, last_xid, timeouts.send, pulse));
        let reader = Arc::clone(&link);
        thread::Builder::new()
            .name(format!("gluster {host}"))
            .spawn(move || reader.run())
            .map_err(ConnectError::Setup)?;
        Ok(Self(Arc::new(Owner(link))))
    }

    fn link(&self) -> &Arc<Link> {
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
        let sent = self.call_all(std::slice::from_ref(call), weight, deadline)?;
        sent.into_iter().next().ok_or(CallError::TooLong)
    }

    /// Sends calls, at most [`MAX_BATCH`], with as few system calls as that takes. All
    /// of them or none.
    pub fn call_all(
        &self,
        calls: &[Call<'_>],
        weight: Weight,
        deadline: Deadline,
    ) -> Result<Vec<PendingCall>, CallError> {
        if calls.len() > MAX_BATCH {
            return Err(CallError::TooLong);
        }
        let enlisted = self.link().enlist(calls.len(), weight, deadline)?;
        let sent = Instant::now();
        let pending: Vec<_> = enlisted
            .into_iter()
            .map(|(xid, answer)| PendingCall {
                xid,
                answer,
                sent,
                link: Arc::clone(self.link()),
            })
            .collect();
        let encoded = calls.iter().zip(&pending).map(|(c, p)| c.encode(p.xid));
        let Some(heads) = encoded.collect::<Option<Vec<_>>>() else {
            for call in &pending {
                self.link().withdraw(call.xid);
            }
            return Err(CallError::TooLong);
        };
        let parts = heads.iter().zip(calls);
        let parts = parts.flat_map(|(head, call)| [head.as_slice(), call.payload]);
        let mut parts: Vec<_> = parts.map(IoSlice::new).collect();
        self.link().send(&mut parts)?;
        Ok(pending)
    }

    /// Lets the connection rest between two records, so that another process can go on
    /// with its socket and with the transaction ids after the one that is returned. Nothing
    /// may wait for an answer; it takes one round trip, at most `limit`.
    ///
    /// # Errors
    /// [`HoldError`]; the connection goes on as before.
    pub fn hold(&self, limit: Duration) -> Result<(TcpStream, u32), HoldError> {
        self.link().hold(limit)
    }

    /// Ends what [`Connection::hold`] began.
    pub fn go_on(&self) {
        self.link().go_on();
    }

    /// Is the connection up, as far as known?
    pub fn is_connected(&self) -> bool {
        self.link().gone().is_none()
    }

    /// Ends the connection: every waiting call fails at once.
    pub fn close(&self) {
        self.link().disconnect(Disconnect::Closed);
    }

    /// Runs `listener` once when the connection is gone, on the reader thread;
    /// at once on this thread if it is gone already. It must not wait for
    /// anything but short locks.
    pub fn on_disconnect(&self, listener: impl FnOnce(&Arc<Disconnect>) + Send + 'static) {
        self.link().listen(Box::new(listener));
    }

    /// Runs `listener`, in place of any before, on the reader thread whenever the peer says
    /// something of use unasked. It must not wait for anything but short locks.
    pub fn on_notice(&self, listener: impl Fn(&Notice) + Send + Sync + 'static) {
        self.link().listen_to_notices(Arc::new(listener));
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
    /// Since when the peer owes it.
    sent: Instant,
    link: Arc<Link>,
}

impl PendingCall {
    /// Waits for the reply.
    pub fn wait(self, deadline: Deadline) -> Answer {
        self.receive(deadline).unwrap_or(Err(deadline.missed()))
    }

    /// Waits for the reply, unless `given_up`, which is asked now and then. If the
    /// reply comes after all when nobody waits any more, and says that something was
    /// taken, `undo` gives that back.
    pub fn wait_or_undo(
        self,
        deadline: Deadline,
        given_up: impl Fn() -> bool,
        undo: Undo,
    ) -> Answer {
        loop {
            let glance = Deadline::after(deadline.left().min(GLANCE));
            if let Some(answer) = self.receive(glance) {
                return answer;
            }
            if deadline.left().is_zero() || given_up() {
                break;
            }
        }
        if self.link.abandon(self.xid, undo) {
            return Err(deadline.missed());
        }
        // The reader has just taken the call out of the table: its answer is
        // on the way through the channel.
        self.answer.recv().unwrap_or(Err(deadline.missed()))
    }

    /// `None` if there is none by then.
    fn receive(&self, deadline: Deadline) -> Option<Answer> {
        let mut wait = Duration::ZERO;
        loop {
            match self.answer.recv_timeout(wait) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) => {
                    let left = deadline.left();
                    if left.is_zero() {
                        return None;
                    }
                    let look = self.link.look(Watch::Caller(self.sent));
                    wait = look.map_or(left, |look| look.min(left));
                }
                // Withdrawn without an answer, which only a gone connection does.
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = self.link.gone();
                    let reason = reason.unwrap_or_else(|| Arc::new(Disconnect::Closed));
                    return Some(Err(CallError::Disconnected(reason)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
