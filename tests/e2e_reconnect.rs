//! A daemon that dies under a real guest, is started again as a supervisor would, and
//! goes on: no error in the guest, nothing lost, copies equal in the end. And the other
//! ends of a connection: resets, reboots, a killed QEMU, garbage.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bypass_harness::{Cluster, Disk, Guest, GuestConfig, GuestImage, Job, Volume, wait_until};
use support::daemon::{Daemon, run_dir, run_on, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, PATIENCE, pattern, replica_3};

/// Guests are slow here: translated, two cores.
const GUEST_PATIENCE: Duration = Duration::from_secs(180);
/// How often the daemon is killed in the test of that; hundreds take a quarter of an hour.
const KILLS: &str = "BYPASS_KILLS";
const FEW_KILLS: usize = 10;
/// So many more at most, until requests were in flight at one of them.
const MORE_KILLS: usize = 50;

/// Two jobs, one per CPU and queue, write all blocks of their areas and verify some of
/// them meanwhile and all of them after; then another pass reads everything again. Each
/// round writes other bytes: what was lost would show the round before. They are processes:
/// as threads of one, jobs of fio 3.39 spoil each other's `%o`, on any disk.
const LOAD: &str = r#"
common="--filename=/dev/vda --bs=4k --size=12M --offset_increment=12M --numjobs=2 --iodepth=32 --ioengine=libaio \
    --direct=1 --randrepeat=0 --verify=pattern --verify_fatal=1"
round=0
while [ ! -e /run/enough ]; do
    round=$((round + 1))
    bytes=$(printf '%%o"round%07d"' $round)
    for pass in "randwrite --do_verify=1 --verify_backlog=64" randread; do
        fio --name=load --rw=$pass $common "--verify_pattern=$bytes" >/run/fio.log 2>&1 || {
            cat /run/fio.log
            dmesg | tail -n 20
            exit 1
        }
    done
done
echo $round
"#;

/// A guest under load on a daemon that dies and comes back.
struct Stand {
    cluster: Cluster,
    volume: Volume,
    daemon: Option<Daemon>,
    healer: Healer,
    guest: Guest,
    job: Job,
    random: u64,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    /// Starts after which requests were done again, and how many those were.
    interrupted: usize,
    repeated: usize,
    /// From the kill until the next process listened.
    slowest: Duration,
}

impl Stand {
    fn begin(healing: &[&str]) -> Stand {
        let cluster = Cluster::start(3).unwrap();
        let volume = replica_3(&cluster);
        let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
        let healer = Healer::start(volume.brick_node(0), healing);
        let guest = boot(&volume, &daemon);
        let job = guest.start(LOAD).unwrap();
        daemon.wait_state("dirty");
        Stand {
            cluster,
            volume,
            daemon: Some(daemon),
            healer,
            guest,
            job,
            random: 0x9e37_79b9_7f4a_7c15,
            tally: Tally::default(),
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// Kills the daemon after it has answered some requests, none now and then, and
    /// starts another, which must get the image at once.
    fn kill(&mut self) {
        let enough = self.random(1500).saturating_sub(200);
        wait_until("requests to be answered", GUEST_PATIENCE, || {
            let answered = answered(self.daemon());
            let over = self.job.poll().unwrap();
            assert_eq!(over, None, "the load has ended");
            (answered >= enough)
                .then_some(())
                .ok_or(self.daemon().log())
        })
        .unwrap();
        let daemon = self.daemon.take().unwrap();
        self.count(&daemon.log());
        let begin = Instant::now();
        self.daemon = Some(daemon.restart().wait_listening().unwrap());
        self.tally.slowest = self.tally.slowest.max(begin.elapsed());
        self.tally.kills += 1;
    }

    fn count(&mut self, log: &str) {
        let numbers = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once(": doing ")?;
            rest.split(' ').next()?.parse::<usize>().ok()
        });
        let repeated: usize = numbers.sum();
        self.tally.repeated += repeated;
        self.tally.interrupted += usize::from(repeated > 0);
        assert!(!log.contains("queue stopped with"), "{log}");
    }

    /// The guest has seen nothing of it; when it is down all copies are equal.
    fn end(mut self) -> Tally {
        self.guest.run("touch /run/enough", GUEST_PATIENCE).unwrap();
        let load = self.job.wait(GUEST_PATIENCE).unwrap();
        assert_eq!(load.status, 0, "{}{}", load.stdout, load.stderr);
        let console = self.guest.console().unwrap();
        assert!(!console.contains("I/O error"), "{console}");
        self.guest.power_off().unwrap();
        let daemon = self.daemon.take().unwrap();
        assert_equal_at_last(&self.volume);
        assert_eq!(daemon.stop().code(), Some(0));
        drop((self.healer, self.cluster));
        self.tally
    }
}

/// Two queues, and a QEMU that connects again.
fn config(daemon: &Daemon) -> GuestConfig {
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 2,
        reconnect: true,
    };
    GuestConfig {
        cpus: 2,
        reboots: true,
        ..GuestConfig::new(vec![disk])
    }
}

