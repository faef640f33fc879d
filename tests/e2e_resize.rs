//! An image grows: under a guest that writes and verifies, without one, with copies away,
//! with a daemon that dies in the middle, and not at all when it may not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use bypass_blk::control::socket::{self, Answer, ControlError, Request};
use bypass_blk::image::session::resize::NewSize;
use bypass_harness::{
    Cluster, Disk, FioJob, Guest, GuestConfig, GuestImage, Pattern, Verify, Volume, wait_until,
};
use support::daemon::{self, Daemon, run_dir, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::tmpfs::Tmpfs;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern, replica_3};

const MIB: u64 = 1 << 20;
/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);
/// How many moments of a growth the daemon is killed at.
const MOMENTS: u32 = 16;

/// `bypass-blk resize` of the image on the host of brick 0.
fn resize(volume: &Volume, arguments: &[&str]) -> (Option<i32>, String) {
    daemon::resize(volume, 0, arguments)
}

fn assert_grown((code, said): (Option<i32>, String), to: u64) {
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("to {to} bytes")), "{said}");
}

/// Refused with this in the reason.
fn assert_kept((code, said): (Option<i32>, String), why: &str) {
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains(why), "{said}");
}

/// Of each copy.
fn sizes(volume: &Volume) -> Vec<u64> {
    let files = (0..3).map(|brick| volume.brick_file(brick, IMAGE));
    files.map(|file| file.metadata().unwrap().len()).collect()
}

fn wait_clean(volume: &Volume, told: impl Fn() -> String) {
    wait_until("no mark to be left", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        marks
            .is_clean()
            .then_some(())
            .ok_or_else(|| format!("{marks}\n{}", told()))
    })
    .unwrap();
}

/// All copies have the same bytes, so many of them.
fn assert_equal(volume: &Volume, bytes: u64) {
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert_eq!(sizes(volume), [bytes; 3]);
}

fn write(disk: &mut FrontEnd, seed: u64, at: u64) {
    disk.write(at, &pattern(seed, at, MIB as usize), PATIENCE)
        .unwrap();
}

/// The size that the guest sees, in bytes.
fn seen(guest: &Guest) -> u64 {
    let sectors = guest.run("cat /sys/block/vda/size", PATIENCE).unwrap();
    sectors.trim().parse::<u64>().unwrap() * 512
}

fn wait_seen(guest: &Guest, bytes: u64) {
    wait_until("the guest to see the new size", PATIENCE, || {
        let seen = seen(guest);
        (seen == bytes).then_some(()).ok_or(seen.to_string())
    })
    .unwrap();
}

/// Writes the last MiB of the disk in the guest, and reads back what lies before it.
fn use_the_end(guest: &Guest, size: u64) {
    let (last, before) = (size / MIB - 1, size / MIB - 2);
    let script = format!(
        "dd if=/dev/urandom of=/tmp/end bs=1M count=1 2>/dev/null && \
         dd if=/tmp/end of=/dev/vda bs=1M seek={last} oflag=direct conv=fsync 2>/dev/null && \
         dd if=/dev/vda bs=1M skip={last} count=1 iflag=direct 2>/dev/null | cmp - /tmp/end && \
         dd if=/dev/vda bs=1M skip={before} count=1 iflag=direct 2>/dev/null | tr -d '\\000' | wc -c"
    );
    let rest = guest.run(&script, FIO_PATIENCE).unwrap();
    assert_eq!(rest.trim(), "0", "the new area is not zero");
}

fn disk(daemon: &Daemon, reconnect: bool) -> GuestConfig {
    GuestConfig::new(vec![Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 2,
        reconnect,
    }])
}

#[test]
fn an_image_grows_under_a_guest_that_writes_and_verifies() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let image = GuestImage::prepare().unwrap();
    let guest = Guest::boot(&image, cluster.node(0).place(), &disk(&daemon, false)).unwrap();
    let mut job = FioJob::new("verify", "/dev/vda", Pattern::RandWrite);
    job.verify = Verify::AfterWrite;
    job.depth = 16;
    job.bytes = Some(IMAGE_BYTES);
    let job = guest.start_fio(&job).unwrap();
    daemon.wait_state("dirty");
    let mut size = IMAGE_BYTES;
    for _ in 0..3 {
        size += 4 * MIB;
        assert_grown(resize(&volume, &["+4M"]), size);
        wait_seen(&guest, size);
        use_the_end(&guest, size);
        assert_eq!(daemon.status()["size"], size);
    }
    let log = daemon.log();
    let waits = log.lines().filter(|line| line.contains("writes waited"));
    println!("{}", waits.collect::<Vec<_>>().join("\n"));
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let report = guest.finish_fio(job, FIO_PATIENCE).unwrap();
    assert!(report.write.is_some() && report.read.is_some());
    guest.power_off().unwrap();
    wait_clean(&volume, || healer.log());
    assert_equal(&volume, size);
    assert_eq!(daemon.stop().code(), Some(0));
    // Whoever comes next trusts the map that took the first one's place.
    let daemon = Daemon::serve(&volume, 0, &[]);
    assert!(!daemon.log().contains("not trusted"), "{}", daemon.log());
    drop((daemon, healer));
}

