//! A guest that writes and verifies, two hosts between which it moves, and a witness who
//! never sees both of them hold the image.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, Guest, GuestConfig, GuestImage, Job, Node, Volume, VolumeKind, wait_until,
};
use serde_json::{Value, json};

use super::daemon::{BINARY, Daemon, run_dir, run_on, state_dir};
use super::healer::Healer;
use super::{IMAGE, PATIENCE, volume_with_image};

/// Guests are slow here: translated, two cores.
const GUEST_PATIENCE: Duration = Duration::from_secs(120);
/// Bricks give up a connection that was cut, and its locks, after seconds and not minutes.
const SOON_GONE: [(&str, &str); 4] = [
    ("server.tcp-user-timeout", "5"),
    ("server.keepalive-time", "3"),
    ("server.keepalive-interval", "1"),
    ("server.keepalive-count", "3"),
];
/// Where the target's QEMU listens.
const PORT: u16 = 4444;
/// Writes and verifies, each round with other bytes, until it is told to end.
const LOAD: &str = "
n=0
until [ -e /run/end ]; do
    n=$((n + 1))
    fio --name=load --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=16 --size=12M \\
        --ioengine=libaio --direct=1 --thread --invalidate=0 --randseed=$n \\
        --verify=crc32c --verify_fatal=1 --do_verify=1 >/run/load 2>&1 || {
        cat /run/load >&2
        exit 1
    }
done
echo $n";

/// Changes some 40 MiB of its memory all the time.
const CHANGES: &str =
    "until [ -e /run/end ]; do for n in $(seq 20); do cp /bin/busybox /run/junk$n; done; done";

/// Two hosts of three, one guest that writes and verifies at the first.
pub struct Move {
    pub cluster: Cluster,
    pub volume: Volume,
    pub source: Daemon,
    pub target: Daemon,
    pub healers: [Healer; 2],
    /// The source's QEMU.
    pub here: Guest,
    /// The target's, while there is one.
    pub there: Option<Guest>,
    image: GuestImage,
    load: Job,
    witness: Witness,
}

