//! A guest: QEMU with translated CPUs (never KVM), a console that is kept, and
//! an agent that runs scripts in it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::agent::{Agent, Job, Reply};
use crate::disk::escape;
use crate::error::AtPath;
use crate::{
    Background, Disk, Error, FioJob, FioReport, GuestImage, Place, Qmp, Result, wait_until,
};

/// Boot takes some 3 s on an idle machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
const SOCKET_DEADLINE: Duration = Duration::from_secs(20);
const MIGRATION_DEADLINE: Duration = Duration::from_secs(180);
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(60);
/// How much of the console goes into an error.
const CONSOLE_TAIL: usize = 2000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Its disks: `/dev/vda`, `/dev/vdb`, … in this order.
    pub disks: Vec<Disk>,
    /// Memory in MiB (and a little), as a memfd that a vhost-user device can map.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Whether it boots again after a reset or a reboot; otherwise QEMU ends.
    pub reboots: bool,
    /// More arguments for QEMU.
    pub extra: Vec<String>,
}

/// Added to a guest's memory so that it is no multiple of 64 pages. Without KVM, QEMU before
/// 9.0 forgets pages that a migrating guest writes if it is: the way it collects dirty pages of
/// aligned memory leaves the CPU's TLB as it is ("physmem: Fix migration dirty bitmap coherency
/// with TCG memory access", QEMU 03bfc2188f06).
const ODD_KIB: u32 = 8;

impl GuestConfig {
    /// 512 MiB, one CPU and these disks; a reset ends it.
    pub fn new(disks: Vec<Disk>) -> GuestConfig {
        GuestConfig {
            disks,
            memory_mib: 512,
            cpus: 1,
            reboots: false,
            extra: Vec::new(),
        }
    }
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Background,
    agent: Agent,
    qmp: Qmp,
    console: PathBuf,
    // Last, so that the run outlives QEMU.
    _place: Place,
}

impl Guest {
    /// Boots a guest whose QEMU runs at `place`, and waits until it answers.
    pub fn boot(image: &GuestImage, place: &Place, config: &GuestConfig) -> Result<Guest> {
        let (mut guest, errors) = Self::launch(image, place, config, &[])?;
        guest.wait_ready(&errors)?;
        Ok(guest)
    }

    /// Starts a QEMU at `place` that waits for a guest to be migrated to `uri`, such as
    /// `tcp:10.0.0.2:4444`.
    pub fn incoming(
        image: &GuestImage,
        place: &Place,
        config: &GuestConfig,
        uri: &str,
    ) -> Result<Guest> {
        Ok(Self::launch(image, place, config, &["-incoming", uri])?.0)
    }