#[test]
fn a_guest_that_was_not_told_sees_the_size_when_its_daemon_is_back() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let args = ["--num-queues", "2"];
    let first = Daemon::serve(&volume, 0, &args);
    let image = GuestImage::prepare().unwrap();
    let guest = Guest::boot(&image, cluster.node(0).place(), &disk(&first, true)).unwrap();
    assert_eq!(seen(&guest), IMAGE_BYTES);
    let socket = first.socket().to_owned();
    first.kill();
    // Nobody serves it: the command opens it itself.
    let size = IMAGE_BYTES + 8 * MIB;
    assert_grown(resize(&volume, &["72M", "--lock-timeout", "30s"]), size);
    assert_equal(&volume, size);
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    let second = Daemon::serve(&volume, 0, &args);
    // QEMU looks for it where the first one was.
    let _ = std::fs::remove_file(&socket);
    symlink(second.socket(), &socket).unwrap();
    wait_seen(&guest, size);
    use_the_end(&guest, size);
    guest.power_off().unwrap();
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn a_copy_that_is_away_forbids_it_unless_forced_and_is_healed_when_it_is_back() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 0);
    daemon.wait_state("clean");
    volume.kill_brick(2).unwrap();
    wait_until("the loss to be noticed", PATIENCE, || {
        let reached = daemon.status()["copies"][2]["reachable"] == false;
        reached.then_some(()).ok_or(daemon.log())
    })
    .unwrap();
    assert_kept(resize(&volume, &["+1M"]), &volume.brick_name(2));
    assert_eq!(sizes(&volume), [IMAGE_BYTES; 3]);
    let size = IMAGE_BYTES + 2 * MIB;
    let (code, said) = resize(&volume, &["+2M", "--force"]);
    assert!(said.contains(&volume.brick_name(2)), "{said}");
    assert_grown((code, said), size);
    assert_eq!(sizes(&volume), [size, size, IMAGE_BYTES]);
    // Before anything is written: sizes that differ unmarked are anybody's choice.
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(0, 2) && marks.accuses(1, 2), "{marks}");
    write(&mut disk, 2, size - MIB);
    volume.start_force().unwrap();
    wait_clean(&volume, || daemon.log() + &healer.log());
    assert_equal(&volume, size);
    // It was known what it missed.
    assert!(!daemon.log().contains("all of it is compared"));
    drop((disk, daemon, healer));
}

/// A file that nobody may change.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn new(path: std::path::PathBuf) -> Frozen {
        let frozen = Frozen(path);
        frozen.set("+i");
        frozen
    }

    fn set(&self, flag: &str) {
        let set = Command::new("chattr").arg(flag).arg(&self.0).status();
        assert!(set.unwrap().success());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.set("-i");
    }
}

#[test]
fn what_may_not_or_cannot_be_leaves_every_copy_as_it_was() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let state = Tmpfs::mount(&state_dir(volume.brick_node(0)), "size=100m");
    assert_kept(resize(&volume, &["+100"]), "512");
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    assert_kept(resize(&volume, &["1M"]), "smaller");
    assert_kept(resize(&volume, &["+513"]), "512");
    assert_kept(resize(&volume, &["300T"]), "too many");
    // ext4 has files of 16 TiB at most.
    let insist = ["20T", "--overcommit"];
    assert_kept(resize(&volume, &insist), "File too large");
    // Only a slip of the finger, or somebody who knows, asks for more than there is.
    assert_kept(resize(&volume, &["+10T"]), "--overcommit");
    assert_kept(resize(&volume, &["+10T", "--force"]), "--overcommit");
    let (code, said) = resize(&volume, &["-1G"]);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(sizes(&volume), [IMAGE_BYTES; 3]);

    // No room for the map of the larger image, beside the one of now.
    let filler = state.path().join("filler");
    std::fs::write(&filler, vec![1; 100 << 20]).unwrap_err();
    assert_kept(resize(&volume, &["+4M"]), "no room");
    assert_eq!(sizes(&volume), [IMAGE_BYTES; 3]);
    write(&mut disk, 4, 7 * MIB);
    std::fs::remove_file(filler).unwrap();

    // Another copy that cannot be changed; no write is healed meanwhile.
    write(&mut disk, 1, 0);
    let frozen = Frozen::new(volume.brick_file(2, IMAGE));
    assert_kept(resize(&volume, &["+4M"]), &volume.brick_name(2));
    assert_eq!(sizes(&volume), [IMAGE_BYTES; 3]);
    write(&mut disk, 2, 5 * MIB);
    drop(frozen);
    let size = IMAGE_BYTES + 4 * MIB;
    wait_until("the copy to be held again", PATIENCE, || {
        let (code, said) = resize(&volume, &["68M"]);
        (code == Some(0)).then_some(()).ok_or(said)
    })
    .unwrap();
    assert!(resize(&volume, &["68M"]).1.contains("already"));
    write(&mut disk, 3, size - MIB);
    let healer = Healer::start(volume.brick_node(0), &[]);
    wait_clean(&volume, || daemon.log());
    assert_equal(&volume, size);
    drop((disk, daemon, healer));
}

