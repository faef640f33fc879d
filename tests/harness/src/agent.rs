//! The host's end of the agent in the guest (`guest/init`): scripts in, exit
//! status and outputs out, several at a time.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::AtPath;
use crate::{Error, Result, wait_until};

/// The most one output of a script may be.
const MAX_OUTPUT: u64 = 64 << 20;

/// What a script in the guest left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Exit status; 0 is success.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The answers that nobody has waited for yet, and whether more can come.
#[derive(Debug, Default)]
struct Inbox {
    ready: bool,
    closed: Option<String>,
    replies: HashMap<u64, Reply>,
}

type Shared = Arc<Mutex<Inbox>>;

fn locked(inbox: &Shared) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection to the agent.
#[derive(Debug)]
pub struct Agent {
    stream: Mutex<UnixStream>,
    inbox: Shared,
    next: AtomicU64,
}

/// A script that runs in the guest.
#[derive(Debug)]
pub struct Job {
    id: u64,
    inbox: Shared,
}

impl Agent {
    /// Over a connection to QEMU's end of the port, `socket`; the guest may not be up yet.
    pub fn over(stream: UnixStream, socket: &Path) -> Result<Agent> {
        let reader = stream.try_clone().at("clone the connection to", socket)?;
        let inbox = Shared::default();
        let filled = Arc::clone(&inbox);
        thread::spawn(move || {
            let ended = receive(BufReader::new(reader), &filled);
            locked(&filled).closed = Some(ended.unwrap_or_else(|error| error.to_string()));
        });
        Ok(Agent {
            stream: Mutex::new(stream),
            inbox,
            next: AtomicU64::new(1),
        })
    }

    /// Whether the guest has come up.
    pub fn is_ready(&self) -> bool {
        locked(&self.inbox).ready
    }

    /// The guest is about to boot again.
    pub(crate) fn expect_ready(&self) {
        locked(&self.inbox).ready = false;
    }

    /// A script that was started through `former`, another agent connection of the same
    /// guest: its answer comes here. No later one gets the number of one started there.
    pub fn adopt(&self, job: &Job, former: &Agent) -> Job {
        let next = former.next.load(Ordering::Relaxed);
        self.next.fetch_max(next, Ordering::Relaxed);
        Job {
            id: job.id,
            inbox: Arc::clone(&self.inbox),
        }
    }

    /// Starts a shell script in the guest.
    pub fn start(&self, script: &str) -> Result<Job> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let line = format!("{id} {}\n", escape(script));
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream
            .write_all(line.as_bytes())
            .map_err(|error| gone(&error.to_string()))?;
        Ok(Job {
            id,
            inbox: Arc::clone(&self.inbox),
        })
    }
}

fn gone(text: &str) -> Error {
    Error::Guest {
        channel: "agent",
        text: format!("the connection is gone: {text}"),
    }
}

/// A script as one line; `printf %b` undoes it.
fn escape(script: &str) -> String {
    script.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Takes answers until the stream ends; returns how it ended.
fn receive(mut from: impl BufRead, inbox: &Shared) -> Result<String> {
    let mut line = String::new();
    loop {
        line.clear();
        match from.read_line(&mut line) {
            Ok(0) => return Ok("end of stream".into()),
            Err(error) => return Ok(error.to_string()),
            Ok(_) if line.trim() == "ready" => locked(inbox).ready = true,
            Ok(_) => {
                let (id, reply) = read_reply(&line, &mut from)?;
                locked(inbox).replies.insert(id, reply);
            }
        }
    }
}

/// One answer: its header line, then the outputs from the stream.
fn read_reply(header: &str, from: &mut impl Read) -> Result<(u64, Reply)> {
    let bad = || Error::Parse {
        what: "an answer of the guest's agent",
        text: header.trim().to_owned(),
    };
    let mut words = header.split_whitespace();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (Some(id), Some(status), Some(stdout), Some(stderr)) =
        (number(), number(), number(), number())
    else {
        return Err(bad());
    };
    let mut text = |length: u64| {
        let mut bytes = Vec::new();
        let read = from.take(length.min(MAX_OUTPUT)).read_to_end(&mut bytes);
        match read {
            Ok(read) if read as u64 == length => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            _ => Err(bad()),
        }
    };
    let reply = Reply {
        status: i32::try_from(status).map_err(|_| bad())?,
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    };
    Ok((id, reply))
}

impl Job {
    /// Its answer, if it has ended; can be had once.
    pub fn poll(&self) -> Result<Option<Reply>> {
        let mut inbox = locked(&self.inbox);
        match (inbox.replies.remove(&self.id), &inbox.closed) {
            (Some(reply), _) => Ok(Some(reply)),
            (None, Some(why)) => Err(gone(why)),
            (None, None) => Ok(None),
        }
    }

    /// Waits for its end. A failure status is for the caller to judge.
    pub fn wait(self, deadline: Duration) -> Result<Reply> {
        wait_until("a script's end in the guest", deadline, || {
            match self.poll() {
                Ok(Some(reply)) => Ok(Ok(reply)),
                Ok(None) => Err("it is still running".into()),
                Err(error) => Ok(Err(error)),
            }
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_stays_one_line() {
        assert_eq!(escape("a\n\\n b"), "a\\n\\\\n b");
    }

    #[test]
    fn outputs_are_taken_by_their_length_whatever_they_hold() {
        let mut stream = "ready\n5 0 0 0\nerr7 1 2 3\n".as_bytes();
        let (id, reply) = read_reply("3 7 14 3\n", &mut stream).unwrap();
        assert_eq!((id, reply.status), (3, 7));
        assert_eq!(
            (reply.stdout.as_str(), reply.stderr.as_str()),
            ("ready\n5 0 0 0\n", "err")
        );
    }

    #[test]
    fn a_torn_answer_is_an_error() {
        assert!(read_reply("3 0 10 0\n", &mut "short".as_bytes()).is_err());
        assert!(read_reply("3 0\n", &mut "".as_bytes()).is_err());
        assert!(read_reply("noise\n", &mut "".as_bytes()).is_err());
    }
}
