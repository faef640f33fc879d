//! The disks a guest can have, as QEMU's arguments. Opens nothing itself.

use std::path::PathBuf;

use crate::qemu_version::reconnect_option;

/// A virtio disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// A vhost-user-blk device behind a socket.
    VhostUser {
        /// The device's socket.
        socket: PathBuf,
        /// Virtqueues; the device must offer as many.
        queues: u16,
        /// Whether QEMU connects again when the device goes away.
        reconnect: bool,
    },
    /// A raw file, on a brick or on a mount, opened past the page cache.
    File {
        /// The file.
        path: PathBuf,
        /// Virtqueues.
        queues: u16,
    },
    /// A raw image through QEMU's own Gluster client; the guest has to run on a
    /// node of the cluster.
    Gluster {
        /// A node's address.
        server: String,
        /// The volume.
        volume: String,
        /// The image's path in the volume.
        image: String,
        /// Virtqueues.
        queues: u16,
    },
}

impl Disk {
    /// QEMU's arguments for this disk as number `index` of the guest.
    pub(crate) fn args(&self, index: usize) -> Vec<String> {
        let [backend, device] = match self {
            Disk::VhostUser {
                socket,
                queues,
                reconnect,
            } => {
                let reconnect = match reconnect {
                    true => format!(",{}", reconnect_option()),
                    false => String::new(),
                };
                return vec![
                    "-chardev".into(),
                    format!(
                        "socket,id=chr{index},path={}{reconnect}",
                        escape(&socket.display().to_string())
                    ),
                    "-device".into(),
                    format!(
                        "vhost-user-blk-pci,id=disk{index},chardev=chr{index},num-queues={queues}"
                    ),
                ];
            }
            Disk::File { path, queues } => [
                format!(
                    "driver=file,aio=io_uring,filename={}",
                    escape(&path.display().to_string())
                ),
                queues.to_string(),
            ],
            Disk::Gluster {
                server,
                volume,
                image,
                queues,
            } => [
                format!(
                    "driver=gluster,server.0.type=inet,server.0.host={server},server.0.port=24007,volume={volume},path={}",
                    escape(image.trim_start_matches('/'))
                ),
                queues.to_string(),
            ],
        };
        // An I/O thread each, as an operator who cares for speed would have it.
        vec![
            "-object".into(),
            format!("iothread,id=io{index}"),
            "-blockdev".into(),
            format!("{backend},node-name=img{index},cache.direct=on,discard=unmap"),
            "-device".into(),
            format!(
                "virtio-blk-pci,id=disk{index},drive=img{index},iothread=io{index},num-queues={device},write-cache=on"
            ),
        ]
    }
}

/// A value for QEMU's option syntax, where a comma is written twice.
pub(crate) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_not_an_option() {
        let disk = Disk::File {
            path: "/a,b.img".into(),
            queues: 1,
        };
        assert!(
            disk.args(0)
                .iter()
                .any(|arg| arg.contains("filename=/a,,b.img,"))
        );
    }

    #[test]
    fn a_vhost_user_disk_reconnects_only_when_asked() {
        let disk = |reconnect| Disk::VhostUser {
            socket: "/s".into(),
            queues: 2,
            reconnect,
        };
        assert!(!disk(false).args(0).join(" ").contains("reconnect"));
        assert!(disk(true).args(0).join(" ").contains(",reconnect"));
    }
}
