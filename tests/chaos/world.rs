//! The cluster, the daemon that serves and its guest's load: faults happen to
//! them here, and everything comes back.

use std::time::{Duration, Instant};

use bypass_harness::{Cluster, Volume};
use rustix::process::{Pid, Signal, kill_process};

use super::checks;
use super::healer::Healers;
use super::image::Image;
use super::load::{Done, Load, Tally};
use super::oracle::Oracle;
use super::rng::Rng;
use super::schedule::{Ending, Fault, Finisher, NODES};
use crate::support::daemon::{Daemon, Refused};
use crate::support::small_disk::SmallDisk;
use crate::support::{IMAGE, IMAGE_BYTES};

/// How long a new daemon may be refused once every fault is mended: bricks keep
/// the locks of a cut-off connection for a while.
const BACK: Duration = Duration::from_secs(180);
/// How long a heal may take.
const HEAL: Duration = Duration::from_secs(400);

/// Exit codes that are a good reason not to serve while something is broken:
/// locked, healing, no quorum, the local brick is down or fails meanwhile, no
/// brick answers.
const BROKEN: [i32; 6] = [40, 45, 44, 35, 1, 16];
/// Not the fresh copy: only where no session was last.
const STALE: i32 = 42;

/// A daemon with its guest.
struct Serving {
    daemon: Daemon,
    load: Option<Load>,
    /// It was asked to be, once or more.
    upgraded: bool,
}

/// See the module.
pub struct World {
    cluster: Cluster,
    volume: Volume,
    image: Image,
    /// Those of the bricks.
    disks: Vec<SmallDisk>,
    healers: Healers,
    serving: Option<Serving>,
    /// While no load has it.
    oracle: Option<Oracle>,
    /// The brick that was served last, which has the fresh copy.
    pub local: usize,
    /// Cut-off daemons whose image was opened elsewhere.
    overtaken: Vec<Daemon>,
    quorum_timeout: &'static str,
    frozen: Vec<Pid>,
    rng: Rng,
    begin: Instant,
    /// What was done, of the present round.
    pub tally: Tally,
    /// What happened when, of the present round.
    pub journal: Vec<String>,
}

impl World {
    /// A cluster with a volume whose image is all zeroes, each brick on one of `disks`.
    pub fn new(
        cluster: &Cluster,
        volume: &Volume,
        image: Image,
        disks: Vec<SmallDisk>,
        begin: Instant,
    ) -> Self {
        Self {
            image,
            cluster: cluster.clone(),
            volume: volume.clone(),
            disks,
            healers: Healers::start(cluster),
            serving: None,
            oracle: Some(Oracle::new(IMAGE_BYTES, begin)),
            local: 0,
            overtaken: Vec::new(),
            quorum_timeout: "10m",
            frozen: Vec::new(),
            rng: Rng::new(0, 0),
            begin,
            tally: Tally::default(),
            journal: Vec::new(),
        }
    }

    /// Begins a round: serves the image, from brick `brick` unless a session is
    /// alive.
    pub fn begin_round(
        &mut self,
        rng: Rng,
        brick: usize,
        quorum_timeout: &'static str,
    ) -> Result<(), String> {
        self.rng = rng;
        self.tally = Tally::default();
        self.journal.clear();
        match self.serving.take() {
            Some(serving) => self.start_load(serving.daemon),
            None => {
                self.quorum_timeout = quorum_timeout;
                self.local = brick;
                self.serve_at_last(brick)
            }
        }
    }

    fn note(&mut self, text: impl AsRef<str>) {
        let at = self.begin.elapsed().as_secs_f64();
        let clock = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        self.journal
            .push(format!("{clock} {at:9.3} s  {}", text.as_ref()));
    }

    /// Makes a fault happen.
    pub fn suffer(&mut self, fault: Fault) -> Result<(), String> {
        self.note(format!("{fault:?}"));
        match fault {
            Fault::KillDaemon => self.kill_and_restart(None)?,
            Fault::KillDaemonAndMove(node) => self.kill_and_restart(Some(node))?,
            Fault::Rival(node) => self.rival(node)?,
            Fault::KillBrick(brick) => text(self.volume.crash_brick(brick))?,
            Fault::StartBricks => text(self.volume.revive())?,
            Fault::Cut(node) => text(self.cluster.cut(node))?,
            Fault::Mend(node) => text(self.cluster.restore(node))?,
            Fault::Part(one, other) => text(self.cluster.part(one, other))?,
            Fault::Rejoin(one, other) => text(self.cluster.rejoin(one, other))?,
            Fault::KillSelfHeal(node) => text(self.volume.crash_self_heal_daemon(node))?,
            Fault::KillHealer(node) => self.healers.kill(node),
            Fault::Upgrade => self.upgrade(),
            Fault::FreezeDaemon => self.freeze(self.serving.as_ref().map(|s| s.daemon.pid())),
            Fault::FreezeHealer(node) => self.freeze(Some(self.healers.pid(node))),
            Fault::FreezeBrick(brick) => self.freeze(text(self.volume.brick_pid(brick))?),
            Fault::ClearLocks => self.clear_locks(),
            Fault::Fill(node) => self.disks[node].fill_but(0),
            Fault::MakeRoom(node) => self.disks[node].make_room(),
            Fault::Thaw => self.thaw(),
        }
        Ok(())
    }