impl Move {
    /// The guest is at work when this returns. `healing` are options of the healers.
    pub fn prepare(healing: &[&str]) -> Move {
        let cluster = Cluster::start(3).unwrap();
        let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &SOON_GONE);
        let source = Daemon::serve(&volume, 0, &["--lock-timeout", "60s"]);
        let target = Daemon::serve(&volume, 1, &["--incoming", "--lock-timeout", "60s"]);
        let healers = [0, 1].map(|brick| Healer::start(volume.brick_node(brick), healing));
        let witness = Witness::start([0, 1].map(|brick| volume.brick_node(brick).clone()));
        let image = GuestImage::prepare().unwrap();
        let node = volume.brick_node(0);
        let here = Guest::boot(&image, node.place(), &config(node, &source)).unwrap();
        let load = here.start(LOAD).unwrap();
        source.wait_state("dirty");
        let mut to = Move {
            cluster,
            volume,
            source,
            target,
            healers,
            here,
            there: None,
            image,
            load,
            witness,
        };
        to.new_target();
        to
    }

    /// A QEMU that waits for the guest at the target.
    pub fn new_target(&mut self) {
        // The port is that of the last one.
        self.there = None;
        let node = self.volume.brick_node(1);
        let config = config(node, &self.target);
        let there = Guest::incoming(&self.image, node.place(), &config, &self.uri());
        self.there = Some(there.unwrap());
    }

    fn uri(&self) -> String {
        format!("tcp:{}:{PORT}", self.volume.brick_node(1).address())
    }

    /// `bypass-blk handover` at the source, to the target's host.
    pub fn handover(&self, extra: &[&str]) -> (Option<i32>, String) {
        let node = self.volume.brick_node(0);
        let (run_dir, name) = (run_dir(node), format!("{}{IMAGE}", self.volume.name()));
        // Guests write fast: it is the rest that counts, whatever it takes.
        let mut args = vec!["handover", &name, "--max-downtime", "60s", "--run-dir"];
        let to = self.volume.brick_node(1).address();
        args.extend([run_dir.to_str().unwrap(), "--to", to]);
        args.extend(extra);
        run_on(node, &args)
    }

    /// [`Move::handover`], which must succeed.
    pub fn hand_over(&self) {
        let (code, said) = self.handover(&[]);
        assert_eq!(code, Some(0), "{said}");
    }

    /// The same after the hosts lost each other: until the brick at the target has given
    /// up the healer's former connection, it is refused.
    pub fn hand_over_in_the_end(&self) {
        let handed_over = || match self.handover(&[]) {
            (Some(0), _) => Ok(()),
            (Some(74), said) => Err(said),
            (code, said) => panic!("{code:?}: {said}"),
        };
        wait_until("a handover", GUEST_PATIENCE, handed_over).unwrap();
    }

    /// `qemu/migrate` at the source; its exit code and output.
    pub fn script(&self, extra: &[&str]) -> (Option<i32>, String) {
        let [source, target] = [0, 1].map(|brick| self.volume.brick_node(brick));
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (name, uri) = (format!("{}{IMAGE}", self.volume.name()), self.uri());
        let remote = format!("nsenter --net=/run/netns/{}", target.netns());
        let places = [
            ("--qmp", text(qmp(source))),
            ("--target-qmp", text(qmp(target))),
            ("--run-dir", text(run_dir(source))),
            ("--target-run-dir", text(run_dir(target))),
        ];
        let mut command = source.command(concat!(env!("CARGO_MANIFEST_DIR"), "/qemu/migrate"));
        command
            .args(["--image", &name, "--to", target.address(), "--uri", &uri])
            .args(["--remote", &remote, "--program", BINARY])
            .args(["--max-downtime", "60s", "--memory-downtime", "60000"])
            .args(
                places
                    .iter()
                    .flat_map(|(option, path)| [option, path.as_str()]),
            )
            .args(extra);
        let output = bypass_harness::finish(&mut command, GUEST_PATIENCE).unwrap();
        (output.status.code(), output.stdout + &output.stderr)
    }

    /// Whoever migrates comes to no end.
    pub fn slow_down(&self) {
        self.parameters(json!({ "max-bandwidth": 65536 }));
    }

    /// Begins to migrate, so slowly that it comes to no end.
    pub fn begin(&self) {
        self.slow_down();
        self.here.migrate(&self.uri()).unwrap();
        self.here.wait_migration("active").unwrap();
    }

    /// Begins to migrate; all of the memory but a few pages has been sent once then. What was
    /// changed meanwhile is more than may be left for the end, and is not sent before
    /// [`Move::go_on`]: on a busy host the guest changes less than could be sent.
    pub fn begin_and_send_all(&self) {
        self.here.start(CHANGES).unwrap();
        self.parameters(json!({ "downtime-limit": 1, "max-bandwidth": 16 << 20 }));
        self.here.migrate(&self.uri()).unwrap();
        wait_until("a pass over the memory", PATIENCE, || {
            let told = self.here.qmp().execute("query-migrate", json!({}));
            let told = told.map_err(|error| error.to_string())?;
            let looks = told["ram"]["dirty-sync-count"].as_u64();
            // The first look was before the pass.
            let passed = looks.is_some_and(|looks| looks >= 2);
            passed.then_some(()).ok_or(told.to_string())
        })
        .unwrap();
        self.slow_down();
        assert_eq!(self.here.migration().unwrap(), "active");
    }

    /// Lets the migration that was begun come to its end.
    pub fn go_on(&self) {
        self.speed_up();
        self.parameters(json!({ "downtime-limit": 60_000 }));
    }

    /// The guest is at the target, and the source still sends what its copy misses.
    pub fn go_and_leave_something(&self) {
        self.hand_over();
        self.begin();
        self.go_on();
        self.here.wait_migration("completed").unwrap();
        self.source.wait_custody("leaving");
    }

    /// Undoes [`Move::slow_down`].
    pub fn speed_up(&self) {
        self.parameters(json!({ "max-bandwidth": 1u64 << 30 }));
    }

    /// Undoes what the source's healer was told of bandwidth.
    pub fn send_at_full_speed(&self) {
        let node = self.volume.brick_node(0);
        let run_dir = run_dir(node);
        let asked = ["bandwidth", "unlimited", "--run-dir"];
        let (code, said) = run_on(node, &[&asked[..], &[run_dir.to_str().unwrap()]].concat());
        assert_eq!(code, Some(0), "{said}");
    }

    /// Migrates up to where the guest stands still at the source, its rings stopped.
    pub fn go_to_the_brink(&self) {
        self.pause_before_switch_over(true);
        self.begin();
        self.go_on();
        self.here.wait_migration("pre-switchover").unwrap();
    }

    /// The guest goes on at the source.
    pub fn cancel(&self) {
        self.ask("migrate_cancel", json!({}));
        self.here.wait_migration("cancelled").unwrap();
        self.pause_before_switch_over(false);
        wait_until("the guest to run at the source", PATIENCE, || {
            let status = self.here.qmp().execute("query-status", json!({}));
            let status = status.map_err(|error| error.to_string())?;
            (status["status"] == "running")
                .then_some(())
                .ok_or(status.to_string())
        })
        .unwrap();
        // It answers a script, and its disk answers it.
        let read = "dd if=/dev/vda of=/dev/null bs=1M count=1 2>&1";
        self.here.run(read, GUEST_PATIENCE).unwrap();
        assert_eq!(self.handover(&["--cancel"]).0, Some(0));
        self.source.wait_custody("held");
    }

    fn pause_before_switch_over(&self, state: bool) {
        let capability = json!({ "capability": "pause-before-switchover", "state": state });
        let capabilities = json!({ "capabilities": [capability] });
        self.ask("migrate-set-capabilities", capabilities);
    }

    fn parameters(&self, parameters: Value) {
        self.ask("migrate-set-parameters", parameters);
    }

    fn ask(&self, command: &str, arguments: Value) {
        self.here.qmp().execute(command, arguments).unwrap();
    }

    /// The guest is at the target from now on.
    pub fn arrived(&mut self) {
        self.load = self.guest_there().adopt(&self.load, &self.here);
        self.target.wait_custody("held");
        self.assert_holder(&self.target);
    }

    pub fn guest_there(&self) -> &Guest {
        self.there.as_ref().unwrap()
    }

    /// What the bricks say of who holds the image, asked at the third host.
    pub fn assert_holder(&self, daemon: &Daemon) {
        let node = self.volume.brick_node(2);
        let name = format!("{}{IMAGE}", self.volume.name());
        let asked = ["status", &name, "--json", "--server", node.address()];
        let (code, said) = run_on(node, &asked);
        assert_eq!(code, Some(0), "{said}");
        let status: Value = serde_json::from_str(&said).unwrap();
        let status = status.get(0).unwrap_or(&status);
        assert_eq!(status["holder"]["pid"], daemon.pid(), "{said}");
    }

    /// Ends the load in the guest at one of the hosts: every byte it read was right.
    pub fn end_load(&mut self, at_target: bool) {
        let guest = match at_target {
            true => self.there.as_ref().unwrap(),
            false => &self.here,
        };
        guest.run("touch /run/end", GUEST_PATIENCE).unwrap();
        let ended = || self.load.poll().unwrap().ok_or("it goes on".to_owned());
        let reply = wait_until("the load's end", GUEST_PATIENCE, ended).unwrap();
        assert_eq!(reply.status, 0, "{}{}", reply.stdout, reply.stderr);
        assert!(reply.stdout.trim().parse::<u64>().unwrap() > 0);
    }

    /// The guest has gone: no mark is left, all copies are equal, and nobody ever saw
    /// two who held the image.
    pub fn end(self) {
        let Move {
            volume,
            here,
            there,
            ..
        } = self;
        drop((here, there));
        wait_until("no mark to be left", PATIENCE, || {
            let marks = volume.marks(IMAGE).unwrap();
            marks.is_clean().then_some(()).ok_or(marks.to_string())
        })
        .unwrap();
        assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
        self.witness.end();
        drop((self.healers, self.target, self.source, self.cluster));
    }
}

