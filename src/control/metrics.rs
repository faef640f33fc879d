//! The status of images for Prometheus: over HTTP on a unix socket, or in a file that
//! node_exporter's textfile collector reads.
//!
//! [`Metrics`] asks its source anew for every answer and every file; it decides and
//! keeps nothing. `text` has the names and units, `http` the few words of HTTP.

mod http;
#[cfg(test)]
mod tests;
mod text;

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use super::socket;
use super::status::Status;
use crate::image::durable;
use crate::image::error::chain;

pub use text::{openmetrics, textfile};

/// How often a file is written anew.
const FILE_PERIOD: Duration = Duration::from_secs(15);
/// The pause after a connection could not be taken, as when there are no file
/// descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
    let failed = |source| bind_error(path, source);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            let text = "a file that is not a socket is there";
            return Err(failed(io::Error::new(ErrorKind::AlreadyExists, text)));
        }
        Ok(_) if socket::is_dead(path) => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(MetricsError::InUse(path.to_owned())),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn bind_error(path: &Path, source: io::Error) -> MetricsError {
    MetricsError::Bind {
        path: path.to_owned(),
        source,
    }
}

/// Answers one client after the other: each has little time.
fn listen(
    listener: &UnixListener,
    path: &Path,
    stop: &AtomicBool,
    source: impl Fn() -> Vec<Status>,
) {
    while !stop.load(Ordering::SeqCst) {
        let answered = match listener.accept() {
            Ok((stream, _)) => http::answer(&stream, || openmetrics(&source())),
            Err(error) => {
                std::thread::park_timeout(ACCEPT_PAUSE);
                Err(error)
            }
        };
        if let Err(error) = answered {
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
