//! A daemon in a process of its own, to be killed: the test's own program, run once more.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use bypass_blk::device::gate::AlwaysOpen;
use bypass_blk::device::{Config, Disk, Server};
use rustix::fs::{FlockOperation, flock};

use super::wait_for;

/// Tells the process that it is the daemon: its socket and its image.
const DAEMON: &str = "BYPASS_BLK_TEST_DAEMON";
pub const QUEUES: usize = 2;

/// What the test `the_daemon` of such a program does: serves, if this process is the daemon.
pub fn serve_if_daemon() {
    let Ok(places) = std::env::var(DAEMON) else {
        return;
    };
    let (socket, image) = places.split_once(':').unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(image).unwrap();
    // Like the session: nothing that a killed process left with the kernel is under way.
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let config = Config {
        num_queues: QUEUES as u16,
        queue_size: 128,
    };
    let disk = Disk::new(file, "killed").unwrap();
    let server = Server::new(disk, Arc::new(AlwaysOpen), config).unwrap();
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    loop {
        server.serve(listener.accept().unwrap().0).unwrap();
    }
}

/// Killed when it is dropped.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(socket: &Path, image: &Path) -> (Self, UnixStream) {
        let places = format!("{}:{}", socket.display(), image.display());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_daemon", "--nocapture"])
            .env(DAEMON, places)
            .spawn()
            .unwrap();
        let mut stream = None;
        wait_for("the daemon's socket", || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        (Self(child), stream.unwrap())
    }
}

impl Drop for Daemon {
    /// SIGKILL.
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
