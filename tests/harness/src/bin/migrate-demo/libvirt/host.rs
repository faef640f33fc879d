//! A host with a libvirtd of its own: the network of a cluster's node, and private mounts,
//! host name and processes. The machine's own libvirt is neither used nor touched.
//!
//! Knows nothing of bypass-blk, but where its sockets are to be.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bypass_harness::{Background, Node, Output, finish, run_command, wait_until};

use crate::hosts::run_dir;

const START: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(180);

/// What the host runs as its first process. Arguments: a folder, the host's name, its hosts
/// file, the folder of bypass-blk's sockets. Everything that libvirt writes to is the host's
/// own, and so is `/run`, as a socket's path must be the same on both hosts.
///
/// A shell stays in front of libvirtd, as somebody must reap the QEMUs that it leaves to process 1.
const BOOT: &str = r#"
set -e
root=$1
hostname "$2"
mount -t tmpfs tmpfs /run
for dir in etc/libvirt run/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mkdir -p "$root/$dir" "/$dir"
    mount --bind "$root/$dir" "/$dir"
done
mkdir -p /run/bypass-blk
mount --bind "$4" /run/bypass-blk
mount --bind "$3" /etc/hosts
libvirtd --listen --pid-file /run/libvirt/libvirtd.pid &
wait $!
"#;

/// The host; libvirtd and all its guests are killed when it is dropped.
pub struct Host {
    node: Node,
    first: Background,
    root: PathBuf,
    log: PathBuf,
}

impl Host {
    /// The name of a node's host, for the others.
    pub fn name(node: &Node) -> String {
        format!("host{}", node.index() + 1)
    }

    /// Starts libvirtd on a node, and waits until it answers. `nodes` can be called by name.
    pub fn start(node: &Node, nodes: &[Node]) -> Result<Host, Box<dyn Error>> {
        let dir = node.place().dir();
        let (root, log) = (dir.join("libvirt"), dir.join("libvirtd.log"));
        let etc = root.join("etc/libvirt");
        fs::create_dir_all(&etc)?;
        fs::create_dir_all(run_dir(node))?;
        // No cgroups: both hosts share this machine's, in which both guests have the same name. No
        // AppArmor: its profiles are this machine's too. Users, groups and modes do count.
        fs::write(
            etc.join("qemu.conf"),
            "cgroup_controllers = [ ]\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n",
        )?;
        // libvirt refuses to migrate to a host with the UUID of its own.
        let uuid = format!("b1a5b1c0-0000-4000-8000-{:012}", node.index());
        fs::write(
            etc.join("libvirtd.conf"),
            format!(
                "host_uuid = \"{uuid}\"\nlisten_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\n\
                 auth_unix_rw = \"none\"\n"
            ),
        )?;
        let line = |node: &Node| format!("{} {}\n", node.address(), Host::name(node));
        let names: String = nodes.iter().map(line).collect();
        let hosts = root.join("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n{names}"))?;
        let mut command = node.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "--uts", "--pid"])
            .args(["--fork", "--kill-child", "--mount-proc", "sh", "-c", BOOT])
            .args(["sh".as_ref(), root.as_os_str()])
            .arg(Host::name(node))
            .args([hosts.as_os_str(), run_dir(node).as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let mut host = Host {
            first: Background::start(&mut command)?,
            node: node.clone(),
            root,
            log,
        };
        wait_until("libvirtd to answer", START, || {
            match host.first.exited() {
                Some(status) => Ok(Err(format!("libvirtd ended, {status}: {}", host.log()))),
                // Before the mounts are made, a libvirtd of this machine's own would answer.
                None => match host.virsh(&["hostname"]) {
                    Ok(name) if name == Host::name(node) => Ok(Ok(())),
                    other => Err(format!("{other:?}")),
                },
            }
        })??;
        Ok(host)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A file below `/etc`, `/run` or `/var` of libvirt's on this host, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Where this host's libvirtd is reached from the others.
    pub fn uri(&self) -> String {
        format!("qemu+tcp://{}/system", Host::name(&self.node))
    }

    fn command(&self, args: &[&str]) -> Command {
        let process = Path::new("/proc")
            .join(self.first.pid().to_string())
            .join("ns");
        let mut command = self.node.command("nsenter");
        for (option, namespace) in [
            ("mount", "mnt"),
            ("uts", "uts"),
            ("pid", "pid_for_children"),
        ] {
            command.arg(format!("--{option}={}", process.join(namespace).display()));
        }
        command
            .args(["virsh", "-q", "-c", "qemu:///system"])
            .args(args);
        command
    }

    /// Runs `virsh` on this host; what it prints.
    pub fn virsh(&self, args: &[&str]) -> Result<String, String> {
        let output = run_command(&mut self.command(args), PATIENCE);
        output
            .map(|text| text.trim().to_owned())
            .map_err(|error| error.to_string())
    }

    /// As [`Host::virsh`], but failing is for the caller to judge.
    pub fn try_virsh(&self, args: &[&str]) -> Result<Output, Box<dyn Error>> {
        Ok(finish(&mut self.command(args), PATIENCE)?)
    }

    /// The state of a domain; nothing if there is no such domain.
    pub fn state(&self, domain: &str) -> Option<String> {
        self.virsh(&["domstate", domain]).ok()
    }

    /// The end of what QEMU and libvirt wrote of a domain.
    pub fn qemu_log(&self, domain: &str) -> String {
        let path = self.path(&format!("/var/log/libvirt/qemu/{domain}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}
