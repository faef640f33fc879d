//! A front-end that goes on with another protocol handler, of this process or of the
//! next: its rings are stopped as by `GET_VRING_BASE`, so nothing is in flight and
//! their indices are known, and the other handler is told what the front-end
//! has said, with those indices.
//!
//! Called by the server, with the relay at rest between two messages. What goes on is a
//! [`FrontEnd`]; how it gets to another process is not known here.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;

use super::intercept::{FrontEndRequest, Intercept, Verdict};
use super::relay::HEADER_LEN;
use super::transcript::{Message, Told, Transcript};
use crate::device::error::DeviceError;
use crate::device::limits::MAX_FDS;

/// A request's header flags: version 1.
const FLAGS: u32 = 1;

/// A front-end that is not served now, with what it has said.
#[derive(Debug)]
pub struct FrontEnd {
    /// Its connection, between two messages.
    pub stream: UnixStream,
    /// As if it said it again.
    pub said: Vec<Message>,
    /// The cache mode's `writeback` byte as it knows it, if it does.
    pub writeback: Option<bool>,
}

impl From<UnixStream> for FrontEnd {
    /// One that has said nothing yet.
    fn from(stream: UnixStream) -> Self {
        Self {
            stream,
            said: Vec::new(),
            writeback: None,
        }
    }
}

/// Stops every ring and notes where it was. When this returns nothing is in flight.
///
/// # Errors
/// The handler is gone.
pub fn stop_rings(transcript: &mut Transcript, handler: &UnixStream) -> Result<(), DeviceError> {
    for ring in transcript.started() {
        let body = [ring.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        send(handler, FrontendReq::GET_VRING_BASE as u32, &body, &[])?;
        let reply = reply(handler, FrontendReq::GET_VRING_BASE)?;
        let base = reply.get(4..).and_then(|rest| rest.first_chunk::<4>());
        let base = base.ok_or(DeviceError::HandlerGone)?;
        transcript.stopped_at(ring, u32::from_ne_bytes(*base));
    }
    Ok(())
}

/// Tells a new handler everything, and has it look at the rings: the old one may have
/// taken the driver's kicks. Returns when all of it is done.
///
/// # Errors
/// The handler, or who answers in its stead, refuses it.
pub fn tell(
    transcript: &Transcript,
    handler: &UnixStream,
    intercept: &mut Intercept,
) -> Result<(), DeviceError> {
    for Told { code, body, fds } in transcript.messages() {
        let request = FrontEndRequest {
            code,
            flags: FLAGS,
            body: &body,
        };
        let copies = fds.iter().map(|fd| fd.try_clone());
        let mut copies = copies
            .collect::<Result<Vec<OwnedFd>, _>>()
            .map_err(DeviceError::Connection)?;
        if let Verdict::Pass = intercept.request(&request, &mut copies)? {
            send(handler, code, &body, &fds)?;
        }
    }
    send(handler, FrontendReq::GET_FEATURES as u32, &[], &[])?;
    reply(handler, FrontendReq::GET_FEATURES)?;
    for kick in transcript.kicks() {
        // It fails only when the counter is full, and then it is a kick as well.
        let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
    }
    Ok(())
}

fn send(handler: &UnixStream, code: u32, body: &[u8], fds: &[&OwnedFd]) -> Result<(), DeviceError> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    for word in [code, FLAGS, body.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(body);
    let mut rest = &bytes[..];
    let mut rights: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    while !rest.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(DeviceError::TooManyFds);
        }
        match sendmsg(
            handler,
            &[IoSlice::new(rest)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => {
                rights.clear();
                rest = rest.get(sent..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(DeviceError::HandlerGone),
            Err(errno) => return Err(DeviceError::Connection(errno.into())),
        }
    }
    Ok(())
}

/// The payload of the handler's reply. Nothing else is on its way.
fn reply(mut handler: &UnixStream, to: FrontendReq) -> Result<Vec<u8>, DeviceError> {
    let mut header = [0; HEADER_LEN];
    let gone = |_| DeviceError::HandlerGone;
    handler.read_exact(&mut header).map_err(gone)?;
    let [code, _, len] = [0, 4, 8].map(|at| {
        let bytes = header[at..].first_chunk::<4>();
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    });
    if code != to as u32 || len > 64 {
        return Err(DeviceError::HandlerGone);
    }
    let mut body = vec![0; len as usize];
    handler.read_exact(&mut body).map_err(gone)?;
    Ok(body)
}
