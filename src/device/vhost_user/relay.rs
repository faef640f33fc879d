//! Passes vhost-user messages between the front-end and the protocol handler.
//!
//! The handler of `vhost-user-backend` takes its connection from a listener of
//! its own only. The relay between it and the real connection knows when a
//! connection ends, and how: closed, cut off in a message, or by our own wish,
//! in which case the rings are drained before the front-end learns of it. It
//! reads no more of a message than its header; what is to be answered without the
//! handler is for `intercept` to say.
//!
//! A message that is answered here may be so before the handler has finished the
//! one before: whoever asks for an answer waits for it, as all front-ends do.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use uuid::Uuid;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

use super::intercept::{FrontEndRequest, Intercept, Verdict};
use super::message_deadline::{Owed, Patience};
use super::transcript::Transcript;
use crate::device::error::DeviceError;
use crate::device::limits::{MAX_BODY, MAX_FDS};

/// Bytes of a message's header: request, flags, length of the body.
pub const HEADER_LEN: usize = 12;
/// Flags of a reply: version 1, and that it is one.
const REPLY_FLAGS: u32 = 1 | 1 << 2;

/// How long a front-end's messages may wait for a pause.
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// How relaying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// The front-end closed the connection, between two messages.
    FrontEndClosed,
    /// We were asked to stop.
    Stopped,
    /// The handler closed its side: it did not like what it read.
    HandlerClosed,
    /// We were asked to pause: nothing is under way between the two.
    Paused,
}

/// What ends or interrupts relaying from outside.
pub struct Wishes<'a> {
    /// To end, once it is readable.
    pub stop: BorrowedFd<'a>,
    /// To stop between two messages, with everything answered, once it is readable.
    pub pause: BorrowedFd<'a>,
    /// Not to wait for a front-end any longer. One of which something is in `transcript` is an
    /// established one.
    pub patience: Patience,
}

/// A stream to a handler that accepts from the listener. The socket is made in
/// a folder that nobody else can enter, and has no name any more on return.
///
/// # Errors
/// What the file system or the kernel refused.
pub fn handler_channel() -> io::Result<(UnixStream, Listener)> {
    let folder = std::env::temp_dir().join(format!("bypass-blk-{}", Uuid::new_v4()));
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let path = folder.join("handler");
    let pair = UnixListener::bind(&path)
        .and_then(|listener| Ok((UnixStream::connect(&path)?, Listener::from(listener))));
    let _ = std::fs::remove_file(&path);
    let removed = std::fs::remove_dir(&folder);
    let pair = pair?;
    removed?;
    Ok(pair)
}

