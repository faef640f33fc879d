//! `serve` on SIGUSR1: the process is replaced by one of the program as it is on the disk
//! now, and the front-end does not notice.
//!
//! The new program is tried first, while the guest goes on. Then the front-end is
//! paused, the session rests, and `exec` gives their sockets to the new program
//! ([`super::upgrade_state`]); the process id stays. Until there everything can be taken back, and
//! is when something fails. What fails afterwards ends as a crash does.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;
use thiserror::Error;
use vmm_sys_util::signal::{block_signal, unblock_signal};

use crate::device::PauseHandle;
use crate::image::error_chain::chain;
use crate::image::locate::Located;
use crate::image::session::ownership::Ownership;
use crate::image::session::state_machine::Phase;

use super::failure::Failure;
use super::served_image::ServedImage;
use super::shutdown;
use super::upgrade_state::{self, Leaving};

/// How long the new program may take to say that it understands what it will find.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether it did.
const CHECK_PAUSE: Duration = Duration::from_millis(10);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 4096;

/// The value of `serve --resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Only say what is understood.
    Check,
    /// Go on with what is in the socket with this number.
    From(RawFd),
}

impl std::str::FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "check" => Ok(Self::Check),
            number => number
                .parse()
                .map(Self::From)
                .map_err(|_| "expected a number".to_owned()),
        }
    }
}

/// What a program says that understands documents of this version.
pub fn understood(version: u32) -> String {
    format!("bypass-blk resume {version}")
}

/// Why there was no upgrade. The daemon goes on.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// The new program cannot be started.
    #[error("{} cannot be run", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It starts, but will not do.
    #[error("{} does not take this daemon's place: {why}", .program.display())]
    Unfit {
        /// Which.
        program: PathBuf,
        /// What it said.
        why: String,
    },
    /// It is not the moment.
    #[error("not now: {0}")]
    NotNow(String),
    /// What is to be kept could not be put together.
    #[error("what the next process needs cannot be left to it")]
    Leave(#[source] io::Error),
}

/// How this process is replaced.
pub struct Upgrade {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// The wish, before there is anything to upgrade.
pub struct Wishes(Signals);

/// Listens for SIGUSR1 from now on, and lets through what [`Upgrade::replace`] kept
/// waiting. The handlers of the other signals must be in place.
///
/// # Errors
/// [`Failure::System`].
pub fn on_signal() -> Result<Wishes, Failure> {
    let failed = |source| Failure::System {
        what: "handle SIGUSR1",
        source,
    };
    let signals = Signals::new([SIGUSR1]).map_err(failed)?;
    for signal in shutdown::handled() {
        unblock_signal(signal).map_err(|error| failed(io::Error::other(format!("{error:?}"))))?;
    }
    Ok(Wishes(signals))
}

impl Upgrade {
    /// To `program`; by default the one that stands where this one was started from.
    ///
    /// # Errors
    /// [`Failure::System`].
    pub fn new(program: Option<&Path>) -> Result<Self, Failure> {
        let own = || {
            let path = std::env::current_exe()?;
            // It was replaced already.
            let name = path.as_os_str().as_bytes();
            let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
            Ok(PathBuf::from(OsStr::from_bytes(name)))
        };
        let failed = |source| Failure::System {
            what: "find out where this program is",
            source,
        };
        let resumed = |argument: &OsString| argument.as_bytes().starts_with(b"--resume=");
        Ok(Self {
            program: program
                .map_or_else(own, |path| Ok(path.to_owned()))
                .map_err(failed)?,
            arguments: std::env::args_os()
                .skip(1)
                .filter(|arg| !resumed(arg))
                .collect(),
        })
    }

