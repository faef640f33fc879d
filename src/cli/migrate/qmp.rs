//! QEMU's machine protocol: one command on a connection of its own. Events are skipped.
//!
//! Messages: `docs/interop/qmp-spec.rst` of QEMU, one JSON document a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

/// How long QEMU may be silent: its main loop waits for disks and for other hosts.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest conversation, in bytes.
const MOST: u64 = 4 << 20;

/// Why a command has no result.
#[derive(Debug, Error)]
pub enum QmpError {
    /// QEMU would not.
    #[error("{command}: {why}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// QEMU did not answer.
    #[error("QEMU at {} does not answer {command}: {source}", .path.display())]
    Silent {
        /// Which command.
        command: String,
        /// Its socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Runs a command at the QEMU behind this socket.
///
/// # Errors
/// See [`QmpError`]; after [`QmpError::Silent`] it may have been carried out.
pub fn ask(path: &Path, command: &str, arguments: Value) -> Result<Value, QmpError> {
    let silent = |source| QmpError::Silent {
        command: command.to_owned(),
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).map_err(silent)?;
    let refused = |why| QmpError::Refused {
        command: command.to_owned(),
        why,
    };
    converse(&stream, command, arguments)
        .map_err(silent)?
        .map_err(refused)
}

fn converse(
    stream: &UnixStream,
    command: &str,
    arguments: Value,
) -> io::Result<Result<Value, String>> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut lines = BufReader::new(stream.take(MOST));
    if let Err(why) = execute(stream, &mut lines, "qmp_capabilities", json!({}))? {
        return Ok(Err(why));
    }
    execute(stream, &mut lines, command, arguments)
}

fn execute(
    mut stream: &UnixStream,
    lines: &mut impl BufRead,
    command: &str,
    arguments: Value,
) -> io::Result<Result<Value, String>> {
    let request = json!({ "execute": command, "arguments": arguments });
    stream.write_all(format!("{request}\n").as_bytes())?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut message: Value = serde_json::from_str(&line)?;
        if let Some(error) = message.get("error") {
            let why = error.get("desc").and_then(Value::as_str);
            return Ok(Err(why.unwrap_or("no reason is given").to_owned()));
        }
        // Everything else is the greeting or an event.
        if let Some(result) = message.get_mut("return") {
            return Ok(Ok(result.take()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a command at a QEMU that says these lines and then nothing.
    fn asked(lines: &[&str]) -> io::Result<Result<Value, String>> {
        let (ours, mut theirs) = UnixStream::pair()?;
        theirs.write_all(lines.join("").as_bytes())?;
        theirs.shutdown(std::net::Shutdown::Write)?;
        converse(&ours, "query-migrate", json!({}))
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
    const READY: &str = "{\"return\": {}}\n";
    const EVENT: &str = "{\"event\": \"STOP\", \"timestamp\": {}}\n";

    #[test]
    fn an_answer_is_found_among_greeting_and_events() {
        let answer = "{\"return\": {\"status\": \"setup\"}}\n";
        let lines = [GREETING, EVENT, READY, EVENT, EVENT, answer];
        assert_eq!(asked(&lines).unwrap(), Ok(json!({ "status": "setup" })));
    }

    #[test]
    fn a_refusal_is_told_in_qemu_s_words() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n";
        assert_eq!(
            asked(&[GREETING, READY, refusal]).unwrap(),
            Err("no".into())
        );
        assert_eq!(asked(&[GREETING, refusal]).unwrap(), Err("no".into()));
    }

    #[test]
    fn a_qemu_that_goes_away_or_talks_nonsense_is_silent() {
        for lines in [&[][..], &[GREETING, READY], &[GREETING, "nonsense\n"]] {
            assert!(asked(lines).is_err(), "{lines:?}");
        }
    }
}
