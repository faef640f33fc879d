//! The control socket: one line asked, one line answered, both JSON.
//!
//! A daemon listens in the run directory; commands find it there. The socket is
//! open to root only. Requests are bounded in length and time, so that a stuck
//! client holds up nobody for long.

mod answering;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::image::heal::{HealReport, Hint, Job, LinkError, Unmarked, Wait};
use crate::image::session::resize::{NewSize, Resized};

use super::line;
use super::serving_status::OwnershipStatus;
use super::status::Status;
use super::unix_socket::{self, Found};
use answering::LINE_TIMEOUT;

/// Where daemons put their control sockets.
pub const RUN_DIR: &str = "/run/bypass-blk";

/// The longest time that an answer may take, of a process that is not stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for what changes marks or sizes: a session may be waiting for bricks.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(90);
/// For how long [`Request::Force`] holds: whoever asked for it may have died.
pub const FORCED: Duration = Duration::from_secs(3);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Request {
    /// The status document.
    Status,
    /// What there is to heal.
    Job,
    /// A healer tells how it goes.
    Report {
        /// The session that it heals for.
        session: Uuid,
        /// How.
        report: HealReport,
        /// How long the answer may be kept back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait: Option<Wait>,
    },
    /// Remove the marks against peers that miss nothing.
    Unmark {
        /// The session that the healer heals for.
        session: Uuid,
    },
    /// These ranges of a copy differ from the local one.
    Repair {
        /// The session that was compared with.
        session: Uuid,
        /// Child index of the copy's brick.
        child: usize,
        /// Byte ranges, `[start, end)`.
        ranges: Vec<(u64, u64)>,
    },
    /// Give the image away when the front-end's rings stop, or not after all. The answer is
    /// whose it is then: a wish that comes too late changes nothing.
    HandOver {
        /// Give it away.
        armed: bool,
        /// Child index of the copy that must be there and equal before: the target's.
        #[serde(default)]
        to: Option<usize>,
        /// No guest of this host uses it, and none is about to come back to it: give it away
        /// at once.
        #[serde(default)]
        no_guest: bool,
    },
    /// Somebody waits for the copies to be equal: for [`FORCED`] heal as fast as can be,
    /// whatever it costs the guest. Said again as long as it is waited for.
    Force,
    /// Make all copies of the image larger.
    Resize {
        /// How large.
        size: NewSize,
        /// In spite of copies that are away.
        force: bool,
        /// By more than the local disk has free.
        #[serde(default)]
        overcommit: bool,
    },
    /// To a healer: from now on copy at most so many bytes per second; 0 is no limit.
    Bandwidth {
        /// The limit.
        bytes_per_second: u64,
        /// Of all images of the host together, instead of each one.
        #[serde(default)]
        host: bool,
    },
    /// To a healer: which images without a session are healed, and which wait.
    Queue,
    /// To a healer that opened the image itself: somebody wants to serve it.
    Yield,
}

impl Request {
    fn patience(&self) -> Duration {
        match self {
            Self::Unmark { .. }
            | Self::Repair { .. }
            | Self::Resize { .. }
            | Self::HandOver { .. } => CHANGE_TIMEOUT,
            Self::Report {
                wait: Some(wait), ..
            } => ANSWER_TIMEOUT.saturating_add(wait.time),
            Self::Status
            | Self::Job
            | Self::Report { .. }
            | Self::Force
            | Self::Bandwidth { .. }
            | Self::Queue
            | Self::Yield => ANSWER_TIMEOUT,
        }
    }
}

