//! `bare-device`: our device without marks, dirty map and locks. Killed when dropped.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bypass_harness::{Background, Place, wait_until};

use crate::QUEUES;

const PATIENCE: Duration = Duration::from_secs(30);

/// What it says once connections are taken.
const READY: &str = "listening on";

/// What it serves.
pub enum Disk<'a> {
    /// A file, past the page cache.
    File(&'a Path),
    /// Nothing, of so many bytes: the kernel answers at once.
    Null(u64),
}

impl Disk<'_> {
    /// For the files of the one that serves it: one of each at a time.
    fn name(&self) -> &'static str {
        match self {
            Disk::File(_) => "bare",
            Disk::Null(_) => "bare-null",
        }
    }

    fn args(&self) -> Vec<String> {
        match self {
            Disk::File(path) => vec![path.display().to_string()],
            Disk::Null(bytes) => vec![format!("--size={bytes}"), "/dev/zero".to_owned()],
        }
    }
}

/// A running one.
pub struct Bare {
    process: Background,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

impl Bare {
    /// Starts it in a place and waits until it listens.
    pub fn start(place: &Place, program: &Path, disk: &Disk<'_>) -> Result<Bare, Box<dyn Error>> {
        let dir = place.dir();
        let name = disk.name();
        let [socket, log] = ["sock", "log"].map(|of| dir.join(format!("{name}.{of}")));
        // Of the one before, which was killed; there may be none.
        let _ = std::fs::remove_file(&socket);
        let mut command = place.command(&program.to_string_lossy());
        command.arg(format!("--num-queues={QUEUES}"));
        command.arg("--socket-path").arg(&socket).args(disk.args());
        let log_file = File::create(&log)?;
        command.stdin(Stdio::null());
        command.stdout(log_file.try_clone()?).stderr(log_file);
        let mut process = Background::start(&mut command)?;
        wait_until("bare-device to listen", PATIENCE, || {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            match process.exited() {
                Some(status) => Ok(Err(format!("bare-device: {status}: {}", said()))),
                None if said().contains(READY) => Ok(Ok(())),
                None => Err(said()),
            }
        })??;
        Ok(Bare { process, socket })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nothing_is_given_a_size() {
        assert_eq!(Disk::Null(4096).args(), ["--size=4096", "/dev/zero"]);
        assert_eq!(Disk::File(Path::new("/b/x.img")).args(), ["/b/x.img"]);
    }
}
