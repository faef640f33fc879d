//! `qemu-storage-daemon` as a vhost-user-blk device: the peer. Killed when dropped.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bypass_harness::{Background, Node, wait_until};

/// Queues that it offers, as ours does.
const QUEUES: u16 = crate::QUEUES;
const PATIENCE: Duration = Duration::from_secs(30);

/// What it serves.
pub enum Disk<'a> {
    /// A file, past the page cache, with this `aio`. It is not locked: our daemon has it.
    File {
        /// The file.
        path: &'a Path,
        /// `io_uring` or `native`.
        aio: &'a str,
    },
    /// An image of a volume, by QEMU's own client.
    Gluster {
        /// A node's address.
        server: &'a str,
        /// The volume.
        volume: &'a str,
        /// The image.
        image: &'a str,
    },
    /// Nothing, of so many bytes.
    Null(u64),
}

impl Disk<'_> {
    /// The value of `--blockdev`; no path of the harness has a comma.
    fn blockdev(&self) -> String {
        let driver = match self {
            Disk::File { path, aio } => format!(
                "driver=file,filename={},aio={aio},locking=off,cache.direct=on",
                path.display()
            ),
            Disk::Gluster {
                server,
                volume,
                image,
            } => format!(
                "driver=gluster,server.0.type=inet,server.0.host={server},server.0.port=24007,\
                 volume={volume},path={},cache.direct=on",
                image.trim_start_matches('/')
            ),
            Disk::Null(bytes) => format!("driver=null-co,size={bytes},read-zeroes=off"),
        };
        format!("{driver},node-name=disk")
    }
}

/// A running one.
pub struct Qsd {
    process: Background,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

impl Qsd {
    /// Starts it on a node and waits until it listens.
    pub fn start(node: &Node, disk: &Disk<'_>, iothread: bool) -> Result<Qsd, Box<dyn Error>> {
        let dir = node.place().dir();
        let [socket, pid_file, log] =
            ["sock", "pid", "log"].map(|of| dir.join(format!("qsd.{of}")));
        for old in [&socket, &pid_file] {
            // Of the one before, which was killed; there may be none.
            let _ = std::fs::remove_file(old);
        }
        let mut command = node.command("qemu-storage-daemon");
        let mut export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={QUEUES},\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        if iothread {
            command.args(["--object", "iothread,id=io"]);
            export.push_str(",iothread=io");
        }
        command.args([
            "--blockdev",
            &disk.blockdev(),
            "--export",
            &export,
            "--pidfile",
        ]);
        let log_file = File::create(&log)?;
        command.arg(&pid_file).stdin(Stdio::null());
        command.stdout(log_file.try_clone()?).stderr(log_file);
        let mut process = Background::start(&mut command)?;
        // The pid file comes after the exports.
        wait_until("qemu-storage-daemon to listen", PATIENCE, || {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            match process.exited() {
                Some(status) => Ok(Err(format!("qemu-storage-daemon: {status}: {}", said()))),
                None if pid_file.exists() => Ok(Ok(())),
                None => Err(said()),
            }
        })??;
        Ok(Qsd { process, socket })
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
    fn a_file_is_past_the_cache_and_not_locked() {
        let path = Path::new("/b/x.img");
        let text = Disk::File {
            path,
            aio: "native",
        }
        .blockdev();
        for part in [
            "aio=native",
            "locking=off",
            "cache.direct=on",
            "filename=/b/x.img",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
