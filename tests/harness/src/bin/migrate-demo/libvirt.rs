//! `qemu/libvirt-demo`: the guest of `qemu/libvirt-domain.xml` is started by one libvirtd and moved to
//! another by `virsh migrate --live`, with the commands of docs/migration.md: first cancelled, then to the end.
//!
//! `libvirt/host.rs` is a host with a libvirtd, `libvirt/domain.rs` the domain. This file is the story.

mod domain;
mod host;

use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::{Agent, Fill, GuestImage, Job, Node, Output, Volume, run_command, wait_until};
use serde_json::Value;

use crate::hosts::{Daemon, Program, run_dir};
use crate::{MIB, Options, compared, three_hosts};
use host::Host;

const IMAGE: &str = "/vm1.img";
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory per second, in MiB, while a migration is to be cancelled: then it lasts long enough.
const SLOW: &str = "8";
/// libvirt's own default.
const FAST: &str = "8796093022207";

/// The two hosts and the guest, wherever it is.
struct Story {
    volume: Volume,
    program: Program,
    hosts: [Host; 2],
    agent: Agent,
}

/// Whether the guest moved, unharmed, and all copies are equal. `dir` holds the domain and the unit.
pub fn demo(options: &Options, dir: &Path) -> Result<bool, Box<dyn Error>> {
    let xml = domain::adapted(&fs::read_to_string(dir.join("libvirt-domain.xml"))?)?;
    let unit = fs::read_to_string(dir.join("bypass-blk@.service"))?;
    let program = Program::new(&options.program)?.of_unit(&unit)?;
    let volume = three_hosts()?;
    volume.create_image(IMAGE, options.size * MIB, Fill::Noise)?;
    let _healers = program.healers(&volume)?;
    let queues = ["--num-queues", "2"];
    let source = program.serve(&volume, IMAGE, 0, &queues)?;
    let incoming = [&queues[..], &["--incoming", "--lock-timeout", "60s"]].concat();
    let target = program.serve(&volume, IMAGE, 1, &incoming)?;
    let mut story = Story::begin(volume, program, &xml)?;
    let load = story.load()?;
    story.cancelled(&load)?;
    let load = story.moved(&load)?;
    story.end(load, source, target)?;
    let copies = compared(&story.volume, IMAGE)?;
    println!("{}", crate::verdict(true, &copies));
    Ok(copies.are_equal())
}

impl Story {
    /// Starts a libvirtd on each of two hosts, and the guest on the first.
    fn begin(volume: Volume, program: Program, xml: &str) -> Result<Story, Box<dyn Error>> {
        let step = Step::begin("a libvirtd on each of two hosts");
        let nodes = volume.cluster().nodes();
        let hosts = [
            Host::start(&nodes[0], nodes)?,
            Host::start(&nodes[1], nodes)?,
        ];
        let boot = GuestImage::prepare()?;
        hosts
            .iter()
            .try_for_each(|host| domain::install(&boot, host))?;
        step.done("");
        let step = Step::begin("virsh define --validate, virsh start on the first");
        let path = nodes[0].place().dir().join("vm1.xml");
        fs::write(&path, xml)?;
        hosts[0].virsh(&["define", "--validate", &path.display().to_string()])?;
        let listener = listen(&nodes[0])?;
        let started = hosts[0].virsh(&["start", domain::NAME]);
        started.map_err(|error| format!("{error}\n{}", hosts[0].qemu_log(domain::NAME)))?;
        let agent = accept(&listener)?;
        wait_until("the guest to boot", PATIENCE, || match agent.is_ready() {
            true => Ok(()),
            false => Err(hosts[0].qemu_log(domain::NAME)),
        })?;
        let story = Story {
            volume,
            program,
            hosts,
            agent,
        };
        story.owned_by(0)?;
        step.done("QEMU runs as libvirt's user, the guest has booted");
        Ok(story)
    }

    /// Rounds of writes to the disk, each read back.
    fn load(&self) -> Result<Job, Box<dyn Error>> {
        Ok(self.agent.start(&crate::guest::verifying())?)
    }

    /// Cancels a migration while memory is sent. The guest goes on where it is.
    fn cancelled(&self, load: &Job) -> Result<(), Box<dyn Error>> {
        let step =
            Step::begin("handover, virsh migrate, and virsh domjobabort in the middle of it");
        let [source, _] = &self.hosts;
        let _listener = listen(self.volume.brick_node(1))?;
        source.virsh(&["migrate-setspeed", domain::NAME, SLOW])?;
        self.handover(&["--to", self.volume.brick_node(1).address()])?;
        let migrated = self.migrate(|| {
            wait_until("memory to be sent", PATIENCE, || {
                let job = source.virsh(&["domjobinfo", domain::NAME])?;
                job.contains("Memory processed").then_some(()).ok_or(job)
            })?;
            Ok(source.virsh(&["domjobabort", domain::NAME]).map(drop)?)
        })?;
        if migrated.status.success() || !migrated.stderr.contains("canceled by client") {
            let logs = [0, 1].map(|host| self.hosts[host].qemu_log(domain::NAME));
            return Err(format!("not cancelled: {migrated:?}\n{}\n{}", logs[0], logs[1]).into());
        }
        self.handover(&["--cancel"])?;
        self.owned_by(0)?;
        if let Some(ended) = load.poll()? {
            return Err(format!("the guest's writes ended: {ended:?}").into());
        }
        source.virsh(&["migrate-setspeed", domain::NAME, FAST])?;
        step.done(migrated.stderr.trim());
        Ok(())
    }