#[test]
fn marks_stay_on_a_copy_of_another_size_until_it_has_the_right_one() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 0);
    daemon.wait_state("dirty");
    wait_clean(&volume, || healer.log());
    // As by a request of a resize that was thought lost and is carried out late.
    let path = volume.brick_file(2, IMAGE);
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(IMAGE_BYTES + MIB).unwrap();
    write(&mut disk, 2, MIB);
    daemon.wait_log("all of it is compared");
    wait_clean(&volume, || daemon.log() + &healer.log());
    assert_equal(&volume, IMAGE_BYTES);
    drop((disk, daemon, healer));
}

/// Asks the daemon itself, unless it is dead already: a command would open the image then.
fn ask_for(volume: &Volume, more: u64) -> Option<Result<Answer, ControlError>> {
    let sockets = socket::list(&run_dir(volume.brick_node(0))).unwrap();
    let live = sockets.iter().find(|path| !socket::is_dead(path));
    let request = Request::Resize {
        size: NewSize::By(more),
        force: false,
        overcommit: false,
    };
    live.map(|socket| socket::ask(socket, &request))
}

#[test]
fn a_daemon_killed_at_any_moment_of_it_leaves_copies_that_heal_to_one_size() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mut daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 0, 0);
    drop(disk);
    let begin = Instant::now();
    ask_for(&volume, MIB).unwrap().unwrap();
    // Some are killed when it is over.
    let took = begin.elapsed() * 5 / 4;
    let mut size = IMAGE_BYTES + MIB;
    let mut outcomes = Vec::new();
    for moment in 0..MOMENTS {
        let mut disk = FrontEnd::connect(daemon.socket());
        write(&mut disk, moment.into(), u64::from(moment) * MIB);
        std::thread::scope(|scope| {
            scope.spawn(|| ask_for(&volume, MIB));
            // Not to wait for anything: the moment is what is tried.
            std::thread::sleep(took * moment / MOMENTS);
            daemon.kill();
        });
        drop(disk);
        let left = sizes(&volume);
        daemon = Daemon::serve(&volume, 0, &["--lock-timeout", "30s"]);
        outcomes.push((left, daemon.log().contains("not trusted")));
        let now = daemon.status()["size"].as_u64().unwrap();
        assert!(now == size || now == size + MIB, "{now}");
        size = now;
        let healer = Healer::start(volume.brick_node(0), &[]);
        let mut disk = FrontEnd::connect(daemon.socket());
        write(&mut disk, 100 + u64::from(moment), size - MIB);
        drop(disk);
        wait_clean(&volume, || daemon.log() + &healer.log());
        assert_equal(&volume, size);
        assert!(healer.stop().success());
    }
    println!("sizes and maps that the deaths left, of a growth of {took:?}: {outcomes:?}");
    drop(daemon);
}

#[test]
fn whatever_a_death_leaves_is_healed_to_the_size_of_the_local_copy() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mut size = IMAGE_BYTES;
    // In the order in which copies grow, the map being the last.
    for grown in [&[0][..], &[0, 2], &[0, 1, 2]] {
        let daemon = Daemon::serve(&volume, 0, &["--lock-timeout", "30s"]);
        let mut disk = FrontEnd::connect(daemon.socket());
        write(&mut disk, 1, 0);
        daemon.kill();
        drop(disk);
        size += MIB;
        for &brick in grown {
            let path = volume.brick_file(brick, IMAGE);
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(size).unwrap();
        }
        let daemon = Daemon::serve(&volume, 0, &["--lock-timeout", "30s"]);
        assert!(daemon.log().contains("not trusted"), "{}", daemon.log());
        assert_eq!(daemon.status()["size"], size);
        let healer = Healer::start(volume.brick_node(0), &[]);
        let mut disk = FrontEnd::connect(daemon.socket());
        write(&mut disk, 2, size - MIB / 2 - MIB);
        drop(disk);
        wait_clean(&volume, || daemon.log() + &healer.log());
        assert_equal(&volume, size);
        assert!(healer.stop().success());
        assert_eq!(daemon.stop().code(), Some(0));
    }
}
