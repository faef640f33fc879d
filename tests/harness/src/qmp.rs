//! QEMU's machine protocol: one command at a time, events skipped.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::AtPath;
use crate::{Error, Result};

/// How long QEMU may take to answer a command.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A connection to a QEMU's QMP socket.
#[derive(Debug)]
pub struct Qmp {
    stream: Mutex<BufReader<UnixStream>>,
}

impl Qmp {
    /// Connects and negotiates.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket).at("connect to", socket)?;
        Self::over(stream, socket)
    }

    /// Negotiates over a connection to `socket`.
    pub(crate) fn over(stream: UnixStream, socket: &Path) -> Result<Qmp> {
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .at("set the time-out of", socket)?;
        let qmp = Qmp {
            stream: Mutex::new(BufReader::new(stream)),
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command (`stop`, `cont`, `quit`, `query-status`, …) and returns
    /// its result. A refusal by QEMU is an error with its text.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |text: String| Error::Guest {
            channel: "QMP",
            text,
        };
        let request = json!({ "execute": command, "arguments": arguments });
        // In one piece: QEMU may carry a `quit` out, and be gone, before a line's end comes.
        let line = format!("{request}\n");
        let sent = stream.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| failed(error.to_string()))?;
        loop {
            let mut line = String::new();
            let read = stream
                .read_line(&mut line)
                .map_err(|error| failed(error.to_string()))?;
            if read == 0 {
                return Err(failed(format!("{command}: QEMU closed the connection")));
            }
            let mut message: Value =
                serde_json::from_str(&line).map_err(|error| failed(error.to_string()))?;
            if let Some(error) = message.get("error") {
                return Err(failed(format!("{command}: {error}")));
            }
            // Everything else is the greeting or an event.
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}