    fn launch(
        image: &GuestImage,
        place: &Place,
        config: &GuestConfig,
        more: &[&str],
    ) -> Result<(Guest, PathBuf)> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |end: &str| place.dir().join(format!("guest{id}.{end}"));
        let errors = file("err");
        let mut command = place.command("qemu-system-x86_64");
        command
            .args(machine_args(image, config))
            .args(port_args(&file("console"), &file("agent"), &file("qmp")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors).at("create", &errors)?);
        add_disks(&mut command, image, config);
        command.args(more);
        let mut qemu = Background::start(&mut command)?;
        // A socket is there before QEMU listens on it.
        let mut connect = |socket: &Path| {
            wait_until("QEMU's sockets", SOCKET_DEADLINE, || {
                match (UnixStream::connect(socket), qemu.exited()) {
                    (_, Some(status)) => Ok(Err(died(status, &errors))),
                    (Ok(stream), None) => Ok(Ok(stream)),
                    (Err(error), None) => Err(error.to_string()),
                }
            })?
        };
        let (agent, qmp) = (file("agent"), file("qmp"));
        let agent = Agent::over(connect(&agent)?, &agent)?;
        let qmp = Qmp::over(connect(&qmp)?, &qmp)?;
        let guest = Guest {
            qemu,
            agent,
            qmp,
            console: file("console"),
            _place: place.clone(),
        };
        Ok((guest, errors))
    }

    /// Begins to migrate the guest to a QEMU that waits at `uri`.
    pub fn migrate(&self, uri: &str) -> Result<()> {
        let begin = json!({ "uri": uri });
        self.qmp.execute("migrate", begin).map(drop)
    }

    /// How far the migration is: `active`, `completed`, `failed`, `cancelled`, …
    pub fn migration(&self) -> Result<String> {
        let told = self.qmp.execute("query-migrate", json!({}))?;
        Ok(told["status"].as_str().unwrap_or("none").to_owned())
    }

    /// Waits until the migration has this status.
    pub fn wait_migration(&self, status: &str) -> Result<()> {
        wait_until(
            format!("a migration that is {status}"),
            MIGRATION_DEADLINE,
            || {
                let found = self.migration().map_err(|error| error.to_string())?;
                (found == status).then_some(()).ok_or(found)
            },
        )
    }

    /// A script that was started before the guest came here from `former`.
    pub fn adopt(&self, job: &Job, former: &Guest) -> Job {
        self.agent.adopt(job, &former.agent)
    }

    fn wait_ready(&mut self, errors: &PathBuf) -> Result<()> {
        let (qemu, agent, console) = (&mut self.qemu, &self.agent, &self.console);
        wait_until("the guest to boot", BOOT_DEADLINE, || {
            match (agent.is_ready(), qemu.exited()) {
                (true, None) => Ok(Ok(())),
                (_, Some(status)) => Ok(Err(died_booting(status, errors, console))),
                (false, None) => Err(tail(console)),
            }
        })?
    }

    /// Boots a guest, runs one script in it, powers it off, and returns the
    /// lines the script printed. A failure status of the script is an error.
    pub fn run_once(
        image: &GuestImage,
        place: &Place,
        config: &GuestConfig,
        script: &str,
        deadline: Duration,
    ) -> Result<Vec<String>> {
        let guest = Guest::boot(image, place, config)?;
        let output = guest.run(script, deadline)?;
        guest.power_off()?;
        Ok(output.lines().map(str::to_owned).collect())
    }

    /// Starts a shell script in the guest and returns at once.
    pub fn start(&self, script: &str) -> Result<Job> {
        self.agent.start(script)
    }

    /// Runs a shell script in the guest and returns its standard output; a
    /// failure status is an error with its standard error and the console's end.
    pub fn run(&self, script: &str, deadline: Duration) -> Result<String> {
        let reply = self.start(script)?.wait(deadline)?;
        self.check(reply)
    }

    fn check(&self, reply: Reply) -> Result<String> {
        if reply.status == 0 {
            return Ok(reply.stdout);
        }
        Err(Error::Guest {
            channel: "agent",
            text: format!(
                "exit status {}: {}{}\nconsole: {}",
                reply.status,
                reply.stdout,
                reply.stderr,
                tail(&self.console)
            ),
        })
    }

    /// Starts fio in the guest and returns at once; [`Guest::finish_fio`] waits.
    pub fn start_fio(&self, job: &FioJob) -> Result<Job> {
        self.start(&format!("fio {}", job.args()))
    }

    /// Waits for a job of [`Guest::start_fio`] and reads its report.
    pub fn finish_fio(&self, job: Job, deadline: Duration) -> Result<FioReport> {
        FioReport::parse(&self.check(job.wait(deadline)?)?)
    }

    /// Runs fio in the guest. An I/O error or a wrong checksum is an error.
    pub fn fio(&self, job: &FioJob, deadline: Duration) -> Result<FioReport> {
        self.finish_fio(self.start_fio(job)?, deadline)
    }

    /// All the kernel has printed so far.
    pub fn console(&self) -> Result<String> {
        let bytes = fs::read(&self.console).at("read", &self.console)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// QEMU's machine protocol.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Stops the virtual CPUs.
    pub fn pause(&self) -> Result<()> {
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// Lets the virtual CPUs go on.
    pub fn resume(&self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Presses the reset button, and waits until the guest answers again. What ran in
    /// it is gone without notice.
    pub fn reset(&mut self) -> Result<()> {
        self.boot_again(|guest| guest.qmp.execute("system_reset", json!({})).map(drop))
    }

    /// Reboots from inside without syncing, and waits until the guest answers again.
    pub fn reboot(&mut self) -> Result<()> {
        self.boot_again(|guest| guest.start("reboot -f").map(drop))
    }

    fn boot_again(&mut self, begin: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.agent.expect_ready();
        begin(self)?;
        self.wait_ready(&PathBuf::new())
    }

    /// Kills QEMU with SIGKILL.
    pub fn kill(mut self) {
        self.qemu.kill();
    }

    /// Syncs and powers off from inside, and waits for QEMU's end.
    pub fn power_off(mut self) -> Result<()> {
        // There is no answer to wait for: the agent goes down with the guest.
        self.start("sync; poweroff -f")?;
        self.qemu.wait(POWER_OFF_DEADLINE).map(drop)
    }

    /// Ends QEMU in order, with no notice to the guest.
    pub fn quit(mut self) -> Result<()> {
        self.qmp.execute("quit", json!({}))?;
        self.qemu.wait(POWER_OFF_DEADLINE).map(drop)
    }
}

fn machine_args(image: &GuestImage, config: &GuestConfig) -> Vec<String> {
    let mut args: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .map(String::from)
        .into();
    if !config.reboots {
        args.push("-no-reboot".into());
    }
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("-machine", "q35,accel=tcg,memory-backend=mem".into());
    option("-cpu", "max".into());
    option("-smp", config.cpus.to_string());
    let memory = format!("{}K", config.memory_mib * 1024 + ODD_KIB);
    option("-m", memory.clone());
    option(
        "-object",
        format!("memory-backend-memfd,id=mem,size={memory},share=on"),
    );
    option("-kernel", image.kernel.display().to_string());
    option("-initrd", image.initrd.display().to_string());
    // A kernel that fills fresh pages dirties them itself: a device that logs nothing of
    // what it writes would pass every test of migration. On a busy host a translated guest's
    // timer is late for the kernel's test of it: "IO-APIC + timer doesn't work", it panics.
    option(
        "-append",
        "console=ttyS0 panic=-1 mitigations=off nokaslr init_on_alloc=0 no_timer_check".into(),
    );
    args
}

fn port_args(console: &PathBuf, agent: &PathBuf, qmp: &PathBuf) -> Vec<String> {
    let path = |path: &PathBuf| escape(&path.display().to_string());
    let mut args = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option(
        "-chardev",
        format!("file,id=console,path={}", path(console)),
    );
    option("-serial", "chardev:console".into());
    option("-qmp", format!("unix:{},server=on,wait=off", path(qmp)));
    option(
        "-chardev",
        format!("socket,id=agent,path={},server=on,wait=off", path(agent)),
    );
    option("-device", "virtio-serial-pci".into());
    option("-device", "virtserialport,chardev=agent,name=agent".into());
    args
}

/// The guest's disks in their order, and the tools after them.
fn add_disks(command: &mut Command, image: &GuestImage, config: &GuestConfig) {
    for (index, disk) in config.disks.iter().enumerate() {
        command.args(disk.args(index));
    }
    let tools = escape(&image.tools.display().to_string());
    command.arg("-blockdev");
    command.arg(format!(
        "driver=file,node-name=tools,read-only=on,filename={tools}"
    ));
    command.args(["-device", "virtio-blk-pci,drive=tools,serial=bypass-tools"]);
    command.args(&config.extra);
}

fn died(status: std::process::ExitStatus, errors: &PathBuf) -> Error {
    Error::Command {
        command: "qemu-system-x86_64".into(),
        status: status.to_string(),
        output: fs::read_to_string(errors)
            .unwrap_or_default()
            .trim()
            .to_owned(),
    }
}

/// A guest's kernel that panics ends QEMU without a word of QEMU's.
fn died_booting(status: std::process::ExitStatus, errors: &PathBuf, console: &PathBuf) -> Error {
    match died(status, errors) {
        Error::Command {
            command,
            status,
            output,
        } => Error::Command {
            command,
            status,
            output: format!("{output}\nconsole: {}", tail(console)),
        },
        other => other,
    }
}

fn tail(console: &PathBuf) -> String {
    let bytes = fs::read(console).unwrap_or_default();
    let from = bytes.len().saturating_sub(CONSOLE_TAIL);
    String::from_utf8_lossy(&bytes[from..]).into_owned()
}
