//! Where front-ends come from: a listening socket's path, or one connected socket
//! that the parent process passed on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};

use super::Failure;
use super::stop::Stop;

/// Where front-ends come from.
pub enum Listener {
    /// One after the other; the socket's file goes when this is dropped.
    Path {
        /// The listening socket.
        listener: UnixListener,
        /// Its file.
        path: PathBuf,
    },
    /// The one connection, until it was handed out.
    Fd(Option<UnixStream>),
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

/// Refuses a path that a live process listens on, or that is no socket. A dead
/// process's socket is not in use.
///
/// # Errors
/// [`Failure::SocketInUse`], [`Failure::Socket`].
pub fn check_path(path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Socket {
        what: path.display().to_string(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed(source)),
        Ok(found) if !found.file_type().is_socket() => Err(failed(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is not a socket is there",
        ))),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(Failure::SocketInUse {
            path: path.display().to_string(),
        }),
        Ok(_) => Ok(()),
    }
}

impl Listener {
    /// Listens at a path.
    ///
    /// # Errors
    /// As [`check_path`], or as the system refuses.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        check_path(path)?;
        let failed = |source| Failure::Socket {
            what: path.display().to_string(),
            source,
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        Ok(Self::Path {
            listener,
            path: path.to_owned(),
        })
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

    /// Waits for the next front-end, for the end, or until `interrupt` is readable.
    ///
    /// # Errors
    /// [`Failure::Socket`].
    pub fn next(&mut self, stop: &Stop, interrupt: BorrowedFd<'_>) -> Result<Next, Failure> {
        match self {
            Self::Fd(stream) => Ok(stream.take().map_or(Next::End, Next::FrontEnd)),
            Self::Path { listener, path } => {
                let failed = |source| Failure::Socket {
                    what: path.display().to_string(),
                    source,
                };
                let mut fds = [
                    PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(stop.readable(), PollFlags::IN),
                    PollFd::from_borrowed_fd(interrupt, PollFlags::IN),
                ];
                loop {
                    match poll(&mut fds, None) {
                        Err(rustix::io::Errno::INTR) => continue,
                        Err(errno) => return Err(failed(errno.into())),
                        Ok(_) if !fds[1].revents().is_empty() => return Ok(Next::End),
                        Ok(_) if !fds[2].revents().is_empty() => return Ok(Next::Interrupted),
                        Ok(_) => return Ok(Next::FrontEnd(listener.accept().map_err(failed)?.0)),
                    }
                }
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
