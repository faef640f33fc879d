//! A session of another process, through its control socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use uuid::Uuid;

use crate::image::chain::chain;
use crate::image::heal::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked};

use super::socket::{Answer, ControlError, Request, ask};

/// The session behind one control socket. A daemon's socket is named after its
/// process, and every request names the session, so this is never another one's.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    socket: PathBuf,
    /// Once it was asked.
    session: OnceLock<Uuid>,
}

impl RemoteSession {
    /// The session behind the socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            socket: path.to_owned(),
            session: OnceLock::new(),
        }
    }

    /// Which session this is: the one that was there when it was first asked.
    fn session(&self) -> Result<Uuid, LinkError> {
        match self.session.get() {
            Some(session) => Ok(*session),
            None => Ok(self.job()?.session),
        }
    }

    /// Makes byte ranges of a child's copy dirty.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn repair(&self, child: usize, ranges: &[std::ops::Range<u64>]) -> Result<(), LinkError> {
        let ranges = ranges.iter().map(|range| (range.start, range.end));
        let request = Request::Repair {
            session: self.session()?,
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
            Answer::Job(job) if *self.session.get_or_init(|| job.session) == job.session => Ok(job),
            Answer::Job(_) => Err(LinkError::Ended("there is another session".to_owned())),
            other => Err(self.unexpected(&other)),
        }
    }

    fn report(&self, report: &HealReport) -> Result<Hint, LinkError> {
        let request = Request::Report {
            session: self.session()?,
            report: report.clone(),
        };
        match self.ask(&request)? {
            Answer::Hint(hint) => Ok(hint),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        let session = self.session()?;
        match self.ask(&Request::Unmark { session })? {
            Answer::Unmarked(unmarked) => Ok(unmarked),
            other => Err(self.unexpected(&other)),
        }
    }
}
