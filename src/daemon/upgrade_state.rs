//! What a daemon leaves to the process that takes its place at an upgrade: a document,
//! and the file descriptors that it names by number.
//!
//! Both go through one socket, whose number is all that the next process is told
//! (`serve --resume`). They may be of different versions of this program: a document of
//! none of the [`VERSIONS`], or one that is damaged, is not used in part but as a
//! whole not at all. What is closed with it is then found as after a crash.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::device::{Config, FrontEnd, Message};
use crate::gluster::KeptConnection;
use crate::image::layout::FileIndex;
use crate::image::locate::Located;
use crate::image::replica::brick_port::{Fence, KeptBrick};
use crate::image::replica::holder::Holder;
use crate::image::surroundings::Prompt;

use super::listener::take_socket;
use super::ownership_worker::KeptBricks;
use super::served_image::Resting;
use super::session_setup::Place;
use super::target::GlusterdAddress;

/// Of documents that are understood. There is another with every change of what they say or
/// mean.
pub const VERSIONS: [u32; 2] = [WHOLE, SHARDS];
/// Of an image that is one file: also programs that know nothing of shards go on with it.
const WHOLE: u32 = 1;
/// Of one in shards: it says which of them are guarded.
const SHARDS: u32 = 2;

/// File descriptors sent at once; the kernel takes 253.
const AT_ONCE: usize = 128;
/// The most of them: 64 rings with three each, memory, bricks, sockets.
const MAX_FDS: usize = 1024;
/// The longest document in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// What is left behind.
pub struct Leaving<'a> {
    /// The session.
    pub resting: &'a Resting,
    /// The image's file, claimed.
    pub local: &'a File,
    /// Where front-ends connect, if at a path.
    pub listener: Option<&'a UnixListener>,
    /// The control socket.
    pub control: &'a UnixListener,
    /// The front-end, if one is connected.
    pub front_end: Option<&'a FrontEnd>,
    /// The device's shape: what the front-end has said is about that one.
    pub config: Config,
    /// Nanoseconds of the monotonic clock at which the front-end was stopped.
    pub since: u64,
}

/// What was found.
pub struct UpgradeState {
    /// Image, brick and session.
    pub place: Place,
    /// The session's connections.
    pub bricks: KeptBricks,
    /// See [`Leaving`].
    pub local: File,
    /// See [`Leaving`].
    pub listener: Option<UnixListener>,
    /// See [`Leaving`].
    pub control: UnixListener,
    /// See [`Leaving`].
    pub front_end: Option<FrontEnd>,
    /// See [`Leaving`].
    pub config: Config,
    /// See [`Leaving`].
    pub since: u64,
}

/// Why it cannot be used.
#[derive(Debug, Error)]
pub enum UpgradeStateError {
    /// The socket or what came through it.
    #[error("what the process before left cannot be read")]
    Read(#[source] io::Error),
    /// No document.
    #[error("the document of the process before is damaged")]
    Document(#[source] serde_json::Error),
    /// Of an older or newer program.
    #[error(
        "the process before left a document of version {found}; this program knows {VERSIONS:?}"
    )]
    Version {
        /// As found.
        found: u32,
    },
    /// It names what did not come with it, or nobody.
    #[error("the document of the process before names {0} that is not there")]
    Missing(&'static str),
}

/// Read first, and alone.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Numbers name file descriptors in the order in which they were sent.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    located: Located,
    brick: usize,
    /// As in the owner of its locks.
    holder: Vec<u8>,
    server: (String, u16),
    fence: Fence,
    bricks: Vec<Option<BrickWords>>,
    local: usize,
    listener: Option<usize>,
    control: usize,
    front_end: Option<FrontEndWords>,
    /// Number, and size.
    queues: (u16, u16),
    since: u64,
}

#[derive(Serialize, Deserialize)]
struct BrickWords {
    socket: usize,
    last_xid: u32,
    open: Option<i64>,
    published: Option<Fence>,
    /// As [`KeptBrick::guarded`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    guarded: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct FrontEndWords {
    stream: usize,
    writeback: Option<bool>,
    /// Code, payload, file descriptors.
    said: Vec<(u32, Vec<u8>, Vec<usize>)>,
}

/// The version of the document about an image: who is to go on with it must understand that.
pub fn version_of(located: &Located) -> u32 {
    match located.pieces {
        None => WHOLE,
        Some(_) => SHARDS,
    }
}

/// A socket that holds all of it, and that an exec leaves open.
///
/// # Errors
/// The system's.
pub fn leave(leaving: &Leaving<'_>) -> io::Result<OwnedFd> {
    let mut fds = Vec::new();
    let document = document(leaving, &mut fds);
    send(&serde_json::to_vec(&document)?, fds)
}

fn send(text: &[u8], fds: Vec<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("bypass-blk-kept", MemfdFlags::CLOEXEC)?);
    file.write_all(text)?;
    let fds: Vec<_> = std::iter::once(file.as_fd()).chain(fds).collect();
    let (near, far) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for chunk in fds.chunks(AT_ONCE) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(chunk)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&near, &[IoSlice::new(&[0])], &mut control, flags)?;
    }
    fcntl_setfd(&far, FdFlags::empty())?;
    // What was sent stays in `far`; its end shows that there is no more.
    Ok(far)
}

