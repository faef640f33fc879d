//! The status of images for Prometheus: over HTTP on a unix socket, or in a file that
//! node_exporter's textfile collector reads.
//!
//! [`Metrics`] asks its source anew for every answer and every file; it decides and
//! keeps nothing. `text` has the names and units, `http` the few words of HTTP.

mod http;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use super::status::Status;
use super::unix_socket::{self, ACCEPT_PAUSE, Acceptor};
use crate::image::durable;
use crate::image::error_chain::chain;

pub use text::{openmetrics, textfile};

/// How often a file is written anew.
const FILE_PERIOD: Duration = Duration::from_secs(15);

/// Where the metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// By HTTP/1.0 GET of `/metrics` on a unix socket, readable and writable for its
    /// owner and group.
    Unix(PathBuf),
    /// In a file, written every 15 seconds.
    Textfile(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((_, "")) | None => Err("expected unix:PATH or textfile:PATH".to_owned()),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("textfile", path)) if path.ends_with(".prom") => Ok(Self::Textfile(path.into())),
            Some(("textfile", _)) => {
                Err("the file's name must end in .prom, or node_exporter ignores it".to_owned())
            }
            Some((other, _)) => Err(format!("{other:?} is neither unix nor textfile")),
        }
    }
}

impl Endpoint {
    /// Can metrics be given there, as far as can be seen without doing it?
    ///
    /// # Errors
    /// As [`Metrics::start`].
    pub fn check(&self) -> Result<(), MetricsError> {
        match self {
            Self::Unix(path) => unix_socket::check(path).map_err(|source| bind_error(path, source)),
            Self::Textfile(path) => {
                unix_socket::check_folder(path).map_err(|source| MetricsError::Write {
                    path: path.clone(),
                    source,
                })
            }
        }
    }
}

/// Metrics cannot be given out.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// A live process listens there.
    #[error(
        "the metrics socket {} is in use by a live process. Stop it, or choose another path", .0.display()
    )]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot make the metrics socket {}", .path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the metrics file {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No thread can be had.
    #[error("cannot start the metrics thread")]
    Thread(#[source] io::Error),
}

/// Gives metrics out until it is dropped; then its socket or file is removed, so that
/// nobody takes old figures for new ones.
#[derive(Debug)]
pub struct Metrics {
    stop: Arc<AtomicBool>,
    listener: Option<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Begins, on a thread of its own. `source` gives the status of every image at
    /// that moment; when it gives one image twice, the writable disk counts.
    ///
    /// # Errors
    /// See [`MetricsError`]. A file is written once before this returns.
    pub fn start(
        endpoint: &Endpoint,
        source: impl Fn() -> Vec<Status> + Send + 'static,
    ) -> Result<Self, MetricsError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut kept = None;
        let work: Box<dyn FnOnce() + Send> = match endpoint {
            Endpoint::Unix(path) => {
                let path = path.clone();
                let failed = |source| bind_error(&path, source);
                let listener = bind(&path)?;
                kept = Some(listener.try_clone().map_err(failed)?);
                Box::new(move || listen(&listener, &path, &stopped, source))
            }
            Endpoint::Textfile(path) => {
                let path = path.clone();
                write(&path, &source())?;
                Box::new(move || rewrite(&path, &stopped, source))
            }
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned());
        let thread = thread.spawn(work).map_err(MetricsError::Thread)?;
        Ok(Self {
            stop,
            listener: kept,
            thread: Some(thread),
        })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener
            && let Err(error) = rustix::net::shutdown(listener, rustix::net::Shutdown::Both)
        {
            log::debug!("metrics socket: {error}");
        }
        let Some(thread) = self.thread.take() else {
            return;
        };
        thread.thread().unpark();
        if thread.join().is_err() {
            log::error!("the metrics thread panicked");
        }
    }
}

/// Listens at a path. The socket that a dead process left there is replaced, and
/// nothing else.
fn bind(path: &Path) -> Result<UnixListener, MetricsError> {
    unix_socket::bind(path, Some(0o660)).map_err(|source| bind_error(path, source))
}

fn bind_error(path: &Path, source: io::Error) -> MetricsError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::AddrInUse => MetricsError::InUse(path),
        _ => MetricsError::Bind { path, source },
    }
}

/// Answers one client after the other: each has little time.
fn listen(
    listener: &UnixListener,
    path: &Path,
    stop: &AtomicBool,
    source: impl Fn() -> Vec<Status>,
) {
    let mut acceptor = Acceptor::default();
    loop {
        let accepted = listener.accept();
        // An end, too, shows as one that cannot be taken.
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let taken = accepted.map(|(stream, _)| stream);
        let Some(stream) = acceptor.note(taken, "metrics socket") else {
            std::thread::park_timeout(ACCEPT_PAUSE);
            continue;
        };
        if let Err(error) = http::answer(&stream, || openmetrics(&source())) {
            log::debug!("metrics socket: {error}");
        }
    }
    // It may be gone already, with its directory.
    let _ = std::fs::remove_file(path);
}

fn rewrite(path: &Path, stop: &AtomicBool, source: impl Fn() -> Vec<Status>) {
    while !stop.load(Ordering::SeqCst) {
        std::thread::park_timeout(FILE_PERIOD);
        if let Err(error) = write(path, &source()) {
            log::warn!("{}", chain(&error));
        }
    }
    // It may be gone already, with its directory.
    let _ = std::fs::remove_file(path);
}

fn write(path: &Path, images: &[Status]) -> Result<(), MetricsError> {
    let text = textfile(images);
    durable::write(path, 0o644, text.as_bytes()).map_err(|source| MetricsError::Write {
        path: path.to_owned(),
        source,
    })
}
