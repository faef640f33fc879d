//! A session of another process, through its control socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::socket::{Answer, ControlError, Request, ask};
use crate::image::error::chain;
use crate::image::heal::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked};

/// The session behind one control socket. A daemon's socket is named after its
/// process, so this is never another one's.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    socket: PathBuf,
}

impl RemoteSession {
    /// The session behind the socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            socket: path.to_owned(),
        }
    }

    /// Makes byte ranges of a child's copy dirty.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn repair(&self, child: usize, ranges: &[std::ops::Range<u64>]) -> Result<(), LinkError> {
        let ranges = ranges.iter().map(|range| (range.start, range.end));
        let request = Request::Repair {
            child,
            ranges: ranges.collect(),
        };
        match self.ask(&request)? {
            Answer::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer, LinkError> {
        ask(&self.socket, request).map_err(|error| match error {
            ControlError::Ended { why, .. } => LinkError::Ended(why),
            // Nobody listens there any more.
            ControlError::Ask { ref source, .. }
                if matches!(
                    source.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotFound
                ) =>
            {
                LinkError::Ended("its process is gone".to_owned())
            }
            error => LinkError::Failed(chain(&error)),
        })
    }

    fn unexpected(&self, answer: &Answer) -> LinkError {
        LinkError::Failed(ControlError::unexpected(&self.socket, answer).to_string())
    }
}

impl SessionLink for RemoteSession {
    fn job(&self) -> Result<Job, LinkError> {
        match self.ask(&Request::Job)? {
            Answer::Job(job) => Ok(job),
            other => Err(self.unexpected(&other)),
        }
    }

    fn report(&self, report: &HealReport) -> Result<Hint, LinkError> {
        match self.ask(&Request::Report(report.clone()))? {
            Answer::Hint(hint) => Ok(hint),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        match self.ask(&Request::Unmark)? {
            Answer::Unmarked(unmarked) => Ok(unmarked),
            other => Err(self.unexpected(&other)),
        }
    }
}