/// Takes what [`leave`] put into the socket with this number. Whatever is not used is
/// closed.
///
/// # Errors
/// [`UpgradeStateError`].
pub fn take(number: RawFd) -> Result<UpgradeState, UpgradeStateError> {
    let socket = take_socket(number).map_err(UpgradeStateError::Read)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)
        .map_err(|errno| UpgradeStateError::Read(errno.into()))?;
    let mut fds = receive(&socket)
        .map_err(UpgradeStateError::Read)?
        .into_iter();
    let first = fds.next().ok_or(UpgradeStateError::Missing("a document"))?;
    let mut fds: Vec<Option<OwnedFd>> = fds.map(Some).collect();
    let text = read_document(first.into()).map_err(UpgradeStateError::Read)?;
    read(&text, &mut fds)
}

/// What a document says, with the file descriptors that it names by number.
///
/// # Errors
/// [`UpgradeStateError`].
pub fn read(text: &[u8], fds: &mut [Option<OwnedFd>]) -> Result<UpgradeState, UpgradeStateError> {
    let Versioned { version } =
        serde_json::from_slice(text).map_err(UpgradeStateError::Document)?;
    if !VERSIONS.contains(&version) {
        return Err(UpgradeStateError::Version { found: version });
    }
    let document = serde_json::from_slice(text).map_err(UpgradeStateError::Document)?;
    kept(document, fds)
}

fn document<'a>(leaving: &Leaving<'a>, fds: &mut Vec<BorrowedFd<'a>>) -> Document {
    let mut add = |fd: BorrowedFd<'a>| {
        fds.push(fd);
        fds.len() - 1
    };
    let Resting { session, place, .. } = leaving.resting;
    let bricks = session.bricks.iter().map(|brick| {
        brick.as_ref().map(|brick| BrickWords {
            socket: add(brick.connection.socket.as_fd()),
            last_xid: brick.connection.last_xid,
            open: brick.open,
            published: brick.published,
            guarded: brick.guarded.iter().map(|file| file.0).collect(),
        })
    });
    Document {
        version: version_of(&place.located),
        located: place.located.clone(),
        brick: place.local,
        holder: place.me.encode(),
        server: (place.server.host.clone(), place.server.port),
        fence: session.fence,
        bricks: bricks.collect(),
        local: add(leaving.local.as_fd()),
        listener: leaving.listener.map(|listener| add(listener.as_fd())),
        control: add(leaving.control.as_fd()),
        front_end: leaving.front_end.map(|front_end| FrontEndWords {
            stream: add(front_end.stream.as_fd()),
            writeback: front_end.writeback,
            said: (front_end.said.iter())
                .map(|message| {
                    let fds = message.fds.iter().map(|fd| add(fd.as_fd())).collect();
                    (message.code, message.body.clone(), fds)
                })
                .collect(),
        }),
        queues: (leaving.config.num_queues, leaving.config.queue_size),
        since: leaving.since,
    }
}

fn kept(
    document: Document,
    fds: &mut [Option<OwnedFd>],
) -> Result<UpgradeState, UpgradeStateError> {
    let mut fd = |number: usize| {
        let fd = fds.get_mut(number).and_then(Option::take);
        fd.ok_or(UpgradeStateError::Missing("a file descriptor"))
    };
    let mut bricks = Vec::new();
    for brick in document.bricks {
        bricks.push(match brick {
            None => None,
            Some(brick) => Some(KeptBrick {
                connection: KeptConnection {
                    socket: TcpStream::from(fd(brick.socket)?),
                    last_xid: brick.last_xid,
                },
                open: brick.open,
                published: brick.published,
                guarded: brick.guarded.into_iter().map(FileIndex).collect(),
            }),
        });
    }
    let front_end = match document.front_end {
        None => None,
        Some(words) => {
            let mut said = Vec::new();
            for (code, body, numbers) in words.said {
                let fds = numbers.into_iter().map(&mut fd);
                let fds = fds.collect::<Result<_, _>>()?;
                said.push(Message { code, body, fds });
            }
            Some(FrontEnd {
                stream: UnixStream::from(fd(words.stream)?),
                said,
                writeback: words.writeback,
            })
        }
    };
    if document.brick >= document.located.set.bricks.len()
        || bricks.len() != document.located.set.bricks.len()
    {
        return Err(UpgradeStateError::Missing("a brick"));
    }
    let (host, port) = document.server;
    Ok(UpgradeState {
        place: Place {
            located: document.located,
            local: document.brick,
            me: Holder::decode(&document.holder).ok_or(UpgradeStateError::Missing("a session"))?,
            server: GlusterdAddress { host, port },
            prompt: Prompt::default(),
        },
        bricks: KeptBricks {
            bricks,
            fence: document.fence,
        },
        local: File::from(fd(document.local)?),
        listener: (document.listener.map(&mut fd).transpose()?).map(UnixListener::from),
        control: UnixListener::from(fd(document.control)?),
        front_end,
        config: Config {
            num_queues: document.queues.0,
            queue_size: document.queues.1,
        },
        since: document.since,
    })
}

/// All file descriptors, until the end of the stream.
fn receive(socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            flags,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if received.bytes == 0 || fds.len() > MAX_FDS {
            return Ok(fds);
        }
    }
}

fn read_document(mut file: File) -> io::Result<Vec<u8>> {
    use std::io::Seek;
    file.rewind()?;
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