fn boot(volume: &Volume, daemon: &Daemon) -> Guest {
    let image = GuestImage::prepare().unwrap();
    Guest::boot(&image, volume.brick_node(0).place(), &config(daemon)).unwrap()
}

fn restarted(daemon: Daemon) -> Daemon {
    daemon.restart().wait_listening().unwrap()
}

/// Requests that this process has answered.
fn answered(daemon: &Daemon) -> u64 {
    let status = daemon.status();
    let queues = status["serving"]["queues"].as_array().cloned();
    let count = |queue: serde_json::Value| {
        let kinds = ["reads", "writes", "flushes"];
        kinds
            .iter()
            .filter_map(|kind| queue[kind].as_u64())
            .sum::<u64>()
    };
    queues.unwrap_or_default().into_iter().map(count).sum()
}

fn assert_equal_at_last(volume: &Volume) {
    wait_until("no mark to be left", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        marks.is_clean().then_some(()).ok_or(marks.to_string())
    })
    .unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn a_guest_under_load_does_not_notice_that_its_daemon_is_killed_again_and_again() {
    let kills = std::env::var(KILLS).map_or(FEW_KILLS, |kills| kills.parse().unwrap());
    let mut stand = Stand::begin(&[]);
    for _ in 0..kills {
        stand.kill();
    }
    // A fast disk may have had nothing in flight whenever it was killed: that proves nothing.
    for _ in 0..MORE_KILLS {
        if stand.tally.repeated == 0 {
            stand.kill();
        }
    }
    let tally = stand.end();
    println!("{tally:?}");
    assert!(tally.repeated > 0, "nothing was ever in flight: {tally:?}");
}

#[test]
fn a_daemon_may_be_killed_while_a_peer_is_away_and_while_what_it_missed_is_copied() {
    // So slow that it is always busy.
    let mut stand = Stand::begin(&["--bandwidth", "1M"]);
    stand.volume.kill_brick(2).unwrap();
    for _ in 0..3 {
        stand.kill();
    }
    stand.volume.start_force().unwrap();
    for _ in 0..3 {
        stand.healer.wait_log("following");
        wait_until("a copy to be sent what it misses", PATIENCE, || {
            let status = stand.daemon().status();
            let copying = (1..3).any(|copy| {
                let behind = status["copies"][copy]["behind"]["bytes"].as_u64();
                behind.is_some_and(|bytes| bytes > 0)
            });
            let healed = status["heal"]["healer"]["pid"] == stand.healer.pid();
            (copying && healed)
                .then_some(())
                .ok_or_else(|| status.to_string())
        })
        .unwrap();
        stand.kill();
    }
    let node = stand.volume.brick_node(0);
    let there = run_dir(node);
    let faster = [
        "bandwidth",
        "unlimited",
        "--run-dir",
        there.to_str().unwrap(),
    ];
    assert_eq!(run_on(node, &faster).0, Some(0));
    println!("{:?}", stand.end());
}

#[test]
fn a_guest_that_is_reset_or_rebooted_finds_its_disk_as_it_left_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let mut guest = boot(&volume, &daemon);
    let write = "dd if=/dev/urandom of=/dev/vda bs=64k count=64 seek=512 conv=fsync 2>/dev/null";
    let read = "dd if=/dev/vda bs=64k count=64 skip=512 iflag=direct 2>/dev/null | md5sum";
    let mut expected = guest
        .run(&format!("{write}; {read}"), GUEST_PATIENCE)
        .unwrap();
    for round in 0..3 {
        // With requests of the load in flight, which nobody waits for any more.
        let load = guest.start(LOAD).unwrap();
        let before = answered(&daemon);
        wait_until("the load to run", PATIENCE, || {
            let now = answered(&daemon);
            (now > before + 100).then_some(()).ok_or(daemon.log())
        })
        .unwrap();
        match round {
            0 => guest.reset().unwrap(),
            1 => guest.reboot().unwrap(),
            _ => {
                daemon = restarted(daemon);
                guest.reset().unwrap();
            }
        }
        drop(load);
        assert_eq!(guest.run(read, GUEST_PATIENCE).unwrap(), expected);
        expected = guest
            .run(&format!("{write}; {read}"), GUEST_PATIENCE)
            .unwrap();
    }
    // A new guest, as the one before was killed, on the same daemon.
    let load = guest.start(LOAD).unwrap();
    guest.kill();
    drop(load);
    let guest = boot(&volume, &daemon);
    assert_eq!(guest.run(read, GUEST_PATIENCE).unwrap(), expected);
    guest.power_off().unwrap();
    assert_equal_at_last(&volume);
    assert_eq!(daemon.stop().code(), Some(0));
    drop(healer);
}

