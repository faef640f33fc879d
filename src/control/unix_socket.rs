//! Unix sockets that have a path: who is there, may one be made there, making it, and
//! taking connections from it.
//!
//! Used for the front-ends' socket, the control sockets and that of the metrics. It says
//! nothing on them and reads nothing from them.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, listen, socket_with,
};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;
/// The pause after a connection could not be taken: there are no file descriptors left,
/// mostly, and the connection waits.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A socket that nobody has any more.
    Dead,
    /// A live process's socket.
    Live,
    /// Something else.
    NoSocket,
}

/// Looks without connecting: a process that listens there notices nothing.
///
/// # Errors
/// The system's, when it cannot be told.
pub fn look_at(path: &Path) -> io::Result<Found> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Ok(Found::NoSocket),
        Ok(_) => is_owned(path),
    }
}

/// A socket of another type cannot connect to one that somebody has, and is told so
/// (`unix_find_bsd` in Linux: ECONNREFUSED without an owner, EPROTOTYPE with one).
fn is_owned(path: &Path) -> io::Result<Found> {
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let probe = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(Found::Live),
        Err(Errno::CONNREFUSED) => Ok(Found::Dead),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// Could a socket be made at a path, as far as can be seen without making it?
///
/// # Errors
/// What is in the way: the path's length, its folder, or what is there.
pub fn check(path: &Path) -> io::Result<()> {
    SocketAddrUnix::new(path)?;
    check_folder(path)?;
    match look_at(path)? {
        Found::Nothing | Found::Dead => Ok(()),
        Found::Live => Err(io::ErrorKind::AddrInUse.into()),
        Found::NoSocket => Err(no_socket()),
    }
}

/// May a file be made in the folder of `path`?
///
/// # Errors
/// Why not.
pub fn check_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let enter_and_write = Access::WRITE_OK | Access::EXEC_OK;
    Ok(access(folder.unwrap_or(Path::new(".")), enter_and_write)?)
}

/// Listens at a path, in place of a socket that nobody has any more and of nothing else.
/// With `mode` nobody else can connect at any moment.
///
/// # Errors
/// `AddrInUse` for a live process's socket, and the system's.
pub fn bind(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            match look_at(path)? {
                Found::Dead => std::fs::remove_file(path)?,
                Found::Nothing => {}
                Found::Live => return Err(io::ErrorKind::AddrInUse.into()),
                Found::NoSocket => return Err(no_socket()),
            }
            rustix::net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    // Nobody can connect before it listens.
    let ready = mode.map_or(Ok(()), |mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    });
    ready
        .and_then(|()| Ok(listen(&socket, BACKLOG)?))
        .inspect_err(|_| {
            // It may be gone already, with its directory.
            let _ = std::fs::remove_file(path);
        })?;
    Ok(UnixListener::from(socket))
}

fn no_socket() -> io::Error {
    let text = "a file that is not a socket is there";
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// Takes connections. What stands in the way is said once, and that it is over.
#[derive(Debug, Default)]
pub struct Acceptor {
    failing: bool,
}

impl Acceptor {
    /// The next one; `None`: not now, try again after [`ACCEPT_PAUSE`]. `what` names the
    /// socket for people.
    pub fn next(&mut self, listener: &UnixListener, what: &str) -> Option<UnixStream> {
        self.note(listener.accept().map(|(stream, _)| stream), what)
    }

    /// What came of taking one.
    pub fn note<T>(&mut self, taken: io::Result<T>, what: &str) -> Option<T> {
        match taken {
            Ok(taken) => {
                if std::mem::take(&mut self.failing) {
                    log::info!("{what}: connections are taken again");
                }
                Some(taken)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    log::warn!("{what}: no connection can be taken, trying again: {error}");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_is_seen_and_notices_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert_eq!(look_at(&path).unwrap(), Found::Nothing);
        let listener = bind(&path, Some(0o600)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(look_at(&path).unwrap(), Found::Live);
        assert_eq!(check(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(
            bind(&path, None).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(look_at(&path).unwrap(), Found::Dead);
        check(&path).unwrap();
        let again = bind(&path, None).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        again.accept().unwrap();
    }

    #[test]
    fn a_path_where_no_socket_can_be_made_is_refused_before_it_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        check(&at("s")).unwrap();
        let missing = check(&at("nope/s")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(check(&at(&"long".repeat(30))).is_err());
        std::fs::write(at("file"), "data").unwrap();
        assert!(check(&at("file/s")).is_err());
        assert!(check(&at("file")).is_err() && bind(&at("file"), None).is_err());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"data");
        assert!(std::fs::read_dir(folder.path()).unwrap().count() == 1);
    }

    #[test]
    fn without_file_descriptors_a_live_socket_is_not_taken_for_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = bind(&path, None).unwrap();
        let error = io::Error::from(Errno::MFILE);
        let mut acceptor = Acceptor::default();
        assert!(acceptor.note::<()>(Err(error), "socket").is_none());
        assert!(acceptor.failing);
        assert!(acceptor.note(Ok(()), "socket").is_some());
        assert!(!acceptor.failing);
    }
}