/// The images of a host whose sessions have ended, as its healer has them; each is
/// `volume/image`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealQueue {
    /// They are healed now.
    pub healing: Vec<String>,
    /// They wait for their turn, in this order.
    pub queued: Vec<String>,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Job`].
    Job(Job),
    /// To [`Request::Report`].
    Hint(Hint),
    /// To [`Request::Unmark`].
    Unmarked(Unmarked),
    /// To [`Request::Queue`].
    Queue(HealQueue),
    /// To [`Request::Resize`].
    Resized {
        /// What came of it.
        resized: Resized,
        /// The front-end was told at once.
        told: bool,
    },
    /// To [`Request::HandOver`].
    #[serde(rename = "custody")]
    Ownership {
        /// Whose the image is now.
        #[serde(rename = "custody")]
        ownership: OwnershipStatus,
    },
    /// It is done.
    Done,
    /// The session is over.
    Ended {
        /// Why.
        why: String,
    },
    /// The request was not understood, or could not be fulfilled.
    Refused {
        /// Why.
        why: String,
    },
}

/// The control socket could not be used.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket or its directory cannot be made.
    #[error("cannot make the control socket {}", .path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A live process listens there.
    #[error(
        "the control socket {} is in use by a live process: of these there is one at a time. Stop that one, or give another \
         --run-dir", .0.display()
    )]
    InUse(PathBuf),
    /// The run directory cannot be read.
    #[error("cannot read the run directory {}", .path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A daemon did not answer.
    #[error("the daemon at {} does not answer", .path.display())]
    Ask {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A daemon did not do it.
    #[error("the daemon at {} refused: {why}", .path.display())]
    Refused {
        /// Its control socket.
        path: PathBuf,
        /// Its words.
        why: String,
    },
    /// The daemon lives, but its session is over.
    #[error("the session of the daemon at {} is over: {why}", .path.display())]
    Ended {
        /// Its control socket.
        path: PathBuf,
        /// Its words.
        why: String,
    },
}

impl ControlError {
    /// Something was answered that is no answer to what was asked: another version
    /// of this program, perhaps.
    pub fn unexpected(path: &Path, answer: &Answer) -> Self {
        Self::Refused {
            path: path.to_owned(),
            why: format!("an answer that was not asked for: {answer:?}"),
        }
    }
}

impl Answer {
    /// What the session said, or that it could not.
    pub fn or_failed(answered: Result<Self, LinkError>) -> Self {
        answered.unwrap_or_else(|error| match error {
            LinkError::Ended(why) => Self::Ended { why },
            LinkError::Failed(why) => Self::Refused { why },
        })
    }
}

/// A bound control socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Makes this process's socket for the image with this gfid. Those that dead
    /// daemons left are swept away.
    ///
    /// # Errors
    /// [`ControlError::Bind`].
    pub fn bind(run_dir: &Path, volume: &str, gfid: uuid::Uuid) -> Result<Self, ControlError> {
        for dead in list(run_dir)?.iter().filter(|path| is_dead(path)) {
            // Another daemon may sweep at the same time.
            let _ = std::fs::remove_file(dead);
        }
        Self::bind_at(&own_path(run_dir, volume, gfid))
    }

    /// Makes the socket at `path`, in place of one that nobody listens on.
    ///
    /// # Errors
    /// [`ControlError::Bind`], [`ControlError::InUse`] when somebody does listen there.
    pub fn bind_at(path: &Path) -> Result<Self, ControlError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ControlError::InUse(path.to_owned()),
            _ => ControlError::Bind {
                path: path.to_owned(),
                source,
            },
        };
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let listener = unix_socket::bind(path, Some(0o600)).map_err(failed)?;
        let path = path.to_owned();
        Ok(Self { path, listener })
    }

    /// Can this process make its socket for the image with this gfid? Makes the directory.
    ///
    /// # Errors
    /// [`ControlError::Bind`].
    pub fn check(run_dir: &Path, volume: &str, gfid: uuid::Uuid) -> Result<(), ControlError> {
        let path = own_path(run_dir, volume, gfid);
        std::fs::create_dir_all(run_dir)
            .and_then(|()| unix_socket::check(&path))
            .map_err(|source| ControlError::Bind { path, source })
    }

    /// Goes on with the socket that this process had before it was upgraded: whoever asked
    /// meanwhile is answered.
    pub fn adopt(run_dir: &Path, volume: &str, gfid: uuid::Uuid, listener: UnixListener) -> Self {
        let path = own_path(run_dir, volume, gfid);
        Self { path, listener }
    }

    /// The socket, for that.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Answers requests on a thread of its own until the process ends.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn answer(
        &self,
        answer: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> io::Result<()> {
        answering::start(self.listener.try_clone()?, answer)
    }
}

fn own_path(run_dir: &Path, volume: &str, gfid: uuid::Uuid) -> PathBuf {
    let pid = std::process::id();
    run_dir.join(format!("{volume}-{gfid}-{pid}.control"))
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may be gone already, with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The control sockets in the run directory. A directory that is missing has none.
///
/// # Errors
/// [`ControlError::List`].
pub fn list(run_dir: &Path) -> Result<Vec<PathBuf>, ControlError> {
    let list_error = |source| ControlError::List {
        path: run_dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(list_error)?,
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry.map_err(list_error)?;
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if is_socket && entry.path().extension().is_some_and(|end| end == "control") {
            sockets.push(entry.path());
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// Is this the control socket of a session on the image with this gfid?
pub fn is_of(path: &Path, gfid: uuid::Uuid) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    name.is_some_and(|name| name.contains(&gfid.to_string()))
}

/// The daemon is gone, whether or not it took its socket away.
pub fn is_gone(path: &Path) -> bool {
    let found = unix_socket::look_at(path);
    matches!(found, Ok(Found::Dead | Found::Nothing))
}

/// Nobody listens on this socket any more.
pub fn is_dead(path: &Path) -> bool {
    matches!(unix_socket::look_at(path), Ok(Found::Dead))
}

/// Asks the daemon behind a control socket.
///
/// # Errors
/// [`ControlError::Ask`] when nobody answers, [`ControlError::Refused`],
/// [`ControlError::Ended`].
pub fn ask(path: &Path, request: &Request) -> Result<Answer, ControlError> {
    ask_over(path, request, |_| Ok(()))
}

/// As [`ask`]; `connected` is given the connection first, and may forbid to go on.
///
/// # Errors
/// As [`ask`].
pub fn ask_over(
    path: &Path,
    request: &Request,
    connected: impl FnOnce(&UnixStream) -> io::Result<()>,
) -> Result<Answer, ControlError> {
    let ask = || -> io::Result<Answer> {
        let stream = UnixStream::connect(path)?;
        connected(&stream)?;
        line::write(&stream, &serde_json::to_string(request)?, LINE_TIMEOUT)?;
        let answer = line::read(&stream, request.patience())?;
        Ok(serde_json::from_str(&answer)?)
    };
    let path = path.to_owned();
    match ask() {
        Ok(Answer::Refused { why }) => Err(ControlError::Refused { path, why }),
        Ok(Answer::Ended { why }) => Err(ControlError::Ended { path, why }),
        Ok(answer) => Ok(answer),
        Err(source) => Err(ControlError::Ask { path, source }),
    }
}

/// Asks the daemon behind a control socket for its status.
///
/// # Errors
/// As [`ask`].
pub fn status(path: &Path) -> Result<Status, ControlError> {
    match ask(path, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => Err(ControlError::unexpected(path, &other)),
    }
}

/// The control socket in `run_dir` of the process that has this image, its status being
/// as `wanted`. One that does not answer has none.
///
/// # Errors
/// [`ControlError::List`].
pub fn find(
    run_dir: &Path,
    volume: &str,
    image: &str,
    wanted: impl Fn(&Status) -> bool,
) -> Result<Option<PathBuf>, ControlError> {
    let is_it = |path: &PathBuf| {
        status(path)
            .is_ok_and(|found| found.volume == volume && found.image == image && wanted(&found))
    };
    Ok(list(run_dir)?.into_iter().find(is_it))
}