#[test]
fn garbage_and_half_messages_end_a_connection_and_nothing_else() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let header = |request: u32, len: u32| [request, 1, len].map(u32::to_ne_bytes).concat();
    let messages = [
        // Half a header; half a message; more than any message; garbage.
        (header(1, 0)[..7].to_vec(), "middle of a message"),
        ([header(2, 8), vec![0; 3]].concat(), "middle of a message"),
        (header(5, u32::MAX), "announced a message"),
        (vec![0xa5; 600], "announced a message"),
        (pattern(7, 0, 600), "front-end dropped"),
        // More features than there are; a queue and a ring that there are not.
        ([header(2, 8), vec![0xff; 8]].concat(), "does not offer"),
        (
            [header(8, 8), vec![9, 0, 0, 0, 1, 0, 0, 0]].concat(),
            "--num-queues",
        ),
        (
            [header(8, 8), vec![0, 0, 0, 0, 0, 9, 0, 0]].concat(),
            "--queue-size",
        ),
    ];
    for (round, (bytes, told)) in messages.iter().enumerate() {
        let before = daemon.log().len();
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        // The daemon may have closed it already.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        wait_until(format!("{told:?} in the log"), PATIENCE, || {
            let log = daemon.log();
            let new = log.get(before..).unwrap_or_default();
            new.contains(told).then_some(()).ok_or(log)
        })
        .unwrap();
        drop(stream);
        let mut disk = FrontEnd::connect(daemon.socket());
        let at = round as u64 * 4096;
        let data = pattern(round as u64, at, 4096);
        disk.write(at, &data, PATIENCE).unwrap();
        assert!(disk.read(at, 4096, PATIENCE).unwrap() == data);
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_guest_that_chose_write_through_keeps_it_when_its_daemon_dies() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = volume.brick_node(0);
    let mut daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    // Without one, a handover that is granted stays until the image is given away.
    let healer = Healer::start(node, &[]);
    let mut guest = boot(&volume, &daemon);
    let mode = |guest: &Guest| {
        guest
            .run("cat /sys/block/vda/cache_type", GUEST_PATIENCE)
            .unwrap()
    };
    let set = |guest: &Guest, mode: &str| {
        let script = format!("echo '{mode}' >/sys/block/vda/cache_type");
        guest.run(&script, GUEST_PATIENCE).unwrap();
    };
    let works = |guest: &Guest| {
        let write = "dd if=/dev/urandom of=/dev/vda bs=4k count=64 oflag=direct 2>/dev/null";
        guest.run(write, GUEST_PATIENCE).unwrap();
    };
    // What the daemon itself believes: it gives no such guest away.
    let through = || {
        let (there, name) = (run_dir(node), format!("{}{IMAGE}", volume.name()));
        let args = ["handover", &name, "--run-dir", there.to_str().unwrap()];
        let (code, said) = run_on(node, &args);
        let refused = code == Some(74) && said.contains("write-through");
        assert!(refused || code == Some(0), "{said}");
        if !refused {
            let cancel = [&args[..], &["--cancel"]].concat();
            assert_eq!(run_on(node, &cancel).0, Some(0));
        }
        refused
    };
    works(&guest);
    assert_eq!(mode(&guest).trim(), "write back");
    assert!(!through());
    set(&guest, "write through");
    for _ in 0..2 {
        daemon = restarted(daemon);
        works(&guest);
        assert_eq!(mode(&guest).trim(), "write through");
        assert!(through());
    }
    // QEMU keeps it over a reset, so must we.
    guest.reset().unwrap();
    works(&guest);
    assert_eq!(mode(&guest).trim(), "write through");
    assert!(through());
    set(&guest, "write back");
    assert!(!through());
    guest.reset().unwrap();
    set(&guest, "write through");
    daemon = restarted(daemon);
    works(&guest);
    assert!(through());
    guest.kill();
    // A new guest begins with the default.
    let guest = boot(&volume, &daemon);
    works(&guest);
    assert_eq!(mode(&guest).trim(), "write back");
    assert!(!through());
    let kept = std::fs::read_dir(state_dir(node)).unwrap().flatten();
    let left = kept.map(|file| file.file_name().into_string().unwrap());
    assert!(!left.into_iter().any(|name| name.ends_with("write-through")));
    drop((guest, healer, daemon));
}

#[test]
fn a_guest_whose_daemon_comes_late_waits_for_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let early = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let config = config(&early);
    let image = GuestImage::prepare().unwrap();
    let place = volume.brick_node(0).place();
    let socket = early.socket().to_str().unwrap().to_owned();
    early.kill();
    let (guest, daemon) = std::thread::scope(|scope| {
        let guest = scope.spawn(|| Guest::boot(&image, place, &config).unwrap());
        let daemon = Daemon::start_at(&volume, 0, &socket, &["--num-queues", "2"]);
        let daemon = daemon.wait_listening().unwrap();
        (guest.join().unwrap(), daemon)
    });
    let works = "dd if=/dev/urandom of=/dev/vda bs=4k count=64 oflag=direct 2>/dev/null";
    guest.run(works, GUEST_PATIENCE).unwrap();
    let console = guest.console().unwrap();
    assert!(!console.contains("I/O error"), "{console}");
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
}
