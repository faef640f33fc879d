//! Where front-ends come from: a listening socket's path, or one connected socket
//! that the parent process passed on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::unix_socket::{self, ACCEPT_PAUSE, Acceptor};

use super::failure::Failure;
use super::shutdown::Stop;

/// Where front-ends come from.
pub enum Listener {
    /// One after the other; the socket's file goes when this is dropped.
    Path {
        /// The listening socket.
        listener: UnixListener,
        /// Its file.
        path: PathBuf,
        /// Takes them.
        acceptor: Acceptor,
    },
    /// The one connection, until it was handed out.
    Fd(Option<UnixStream>),
}

/// Where front-ends are going to come from, before the image is open.
pub enum FrontEndSource {
    /// From there already.
    Ready(Listener),
    /// Nobody listens at this path yet.
    At(PathBuf),
}

impl FrontEndSource {
    /// Listens, if nobody does yet.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn listen(self) -> Result<Listener, Failure> {
        match self {
            Self::Ready(listener) => Ok(listener),
            Self::At(path) => Listener::bind(&path),
        }
    }
}

/// The answer of [`Listener::next`].
pub enum Next {
    /// A front-end is there.
    FrontEnd(UnixStream),
    /// No more will come.
    End,
    /// Somebody wishes to do something else in between.
    Interrupted,
}

/// Refuses a path where no socket can be made: a live process listens there, it is no
/// socket, or its folder will not take one. A dead process's socket is not in use.
///
/// # Errors
/// [`Failure::SocketInUse`], [`Failure::Socket`].
pub fn check_path(path: &Path) -> Result<(), Failure> {
    unix_socket::check(path).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> Failure {
    let what = path.display().to_string();
    match source.kind() {
        io::ErrorKind::AddrInUse => Failure::SocketInUse { path: what },
        _ => Failure::Socket { what, source },
    }
}

impl Listener {
    /// Listens at a path.
    ///
    /// # Errors
    /// As [`check_path`], or as the system refuses.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        let listener = unix_socket::bind(path, None).map_err(|source| failed(path, source))?;
        Ok(Self::at(path, listener))
    }

    /// Goes on with a socket that listens at a path.
    pub fn at(path: &Path, listener: UnixListener) -> Self {
        Self::Path {
            listener,
            path: path.to_owned(),
            acceptor: Acceptor::default(),
        }
    }

    /// Takes over the connected socket with this number.
    ///
    /// # Errors
    /// [`Failure::Socket`] if there is none.
    pub fn adopt(fd: RawFd) -> Result<Self, Failure> {
        let failed = |source| Failure::Socket {
            what: format!("--fd {fd}"),
            source,
        };
        let owned = take_socket(fd).map_err(failed)?;
        Ok(Self::Fd(Some(UnixStream::from(owned))))
    }

    /// The listening socket, if there is one.
    pub fn socket(&self) -> Option<&UnixListener> {
        match self {
            Self::Path { listener, .. } => Some(listener),
            Self::Fd(_) => None,
        }
    }

    /// Waits for the next front-end, for the end, or until `interrupt` is readable. One that
    /// cannot be taken is tried again until it can.
    ///
    /// # Errors
    /// [`Failure::Socket`] when the system does not let it wait.
    pub fn next(&mut self, stop: &Stop, interrupt: BorrowedFd<'_>) -> Result<Next, Failure> {
        let (listener, path, acceptor) = match self {
            Self::Fd(stream) => return Ok(stream.take().map_or(Next::End, Next::FrontEnd)),
            Self::Path {
                listener,
                path,
                acceptor,
            } => (listener, path, acceptor),
        };
        let mut pausing = false;
        loop {
            let comes = match pausing {
                true => PollFlags::empty(),
                false => PollFlags::IN,
            };
            let mut fds = [
                PollFd::from_borrowed_fd(stop.readable(), PollFlags::IN),
                PollFd::from_borrowed_fd(interrupt, PollFlags::IN),
                PollFd::from_borrowed_fd(listener.as_fd(), comes),
            ];
            let limit = pausing.then_some(ACCEPT_PAUSE);
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            match poll(&mut fds, limit.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(failed(path, errno.into())),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Next::End),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Next::Interrupted),
                Ok(_) if fds[2].revents().is_empty() => pausing = false,
                Ok(_) => match acceptor.next(listener, &path.display().to_string()) {
                    Some(stream) => return Ok(Next::FrontEnd(stream)),
                    None => pausing = true,
                },
            }
        }
    }

    /// The name for people.
    pub fn name(&self) -> String {
        match self {
            Self::Path { path, .. } => path.display().to_string(),
            Self::Fd(_) => "passed file descriptor".to_owned(),
        }
    }
}

/// Takes over the socket with this number, which was left to this process.
///
/// # Errors
/// There is none.
pub fn take_socket(fd: RawFd) -> io::Result<OwnedFd> {
    let target = std::fs::read_link(format!("/proc/self/fd/{fd}"))?;
    if fd <= 2 || !target.to_string_lossy().starts_with("socket:") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this file descriptor is no socket",
        ));
    }
    // SAFETY: the descriptor is open (just looked up) and was given to this
    // process for this purpose, so nothing else in it owns it; it is taken once,
    // before any other thread opens files.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Path { path, .. } = self {
            // It may be gone already, with its directory.
            let _ = std::fs::remove_file(path);
        }
    }
}
