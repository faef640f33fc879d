//! A session of another process, through its control socket.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use crate::image::error_chain::chain;
use crate::image::heal::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked, Wait};

use super::socket::{Answer, ControlError, Request, ask, ask_over};

/// The session behind one control socket. A daemon's socket is named after its
/// process, and every request names the session, so this is never another one's.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    socket: PathBuf,
    /// Once it was asked.
    session: OnceLock<Uuid>,
    /// The same for all clones.
    waiting: Arc<Mutex<Waiting>>,
}

/// A report that waits for its answer, and the way to call it back.
#[derive(Debug, Default)]
struct Waiting {
    connection: Option<UnixStream>,
    /// No report waits any more.
    over: bool,
}

impl Waiting {
    /// A report is about to wait over this connection.
    fn begin(&mut self, connection: &UnixStream) -> io::Result<()> {
        if self.over {
            return Err(ErrorKind::Interrupted.into());
        }
        self.connection = Some(connection.try_clone()?);
        Ok(())
    }

    /// Ends it.
    fn hurry(&mut self) {
        self.over = true;
        if let Some(connection) = self.connection.take() {
            // One that has ended already waits for nothing.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl RemoteSession {
    /// The session behind the socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            socket: path.to_owned(),
            session: OnceLock::new(),
            waiting: Arc::default(),
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

    /// Nothing in it is half done.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn report(&self, report: &HealReport, wait: Option<&Wait>) -> Result<Hint, LinkError> {
        let session = self.session()?;
        let request = |wait: Option<&Wait>| Request::Report {
            session,
            report: report.clone(),
            wait: wait.cloned(),
        };
        if let Some(wait) = wait {
            let begin = |connection: &UnixStream| self.waiting().begin(connection);
            let answer = ask_over(&self.socket, &request(Some(wait)), begin);
            self.waiting().connection = None;
            match answer {
                Ok(Answer::Hint(hint)) => return Ok(hint),
                // Nobody wants to know any more.
                _ if self.waiting().over => return Ok(wait.unlike.clone()),
                // The daemon ended while it waited, say: how it is now is asked below.
                _ => {}
            }
        }
        match self.ask(&request(None))? {
            Answer::Hint(hint) => Ok(hint),
            other => Err(self.unexpected(&other)),
        }
    }

    fn hurry(&self) {
        self.waiting().hurry();
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        let session = self.session()?;
        match self.ask(&Request::Unmark { session })? {
            Answer::Unmarked(unmarked) => Ok(unmarked),
            other => Err(self.unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::control::line;

    const LONG: Duration = Duration::from_secs(20);

    fn job() -> Job {
        Job {
            volume: "v".to_owned(),
            image: "/a".to_owned(),
            gfid: Uuid::nil(),
            session: Uuid::from_u128(1),
            server: "a".to_owned(),
            port: 0,
            local_path: PathBuf::new(),
            local: 0,
            bricks: Vec::new(),
            map: PathBuf::new(),
            peers: Vec::new(),
        }
    }

    /// A daemon: what it is asked is told, and answered by `answer`, or not at all.
    fn daemon(
        path: &Path,
        answer: impl Fn(&Request) -> Option<Answer> + Send + 'static,
    ) -> mpsc::Receiver<Request> {
        let listener = UnixListener::bind(path).unwrap();
        let (asked, told) = mpsc::channel();
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let request = serde_json::from_str(&line::read(&stream, LONG).unwrap()).unwrap();
                let answer = answer(&request);
                if asked.send(request).is_err() {
                    return;
                }
                match answer {
                    Some(answer) => {
                        let answer = serde_json::to_string(&answer).unwrap();
                        line::write(&stream, &answer, LONG).unwrap();
                    }
                    None => kept.push(stream),
                }
            }
        });
        told
    }

    fn wait() -> Wait {
        Wait {
            time: LONG,
            unlike: Hint {
                at_rest: true,
                ..Hint::default()
            },
        }
    }

    #[test]
    fn a_report_that_waits_comes_back_when_it_is_hurried_and_none_waits_after_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let asked = daemon(&path, |request| match request {
            Request::Job => Some(Answer::Job(job())),
            _ => None,
        });
        let link = RemoteSession::new(&path);
        let begin = Instant::now();
        thread::scope(|scope| {
            let report = || link.report(&HealReport::default(), Some(&wait()));
            let waiting = scope.spawn(report);
            while !matches!(asked.recv().unwrap(), Request::Report { wait: Some(_), .. }) {}
            link.clone().hurry();
            assert_eq!(waiting.join().unwrap(), Ok(wait().unlike));
            assert_eq!(report(), Ok(wait().unlike));
        });
        assert!(begin.elapsed() < LONG / 2);
    }

    #[test]
    fn a_report_that_waited_in_vain_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _asked = daemon(&path, |request| match request {
            Request::Job => Some(Answer::Job(job())),
            // As from a process that is replaced by another one.
            Request::Report { wait: Some(_), .. } => Some(Answer::Refused {
                why: "not now".to_owned(),
            }),
            _ => Some(Answer::Hint(Hint::default())),
        });
        let link = RemoteSession::new(&path);
        let told = link.report(&HealReport::default(), Some(&wait()));
        assert_eq!(told, Ok(Hint::default()));
    }

    #[test]
    fn a_hint_of_an_older_daemon_says_that_there_is_something_to_do() {
        let hint = r#"{"marked":false,"removable":false,"suspect":[],"held":[],"latency":null}"#;
        let hint: Hint = serde_json::from_str(hint).unwrap();
        assert!(!hint.at_rest);
    }
}