/// Relays until one side is gone or it is wished otherwise. Never waits for one
/// side alone, so neither can hold up the end by not reading. What the front-end says is
/// kept in `transcript`. A pause that cannot be now is refused, in the log.
///
/// # Errors
/// The front-end broke off or misused the protocol, or a connection failed.
pub fn relay(
    front_end: &UnixStream,
    handler: &UnixStream,
    wishes: &Wishes<'_>,
    intercept: &mut Intercept,
    transcript: &mut Transcript,
) -> Result<RelayEnd, DeviceError> {
    let mut requests = RawMessage::default();
    let mut replies = RawMessage::default();
    let mut unanswered = 0usize;
    let mut pausing: Option<Instant> = None;
    let mut owed = Owed::new(wishes.patience, !transcript.is_empty(), Instant::now());
    loop {
        replies.pass = true;
        if requests.complete()? {
            owed.has_whole();
        }
        // An answer of ours must not get into the middle of one of the handler's.
        if requests.complete()? && !requests.pass && replies.bytes.is_empty() {
            unanswered += usize::from(look_at(&mut requests, &mut replies, intercept, transcript)?);
        }
        let idle = requests.bytes.is_empty() && replies.bytes.is_empty() && unanswered == 0;
        let late = pausing.is_some_and(|since| since.elapsed() >= PAUSE_LIMIT);
        if pausing.is_some() && (idle || late) {
            let refusal = match transcript.may_pause() {
                Ok(()) if idle => return Ok(RelayEnd::Paused),
                Ok(()) => "a message of its is not answered yet",
                Err(why) => why,
            };
            log::warn!("the front-end cannot go on with another process: {refusal}");
            pausing = None;
            forget(wishes.pause);
        }
        let mut fds = [
            PollFd::from_borrowed_fd(wishes.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(wishes.pause, only_if(pausing.is_none(), PollFlags::IN)),
            PollFd::new(handler, interest(&replies, &requests)?),
            PollFd::new(front_end, interest(&requests, &replies)?),
        ];
        if pausing.is_some() && requests.bytes.is_empty() {
            // No further request; HUP comes in any case.
            fds[3] = PollFd::new(front_end, only_if(replies.ready()?, PollFlags::OUT));
        }
        let now = Instant::now();
        let limit = pausing.map_or(owed.left(now), |_| Some(PAUSE_LIMIT));
        wait(&mut fds, limit)?;
        let [stopped, paused, from_handler, from_front_end] = fds.map(|fd| fd.revents());
        if !stopped.is_empty() {
            return Ok(RelayEnd::Stopped);
        }
        if !paused.is_empty() {
            pausing = Some(Instant::now());
        }
        if !from_handler.is_empty() {
            match pump(handler, from_handler, &mut replies, &mut requests)? {
                Pumped::End => return Ok(RelayEnd::HandlerClosed),
                Pumped::Some => {}
            }
        }
        if !from_front_end.is_empty() {
            let replying = !replies.bytes.is_empty();
            let pumped = pump(front_end, from_front_end, &mut requests, &mut replies)?;
            if replying && replies.bytes.is_empty() {
                unanswered = unanswered.saturating_sub(1);
            }
            match pumped {
                Pumped::End if requests.partial()? => return Err(DeviceError::HalfMessage),
                Pumped::End => return Ok(RelayEnd::FrontEndClosed),
                Pumped::Some if requests.partial()? => owed.has_part(Instant::now()),
                Pumped::Some => {}
            }
        } else if pausing.is_none()
            && let Some(error) = owed.overdue(now)
        {
            // Also if this process stood still itself: nothing is there to be read.
            return Err(error);
        }
    }
}

fn only_if(condition: bool, flags: PollFlags) -> PollFlags {
    if condition { flags } else { PollFlags::empty() }
}

/// Takes back what made an event fd readable.
pub fn forget(event: BorrowedFd<'_>) {
    // It fails when nothing is there, which is what is wanted.
    let _ = rustix::io::read(event, &mut [0; 8]);
}

/// Does the handler answer this request?
fn is_answered(code: u32, flags: u32, transcript: &Transcript) -> bool {
    let wants = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
    let gets = [
        FrontendReq::GET_FEATURES,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::GET_PROTOCOL_FEATURES,
        FrontendReq::GET_QUEUE_NUM,
        FrontendReq::GET_CONFIG,
        FrontendReq::GET_MAX_MEM_SLOTS,
    ];
    wants && transcript.wants_acknowledgements() || gets.iter().any(|get| *get as u32 == code)
}

/// Lets a complete request pass to the handler, or replaces it by its reply. Returns
/// whether a reply is to come.
fn look_at(
    message: &mut RawMessage,
    reply: &mut RawMessage,
    intercept: &mut Intercept,
    transcript: &mut Transcript,
) -> Result<bool, DeviceError> {
    let word = |at: usize| {
        let bytes = message.bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (code, flags) = (word(0).unwrap_or(0), word(4).unwrap_or(0));
    let body = message.bytes.get(HEADER_LEN..).unwrap_or_default();
    let request = FrontEndRequest { code, flags, body };
    transcript
        .note(code, body, &message.fds)
        .map_err(DeviceError::Connection)?;
    match intercept.request(&request, &mut message.fds)? {
        Verdict::Pass => {
            message.pass = true;
            return Ok(is_answered(code, flags, transcript));
        }
        Verdict::Done => {
            *message = RawMessage::default();
            return Ok(false);
        }
        Verdict::Reply { body, fd } => {
            *message = RawMessage::default();
            if code == FrontendReq::GET_INFLIGHT_FD as u32 {
                // Used from now on, even if it is never given back.
                let given = FrontendReq::SET_INFLIGHT_FD as u32;
                transcript
                    .note(given, &body, fd.as_slice())
                    .map_err(DeviceError::Connection)?;
            }
            for word in [code, REPLY_FLAGS, body.len() as u32] {
                reply.bytes.extend(word.to_ne_bytes());
            }
            reply.bytes.extend(body);
            reply.fds.extend(fd);
        }
    }
    Ok(true)
}

/// What to wait for on a socket that `inbound` comes from and `outbound` goes to.
fn interest(inbound: &RawMessage, outbound: &RawMessage) -> Result<PollFlags, DeviceError> {
    let mut flags = PollFlags::empty();
    if !inbound.complete()? {
        flags |= PollFlags::IN;
    }
    if outbound.ready()? {
        flags |= PollFlags::OUT;
    }
    Ok(flags)
}

/// Moves what `ready` allows between a socket and the two messages.
fn pump(
    socket: &UnixStream,
    ready: PollFlags,
    inbound: &mut RawMessage,
    outbound: &mut RawMessage,
) -> Result<Pumped, DeviceError> {
    let gone = ready.intersects(PollFlags::HUP | PollFlags::ERR);
    if outbound.ready()? && ready.contains(PollFlags::OUT) && !gone {
        outbound.send(socket)?;
    }
    if !inbound.complete()? {
        // Also when the other end is gone: what it sent before comes first.
        return inbound.receive(socket);
    }
    Ok(if gone { Pumped::End } else { Pumped::Some })
}

fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<(), DeviceError> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        match poll(fds, limit.as_ref()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(DeviceError::Connection(errno.into())),
        }
    }
}

