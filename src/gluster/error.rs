//! What can go wrong with a glusterd and with a brick.

use std::sync::Arc;
use std::{fmt, io};

use thiserror::Error;

use super::connection::{CallError, ConnectError, Disconnect};
use super::rpc::Rejection;
use super::tls::{SECURE_ACCESS, TlsError};
use super::xdr::XdrError;

/// An error number as a brick or glusterd gave it; they send Linux's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// The lock is held by somebody else, or a fenced file refuses.
    pub const AGAIN: Self = Self(libc::EAGAIN);
    /// This client is not allowed in.
    pub const ACCES: Self = Self(libc::EACCES);
    /// A fenced file refuses.
    pub const BUSY: Self = Self(libc::EBUSY);
    /// No such file.
    pub const NOENT: Self = Self(libc::ENOENT);
    /// The gfid is not (or no longer) on that brick.
    pub const STALE: Self = Self(libc::ESTALE);
    /// A path goes through something that is no directory.
    pub const NOTDIR: Self = Self(libc::ENOTDIR);
    /// No such attribute.
    pub const NODATA: Self = Self(libc::ENODATA);
    /// Refused by a feature that is off, or a bad argument.
    pub const INVAL: Self = Self(libc::EINVAL);
    /// Beyond the end of the file (SEEK).
    pub const NXIO: Self = Self(libc::ENXIO);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

/// A call to a glusterd failed.
#[derive(Debug, Error)]
pub enum GlusterdError {
    /// No connection to be had: it does not run, or the host is down or cut off.
    #[error("glusterd at {server} cannot be reached; is it running?")]
    Unreachable {
        /// Its host and port.
        server: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// The connection was made but the call failed.
    #[error("glusterd at {server} did not answer {operation}")]
    NoAnswer {
        /// Its host and port.
        server: String,
        /// What was asked.
        operation: &'static str,
        /// Why.
        #[source]
        source: CallError,
    },
    /// It closed the connection, over which no TLS was spoken, without an answer.
    #[error(
        "glusterd at {server} closed the connection without an answer. Either it ended just then, or it wants TLS: if {SECURE_ACCESS} is on that host, it must be on this one, too"
    )]
    HungUp {
        /// Its host and port.
        server: String,
    },
    /// It knows no volume of that name.
    #[error("glusterd at {server} knows no volume {volume}")]
    UnknownVolume {
        /// Its host and port.
        server: String,
        /// The volume's name.
        volume: String,
    },
    /// The brick has no port there: its process does not run, the volume is not
    /// started, or the brick is of another host. [`super::Glusterd::volume_info`]
    /// tells whether the volume is started.
    #[error(
        "glusterd at {server} has no running process for brick {brick}; start the volume or the brick"
    )]
    BrickNotRunning {
        /// Its host and port.
        server: String,
        /// The brick's path.
        brick: String,
    },
    /// It refused.
    #[error("glusterd at {server} refused {operation}: {errno}")]
    Refused {
        /// Its host and port.
        server: String,
        /// What was asked.
        operation: &'static str,
        /// Its error number.
        errno: Errno,
    },
    /// Its answer cannot be read.
    #[error("glusterd at {server} gave an unreadable answer to {operation}")]
    BadAnswer {
        /// Its host and port.
        server: String,
        /// What was asked.
        operation: &'static str,
        /// What is wrong with it.
        #[source]
        source: XdrError,
    },
    /// Its answer lacks something.
    #[error("glusterd at {server} left {what} out of its answer")]
    Incomplete {
        /// Its host and port.
        server: String,
        /// What is missing.
        what: String,
    },
}

/// A call to a brick failed.
#[derive(Debug, Error)]
pub enum BrickError {
    /// The brick's own glusterd did not tell its port.
    #[error("the port of brick {brick} could not be learnt")]
    Port {
        /// The brick.
        brick: String,
        /// Why.
        #[source]
        source: GlusterdError,
    },
    /// No connection to the brick's process.
    #[error("brick {brick} cannot be reached at port {port}")]
    Unreachable {
        /// The brick.
        brick: String,
        /// Its port.
        port: u16,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// The brick wants TLS, and there is none.
    #[error("brick {brick} wants TLS")]
    Tls {
        /// The brick.
        brick: String,
        /// Why.
        #[source]
        source: Box<TlsError>,
    },
    /// The handshake was refused.
    #[error("brick {brick} refused this client: {reason} ({errno})")]
    Handshake {
        /// The brick.
        brick: String,
        /// Its error number; [`Errno::AGAIN`] while it starts up.
        errno: Errno,
        /// What it said.
        reason: String,
    },
    /// The connection is gone, and the brick's locks and open files with it.
    /// Whether the operation was run is unknown.
    #[error("the connection to brick {brick} was lost at {operation}")]
    Disconnected {
        /// The brick.
        brick: String,
        /// What was asked.
        operation: &'static str,
        /// Why.
        #[source]
        reason: Arc<Disconnect>,
    },
    /// No answer in time. Whether the operation was run is unknown.
    #[error("brick {brick} did not answer {operation} within {} s", .after.as_secs_f32())]
    Timeout {
        /// The brick.
        brick: String,
        /// What was asked.
        operation: &'static str,
        /// The time it was given.
        after: std::time::Duration,
    },
    /// The brick refused.
    #[error("brick {brick} refused {operation}: {errno}")]
    Refused {
        /// The brick.
        brick: String,
        /// What was asked.
        operation: &'static str,
        /// Its error number.
        errno: Errno,
    },
    /// More was to be sent or asked for than one call may carry
    /// ([`super::io::MAX_IO`] bytes of data). Nothing was sent.
    #[error("{operation} of brick {brick} was asked for too much at once")]
    TooLong {
        /// The brick.
        brick: String,
        /// What was asked.
        operation: &'static str,
    },
    /// A path could not be followed.
    #[error("{path} on brick {brick}: {component:?}: {errno}")]
    Path {
        /// The brick.
        brick: String,
        /// The whole path.
        path: String,
        /// The component that was refused.
        component: String,
        /// [`Errno::NOENT`], [`Errno::NOTDIR`] or another number of the brick.
        errno: Errno,
    },
    /// The answer does not follow the protocol.
    #[error("brick {brick} gave an unreadable answer to {operation}")]
    Protocol {
        /// The brick.
        brick: String,
        /// What was asked.
        operation: &'static str,
        /// What is wrong with it.
        #[source]
        source: ProtocolError,
    },
}

impl BrickError {
    /// The brick's error number, where it refused an operation or a path.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Path { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The brick answers, and has no such file.
    pub fn is_no_file(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::STALE))
    }
}

/// How an answer fails to follow the protocol.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// It cannot be decoded.
    #[error("the answer cannot be decoded")]
    Decode(#[from] XdrError),
    /// The brick's RPC layer rejected the call.
    #[error("the call was rejected")]
    Rejected(#[source] Rejection),
    /// Something that must be in the answer is not.
    #[error("the answer lacks {0}")]
    Missing(String),
    /// More was read than was asked for.
    #[error("{size} bytes were read, {length} asked for")]
    LongRead {
        /// Bytes read.
        size: u32,
        /// Bytes asked for.
        length: u32,
    },
    /// Less was written than was sent, and no error was told.
    #[error("only {written} of {length} bytes were written")]
    ShortWrite {
        /// Bytes written.
        written: u32,
        /// Bytes sent.
        length: u32,
    },
    /// A pending counter has the wrong length.
    #[error("the answer has a bad counter")]
    Pending(#[from] super::pending::BadPending),
}