    /// A brick that is down has none, and glusterd says so.
    fn clear_locks(&mut self) {
        if let Err(error) = self.volume.clear_locks(IMAGE, "inode") {
            self.note(format!("not all locks were cleared: {error}"));
        }
    }

    /// Not waited for, so that other faults come in between.
    fn upgrade(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.daemon.ask_to_upgrade();
            serving.upgraded = true;
        }
    }

    /// A new process that finds too much broken ends, as if it had been killed.
    fn settle_upgrades(&mut self) -> Result<(), String> {
        let upgraded = self.serving.as_mut().filter(|serving| serving.upgraded);
        if upgraded.is_some_and(|serving| !serving.daemon.settle_upgrades()) {
            self.note("the upgraded daemon has ended");
            self.kill_daemon()?;
        }
        Ok(())
    }

    fn freeze(&mut self, pid: Option<u32>) {
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // Fails when it is gone already.
            let _ = kill_process(pid, Signal::STOP);
            self.frozen.push(pid);
        }
    }

    fn thaw(&mut self) {
        for pid in self.frozen.drain(..) {
            // It may have been killed since.
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    fn kill_and_restart(&mut self, elsewhere: Option<usize>) -> Result<(), String> {
        self.kill_daemon()?;
        if let Some(other) = elsewhere.filter(|&other| other != self.local)
            && self.try_serve(other, "1s", &[STALE])?
        {
            return Ok(());
        }
        self.try_serve(self.local, "2s", &[]).map(drop)
    }

    /// SIGKILL, and a look at what it leaves.
    pub fn kill_daemon(&mut self) -> Result<(), String> {
        if let Some(Serving { daemon, load, .. }) = self.serving.take() {
            daemon.kill();
            self.take(load.map(Load::abandon))?;
        }
        self.check_served()
    }

    fn take(&mut self, done: Option<Done>) -> Result<(), String> {
        let Some(done) = done else { return Ok(()) };
        self.oracle = Some(done.oracle);
        self.tally += done.tally;
        match done.complaints.is_empty() {
            true => Ok(()),
            false => Err(done.complaints.join("\n")),
        }
    }

    fn oracle(&self) -> Result<&Oracle, String> {
        self.oracle.as_ref().ok_or_else(|| "a load runs".to_owned())
    }

    fn check_served(&self) -> Result<(), String> {
        checks::served_copy_is_right(self.image, &self.volume, self.local, self.oracle()?)
    }

    /// Tries to open the image on a brick. `also` are further exit codes that are a
    /// good reason to refuse.
    fn try_open(
        &mut self,
        brick: usize,
        patience: &str,
        also: &[i32],
    ) -> Result<Option<Daemon>, String> {
        let options = [
            "--lock-timeout",
            patience,
            "--quorum-timeout",
            self.quorum_timeout,
        ];
        match Daemon::try_serve(&self.volume, brick, &options) {
            Ok(daemon) => {
                self.note(format!("served from brick {brick} by pid {}", daemon.pid()));
                Ok(Some(daemon))
            }
            Err(Refused { code, log }) => {
                let last = log.lines().last().unwrap_or_default();
                self.note(format!("brick {brick} refused with {code:?}: {last}"));
                let good = |code| BROKEN.contains(&code) || also.contains(&code);
                match code.is_some_and(good) {
                    true => Ok(None),
                    false => Err(format!(
                        "brick {brick} not served without a good reason: {log}"
                    )),
                }
            }
        }
    }

    /// As [`World::try_open`], with a guest; says whether the image is served.
    fn try_serve(&mut self, brick: usize, patience: &str, also: &[i32]) -> Result<bool, String> {
        let Some(daemon) = self.try_open(brick, patience, also)? else {
            return Ok(false);
        };
        self.serve_load(brick, daemon)?;
        Ok(true)
    }

    /// A session is open: what it serves must be right before it is written.
    fn serve_load(&mut self, brick: usize, daemon: Daemon) -> Result<(), String> {
        self.local = brick;
        self.check_served()
            .map_err(|wrong| format!("opened brick {brick}: {wrong}"))?;
        self.start_load(daemon)
    }

    fn start_load(&mut self, daemon: Daemon) -> Result<(), String> {
        let oracle = self.oracle.take().ok_or("a load runs")?;
        let load = Some(Load::start(daemon.socket(), oracle, self.rng.fork()));
        self.serving = Some(Serving {
            daemon,
            load,
            upgraded: false,
        });
        Ok(())
    }

    /// A second daemon while ours lives: it may open only if ours has lost its locks
    /// and has nothing that the others miss.
    fn rival(&mut self, node: usize) -> Result<(), String> {
        let Some(rival) = self.try_open(node, "1s", &[STALE])? else {
            return Ok(());
        };
        if let Some(Serving { daemon, load, .. }) = self.serving.take() {
            self.take(load.map(Load::abandon))?;
            self.overtaken.push(daemon);
        }
        self.serve_load(node, rival)
    }

    /// Everything comes back, the daemon too.
    pub fn recover(&mut self) -> Result<(), String> {
        self.thaw();
        self.disks.iter().for_each(SmallDisk::make_room);
        for node in 0..NODES {
            text(self.cluster.restore(node))?;
            text(self.cluster.rejoin(node, (node + 1) % NODES))?;
        }
        text(self.cluster.wait_peers())?;
        text(self.volume.revive())?;
        self.note("all links, bricks and self-heal daemons are back");
        for daemon in std::mem::take(&mut self.overtaken) {
            daemon.stop();
        }
        self.healers.check()?;
        self.settle_upgrades()?;
        if self.serving.is_none() {
            self.serve_at_last(self.local)?;
        }
        Ok(())
    }

    /// The image must be served, however often it takes.
    fn serve_at_last(&mut self, brick: usize) -> Result<(), String> {
        let begin = Instant::now();
        while !self.try_serve(brick, "20s", &[])? {
            if begin.elapsed() > BACK {
                return Err(format!("brick {brick} not served though all is mended"));
            }
        }
        Ok(())
    }

    /// The load ends in order; the daemon lives on, and its copy must be right.
    fn quiesce(&mut self) -> Result<(), String> {
        let serving = self.serving.as_mut().ok_or("nothing is served")?;
        let done = serving.load.take().map(Load::finish);
        let taken = self.take(done);
        if let (Err(wrong), Some(serving)) = (taken, &self.serving) {
            let status = serving.daemon.status();
            return Err(format!("{wrong}\nstatus: {status:#}"));
        }
        self.note("the load has ended");
        self.check_served()
    }

    /// The copies are healed; then all of them must be what was acknowledged.
    /// Returns how long the heal took.
    pub fn end_round(&mut self, ending: Ending) -> Result<Duration, String> {
        self.note(format!("the ending begins: {ending:?}"));
        match ending {
            Ending::GoOn => self.quiesce()?,
            Ending::Term(finisher) => {
                self.prepare(finisher)?;
                self.quiesce()?;
                let serving = self.serving.take().ok_or("nothing is served")?;
                let status = serving.daemon.stop();
                if !status.success() {
                    return Err(format!("SIGTERM ended the daemon with {status}"));
                }
            }
            Ending::Kill(finisher) => {
                self.prepare(finisher)?;
                std::thread::sleep(self.rng.millis(20, 2000));
                self.kill_daemon()?;
            }
        }
        if let Ending::Term(Finisher::NewHealers) | Ending::Kill(Finisher::NewHealers) = ending {
            self.healers.start_all();
        }
        self.note("now to be healed");
        self.check_served()?;
        let begin = Instant::now();
        self.image.wait_healed(&self.volume, HEAL)?;
        let took = begin.elapsed();
        self.note("healed");
        self.healers.check()?;
        checks::nobody_panicked(&self.cluster)?;
        let copy = checks::all_copies_are_right(self.image, &self.volume, self.oracle()?)?;
        if self.serving.is_none()
            && let Some(oracle) = &mut self.oracle
        {
            oracle.settle(&copy);
        }
        self.everybody_back(ending)?;
        Ok(took)
    }

    /// Nobody but the chosen one heals.
    fn prepare(&mut self, finisher: Finisher) -> Result<(), String> {
        match finisher {
            Finisher::Either => {}
            Finisher::Stock => self.healers.kill_all(),
            Finisher::Healers | Finisher::NewHealers => {
                if finisher == Finisher::NewHealers {
                    self.healers.kill_all();
                }
                for node in 0..NODES {
                    text(self.volume.crash_self_heal_daemon(node))?;
                }
            }
        }
        Ok(())
    }

    fn everybody_back(&mut self, ending: Ending) -> Result<(), String> {
        match ending {
            Ending::Term(Finisher::Stock) | Ending::Kill(Finisher::Stock) => {
                self.healers.start_all();
                Ok(())
            }
            _ => text(self.volume.revive()),
        }
    }
}

fn text<T>(result: bypass_harness::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}