enum Pumped {
    Some,
    End,
}

/// A message as far as it has arrived, or as far as it has not been sent.
#[derive(Default)]
struct RawMessage {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
    /// It may be sent once it is complete.
    pass: bool,
}

impl RawMessage {
    fn partial(&self) -> Result<bool, DeviceError> {
        Ok(!self.bytes.is_empty() && !self.complete()?)
    }

    /// Bytes of the whole message, as far as that is known.
    fn expected(&self) -> Result<usize, DeviceError> {
        let Some(len) = self
            .bytes
            .get(8..HEADER_LEN)
            .and_then(|len| len.try_into().ok())
            .map(u32::from_ne_bytes)
        else {
            return Ok(HEADER_LEN);
        };
        if len > MAX_BODY {
            return Err(DeviceError::Oversized { len });
        }
        Ok(HEADER_LEN + len as usize)
    }

    fn complete(&self) -> Result<bool, DeviceError> {
        Ok(self.bytes.len() >= HEADER_LEN && self.bytes.len() == self.expected()?)
    }

    fn ready(&self) -> Result<bool, DeviceError> {
        Ok(self.pass && self.complete()?)
    }

    /// Receives what there is of this message, and nothing of the next, so that
    /// file descriptors stay with the message they came with.
    fn receive(&mut self, from: &UnixStream) -> Result<Pumped, DeviceError> {
        let begin = self.bytes.len();
        self.bytes.resize(self.expected()?, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.bytes.get_mut(begin..).unwrap_or_default();
        let received = recvmsg(
            from,
            &mut [IoSliceMut::new(room)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        );
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > MAX_FDS {
            return Err(DeviceError::TooManyFds);
        }
        let (bytes, end) = match received {
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                return Err(DeviceError::TooManyFds);
            }
            Ok(message) => (message.bytes, message.bytes == 0),
            Err(Errno::AGAIN | Errno::INTR) => (0, false),
            Err(Errno::CONNRESET) => (0, true),
            Err(errno) => return Err(DeviceError::Connection(errno.into())),
        };
        self.bytes.truncate(begin + bytes);
        Ok(if end { Pumped::End } else { Pumped::Some })
    }

    /// Sends what `to` takes now. A message that it does not take any more is
    /// forgotten: that the other end is gone shows when reading from it.
    fn send(&mut self, to: &UnixStream) -> Result<(), DeviceError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let rights: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(DeviceError::TooManyFds);
        }
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(to, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(sent) => {
                self.fds.clear();
                self.sent += sent;
                if self.sent >= self.bytes.len() {
                    *self = Self::default();
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => *self = Self::default(),
            Err(errno) => return Err(DeviceError::Connection(errno.into())),
        }
        Ok(())
    }
}
