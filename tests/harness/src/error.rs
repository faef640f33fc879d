//! What can go wrong while a cluster or a guest is brought up or asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The harness' result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the harness; the text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation on this machine failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation, as a verb: "read", "create".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error(
        "cannot start `{program}`; tests/run and qemu/demo install the Debian package it is in"
    )]
    Spawn {
        /// The program as it was named.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// Exit status or signal.
        status: String,
        /// What it printed, standard error last.
        output: String,
    },
    /// Something awaited did not happen.
    #[error("waited {} s in vain for {what}; last seen: {last}", after.as_secs())]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// What was there instead.
        last: String,
    },
    /// A program's output is not what it should be.
    #[error("cannot make sense of {what}: {text}")]
    Parse {
        /// What was being read.
        what: &'static str,
        /// The text, or what is wrong with it.
        text: String,
    },
    /// A QMP command or the guest's agent refused.
    #[error("the guest's {channel} answered: {text}")]
    Guest {
        /// "QMP" or "agent".
        channel: &'static str,
        /// What it said.
        text: String,
    },
    /// This machine cannot carry a cluster.
    #[error("{0}")]
    Unsuitable(String),
}

/// Gives I/O errors the operation and the path they are about.
pub(crate) trait AtPath<T> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for std::result::Result<T, E> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::File {
            what,
            path: path.as_ref().to_owned(),
            source: source.into(),
        })
    }
}

/// An error with all its causes, for a program's last words.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