    /// Moves the guest. Its answers come over the second host from now on.
    fn moved(&mut self, load: &Job) -> Result<Job, Box<dyn Error>> {
        let step = Step::begin("handover, virsh migrate --live");
        let listener = listen(self.volume.brick_node(1))?;
        self.handover(&["--to", self.volume.brick_node(1).address()])?;
        let migrated = self.migrate(|| Ok(()))?;
        if !migrated.status.success() {
            let log = self.hosts[1].qemu_log(domain::NAME);
            return Err(format!("virsh migrate: {}\n{log}", migrated.stderr).into());
        }
        let agent = accept(&listener)?;
        let load = agent.adopt(load, &self.agent);
        self.agent = agent;
        self.owned_by(1)?;
        step.done("the guest runs on the second host, which holds the image");
        Ok(load)
    }

    /// Ends the writes, which must have seen no error, the guest and the daemons.
    fn end(&self, load: Job, source: Daemon, target: Daemon) -> Result<(), Box<dyn Error>> {
        let step =
            Step::begin("fio in the guest, to the end of its round, and powering the guest off");
        let end = self.agent.start("touch /run/end")?;
        let ended = [end.wait(PATIENCE)?, load.wait(PATIENCE)?];
        if ended.iter().any(|reply| reply.status != 0) {
            return Err(format!("in the guest: {ended:?}").into());
        }
        self.agent.start("sync; poweroff -f")?;
        wait_until("the guest's end", PATIENCE, || {
            let state = self.hosts[1].state(domain::NAME);
            state.map_or(Ok(()), Err)
        })?;
        target.stop()?;
        source.stop()?;
        step.done("every byte read back as written");
        Ok(())
    }

    /// `virsh migrate` on the first host, and something else meanwhile.
    fn migrate(
        &self,
        meanwhile: impl FnOnce() -> Result<(), Box<dyn Error>>,
    ) -> Result<Output, Box<dyn Error>> {
        let [source, target] = &self.hosts;
        let uri = target.uri();
        thread::scope(|scope| {
            let line = ["migrate", "--live", domain::NAME, &uri];
            let migrated =
                scope.spawn(move || source.try_virsh(&line).map_err(|error| error.to_string()));
            meanwhile()?;
            let migrated = migrated.join().map_err(|_| "virsh's thread panicked")?;
            Ok(migrated?)
        })
    }

    /// `bypass-blk` on a host, with the folder of its control sockets.
    fn bypass_blk(&self, host: usize, verb: &str, args: &[&str]) -> Result<String, Box<dyn Error>> {
        let node = self.volume.brick_node(host);
        let mut command = node.command(&self.program.path().to_string_lossy());
        command.arg(verb).args(args);
        command.arg("--run-dir").arg(run_dir(node));
        Ok(run_command(&mut command, PATIENCE)?)
    }

    fn handover(&self, args: &[&str]) -> Result<(), Box<dyn Error>> {
        let image = format!("{}{IMAGE}", self.volume.name());
        let args = [&[&image[..]], args].concat();
        self.bypass_blk(0, "handover", &args).map(drop)
    }

    /// The guest runs on this host of the two and not on the other, whose daemon has not the image.
    fn owned_by(&self, owner: usize) -> Result<(), Box<dyn Error>> {
        wait_until("one owner", PATIENCE, || {
            let found = [0, 1].map(|host| self.seen(host));
            let right = found.iter().enumerate().all(|(host, (state, custody))| {
                let runs = state.as_deref() == Some("running");
                match host == owner {
                    true => runs && custody == "held",
                    false => !runs && custody == "vacant",
                }
            });
            right.then_some(()).ok_or(format!("{found:?}"))
        })?;
        Ok(())
    }

    /// What libvirt says of the domain on a host, and bypass-blk of the image.
    fn seen(&self, host: usize) -> (Option<String>, String) {
        let status = self.bypass_blk(host, "status", &["--json"]);
        let custody = status.map_err(|error| error.to_string()).and_then(|text| {
            let images: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let custody = images[0]["serving"]["custody"].as_str();
            Ok(custody.unwrap_or("none").to_owned())
        });
        let custody = custody.unwrap_or_else(|error| error);
        (self.hosts[host].state(domain::NAME), custody)
    }
}

fn agent_socket(node: &Node) -> PathBuf {
    run_dir(node).join(domain::AGENT)
}

/// Listens for the QEMU of a guest: once only, as one that failed may have been here before.
fn listen(node: &Node) -> Result<UnixListener, Box<dyn Error>> {
    let path = agent_socket(node);
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    // QEMU is libvirt's user.
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn accept(listener: &UnixListener) -> Result<Agent, Box<dyn Error>> {
    let accepted = wait_until("QEMU to connect", PATIENCE, || {
        listener.accept().map_err(|error| error.to_string())
    });
    let (stream, _) = accepted?;
    stream.set_nonblocking(false)?;
    Ok(Agent::over(stream, Path::new(domain::AGENT))?)
}