    /// At each wish: tries whether the new program goes on with this image, and asks for the
    /// front-end to be paused.
    ///
    /// # Errors
    /// [`Failure::System`].
    pub fn listen(
        self: &Arc<Self>,
        located: &Located,
        wishes: Wishes,
        served: Arc<ServedImage>,
        pause: PauseHandle,
    ) -> Result<(), Failure> {
        let (this, Wishes(mut signals)) = (Arc::clone(self), wishes);
        let needed = understood(upgrade_state::version_of(located));
        let listen = move || {
            for _ in signals.forever() {
                log::info!("SIGUSR1: upgrading to {}", this.program.display());
                match is_possible(&served).and_then(|()| this.check(&needed)) {
                    Ok(()) => pause.pause(),
                    Err(why) => log::error!("not upgraded: {}", chain(&why)),
                }
            }
        };
        let spawned = std::thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(listen);
        spawned.map(drop).map_err(|source| Failure::System {
            what: "start the thread for upgrades",
            source,
        })
    }

    /// Does the new program run, with these arguments, and understand what it will find?
    fn check(&self, needed: &str) -> Result<(), UpgradeError> {
        let program = &self.program;
        let cannot_run = |source| UpgradeError::Run {
            program: program.clone(),
            source,
        };
        let unfit = |why: String| UpgradeError::Unfit {
            program: program.clone(),
            why,
        };
        let mut child = Command::new(program)
            .args(&self.arguments)
            .arg("--resume=check")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(cannot_run)?;
        let end = Instant::now() + CHECK_LIMIT;
        let status = loop {
            match child.try_wait().map_err(cannot_run)? {
                Some(status) => break status,
                None if Instant::now() < end => std::thread::sleep(CHECK_PAUSE),
                None => {
                    // It may end at this moment.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(unfit("it does not answer".to_owned()));
                }
            }
        };
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            let read = output.take(MAX_ANSWER).read_to_string(&mut said);
            read.map_err(cannot_run)?;
        }
        match said.lines().any(|line| line == needed) {
            true => Ok(()),
            false => Err(unfit(format!(
                "it is another version, or does not know the options ({status}, {said:?})"
            ))),
        }
    }

    /// Becomes the new program. Returns only if that fails, with nothing changed.
    pub fn replace(&self, leaving: &Leaving<'_>) -> UpgradeError {
        let kept = match upgrade_state::leave(leaving) {
            Ok(kept) => kept,
            Err(source) => return UpgradeError::Leave(source),
        };
        let resume = OsString::from(format!("--resume={}", kept.as_raw_fd()));
        let own = OsString::from("bypass-blk");
        let words = [&own].into_iter().chain(&self.arguments).chain([&resume]);
        let words: Result<Vec<_>, _> = words.map(|word| CString::new(word.as_bytes())).collect();
        let path = CString::new(self.program.as_os_str().as_bytes());
        let (Ok(words), Ok(path)) = (words, path) else {
            return UpgradeError::Leave(io::ErrorKind::InvalidInput.into());
        };
        // They would end the new program before it has handlers for them.
        let blocked = shutdown::handled().filter(|signal| block_signal(*signal).is_ok());
        let blocked: Vec<_> = blocked.collect();
        let failed = nix::unistd::execv(&path, &words);
        for signal in blocked {
            // It was blocked a moment ago.
            let _ = unblock_signal(signal);
        }
        let errno = failed.err().map_or(0, |errno| errno as i32);
        UpgradeError::Run {
            program: self.program.clone(),
            source: io::Error::from_raw_os_error(errno),
        }
    }
}

/// A look before the guest is stopped; it is decided when it is.
fn is_possible(served: &ServedImage) -> Result<(), UpgradeError> {
    let now = served.now();
    let not_now = |why: &str| Err(UpgradeError::NotNow(why.to_owned()));
    if now.ownership != Ownership::Held {
        return not_now("the image is not held, or is to be given away");
    }
    match now.session.map(|(session, _)| session.snapshot().phase) {
        Some(Phase::Unmarked | Phase::Marking | Phase::Dirty | Phase::Unmarking { .. }) => Ok(()),
        Some(Phase::Stopped(_)) | None => not_now("the session has stopped"),
        Some(_) => not_now("the guest's writes wait for a quorum of bricks"),
    }
}
