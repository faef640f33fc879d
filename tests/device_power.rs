//! A host that loses power under a guest, after its daemon was killed and started again: what the
//! guest was told to be durable is there, and nothing else but what it asked for.
//!
//! Two kinds of power fail here. That of a file system: what only the journal's memory has is
//! lost (an extent that was written for the first time reads as zeros then). And that of a disk
//! with a volatile cache, at many moments of its past: what it has not been told to make durable
//! is there, or not, or in part.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device_support;
mod support;

use std::fs::File;
use std::path::Path;

use device_support::DISK_SIZE;
use device_support::daemon::{Daemon, serve_if_daemon};
use device_support::flushing_guest::{FlushingGuest, Habits};
use support::power::{Disk, FileSystem};
use support::volatile_disk::{Dice, VolatileDisk};

/// Places of whole pages all over the disk, changed as a whole.
const WHOLE: Habits = Habits {
    room: 16 << 10,
    stride: (DISK_SIZE / 32) as u32,
    parts: false,
    seed: 1,
};
/// Neighbours share pages, and changes are of any part.
const PARTS: Habits = Habits {
    room: 13 << 9,
    stride: 13 << 9,
    parts: true,
    seed: 2,
};

/// Not a test: the process that the tests below kill.
#[test]
fn the_daemon() {
    serve_if_daemon();
}

/// A sparse image: every block is written for the first time once more.
fn make_image(image: &Path) {
    let _ = std::fs::remove_file(image);
    let file = File::create(image).unwrap();
    file.set_len(DISK_SIZE).unwrap();
    file.sync_all().unwrap();
    File::open(image.parent().unwrap())
        .unwrap()
        .sync_all()
        .unwrap();
}

/// A guest works, whose daemon is killed `kills` times, and once more at the end.
fn work<Clock: Fn() -> usize>(
    socket: &Path,
    image: &Path,
    habits: Habits,
    kills: usize,
    clock: Clock,
) -> FlushingGuest<Clock> {
    let (mut daemon, stream) = Daemon::start(socket, image);
    let mut guest = FlushingGuest::connect(stream, habits, clock);
    for _ in 0..kills {
        let answers = guest.random() % 120;
        guest.work_for(answers);
        drop(daemon);
        let stream;
        (daemon, stream) = Daemon::start(socket, image);
        guest.reconnect(stream);
    }
    let answers = 40 + guest.random() % 120;
    guest.work_for(answers);
    drop(daemon);
    guest
}

fn lose_power(kind: FileSystem, rounds: usize) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = Disk::with(kind, folder.path());
    let (socket, image) = (folder.path().join("socket"), disk.path().join("image"));
    let mut flushes = 0;
    for round in 0..rounds {
        make_image(&image);
        let seed = round as u64 + 1;
        let habits = Habits { seed, ..WHOLE };
        let guest = work(&socket, &image, habits, 2, || 0);
        flushes += guest.flushes;
        disk.cut();
        guest.check(&image, 0, &format!("round {round}"));
    }
    assert!(flushes > rounds as u64, "{flushes} flushes");
}

/// Cuts at `cuts` moments of one past.
fn lose_cache(kind: FileSystem, habits: Habits, kills: usize, cuts: usize) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = VolatileDisk::mount(kind, &folder.path().join("disk"));
    let (socket, image) = (folder.path().join("socket"), disk.path().join("image"));
    make_image(&image);
    let begin = disk.clock()();
    let guest = work(&socket, &image, habits, kills, disk.clock());
    assert!(guest.flushes > 0);
    let mut past = disk.power_off();
    let mut dice = Dice::new(habits.seed);
    let mut moments: Vec<_> = (0..cuts)
        .map(|_| begin + dice.below(past.moments() + 1 - begin))
        .collect();
    moments.sort_unstable();
    let mut any = false;
    for moment in moments {
        let cut = past.cut(moment, &mut dice, &folder.path().join("cut"));
        any |= guest.check(&cut.path().join("image"), moment, "a cut");
    }
    assert!(any, "nothing was there after any cut");
}

/// As many pasts as are asked for, each with a seed of its own.
fn lose_caches(kind: FileSystem, habits: Habits) {
    let first = asked("BYPASS_POWER_SEED", habits.seed as usize) as u64;
    for seed in first..first + asked("BYPASS_POWER_PASTS", 1) as u64 {
        eprintln!("seed {seed}");
        let habits = Habits { seed, ..habits };
        lose_cache(kind, habits, 3, asked("BYPASS_POWER_CUTS", 12));
    }
}

#[test]
fn what_was_flushed_survives_a_killed_daemon_and_then_a_power_cut_on_xfs() {
    lose_power(FileSystem::Xfs, asked("BYPASS_POWER_ROUNDS", 6));
}

#[test]
fn what_was_flushed_survives_a_killed_daemon_and_then_a_power_cut_on_ext4() {
    lose_power(FileSystem::Ext4, asked("BYPASS_POWER_ROUNDS", 4));
}

#[test]
fn what_was_flushed_survives_the_loss_of_a_disks_cache_under_xfs() {
    lose_caches(FileSystem::Xfs, WHOLE);
}

#[test]
fn what_was_flushed_survives_the_loss_of_a_disks_cache_under_ext4() {
    lose_caches(FileSystem::Ext4, WHOLE);
}

#[test]
fn neighbours_in_one_page_survive_the_loss_of_a_disks_cache() {
    lose_caches(FileSystem::Xfs, PARTS);
}

fn asked(variable: &str, few: usize) -> usize {
    let asked = std::env::var(variable);
    asked.map_or(few, |rounds| rounds.parse().unwrap())
}