fn config(node: &Node, daemon: &Daemon) -> GuestConfig {
    let mut config = GuestConfig::new(vec![Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 1,
        reconnect: true,
    }]);
    // For the script, beside the harness' own.
    let socket = format!("unix:{},server=on,wait=off", qmp(node).display());
    config.extra = vec!["-qmp".to_owned(), socket];
    config
}

fn qmp(node: &Node) -> PathBuf {
    node.place().dir().join("migrate.qmp")
}

/// Looks all the time who may write.
struct Witness {
    stop: Arc<AtomicBool>,
    /// Until it is joined.
    thread: Option<JoinHandle<(u64, Option<String>)>>,
}

impl Witness {
    fn start(nodes: [Node; 2]) -> Witness {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut looks, mut seen) = (0, None);
            while !told.load(Ordering::SeqCst) && seen.is_none() {
                // One that holds it before and after held it in between.
                let at = [0, 1, 0].map(|host| writer(&nodes[host]));
                if let [Some(before), Some(other), Some(after)] = &at {
                    seen = Some(format!("{before}\n{other}\n{after}"));
                }
                looks += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            (looks, seen)
        });
        Witness {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let (looks, seen) = self.thread.take().unwrap().join().unwrap();
        assert!(looks > 0);
        assert_eq!(seen, None, "both hosts held the image");
    }
}

/// A thread that goes on would keep the cluster, also of a test that has failed.
impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The status of the daemon of this host that may let a guest write.
fn writer(node: &Node) -> Option<String> {
    let (run_dir, state_dir) = (run_dir(node), state_dir(node));
    let mut asked = vec!["status", "--json", "--run-dir", run_dir.to_str()?];
    asked.extend(["--state-dir", state_dir.to_str()?]);
    // A daemon that was killed does not answer, and does not write either.
    let said = run_on(node, &asked).1;
    // Whatever it warns of stands behind.
    let mut documents = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    let images = documents.next()?.ok()?;
    let holds = |image: &&Value| {
        let custody = image["serving"]["custody"].as_str();
        matches!(custody, Some("held" | "armed"))
    };
    images.as_array()?.iter().find(holds).map(Value::to_string)
}
