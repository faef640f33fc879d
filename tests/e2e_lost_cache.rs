//! The host of the local brick loses power, and its disk the cache, after the daemon was killed
//! and started again under a guest: what was flushed is on the local copy after every cut, no
//! byte of the guest's is there without the marks, and after healing all copies are what the local one was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device_support;
mod support;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bypass_harness::{Cluster, Fill, Volume, VolumeKind};
use device_support::flushing_guest::{FlushingGuest, Habits};
use support::daemon::{Daemon, state_dir};
use support::healer::Healer;
use support::power::FileSystem;
use support::volatile_disk::{Dice, VolatileDisk};
use support::{IMAGE, PATIENCE};
use xattr::FileExt;

const IMAGE_BYTES: u64 = 16 << 20;

/// How one past goes.
#[derive(Clone, Copy)]
struct Plan {
    kind: FileSystem,
    habits: Habits,
    /// How often the daemon is killed and started again.
    kills: usize,
    /// At how many moments the power fails.
    cuts: usize,
    /// The healer runs; else stock Gluster heals after the cut, and marks stand from the first write on.
    healer: bool,
}

fn volume_on(cluster: &Cluster) -> Volume {
    let options = [("network.ping-timeout", "5")];
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(3), &options)
        .unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    volume
}

/// Does the copy accuse both others?
fn accuses(image: &Path) -> bool {
    let file = File::open(image).unwrap();
    [1, 2].iter().all(|peer| {
        let name = format!("trusted.afr.gv0-client-{peer}");
        let pending = file.get_xattr(name).unwrap().unwrap_or_default();
        pending.iter().any(|byte| *byte != 0)
    })
}

fn lose_cache(plan: Plan) {
    let cluster = Cluster::start(3).unwrap();
    let node = cluster.node(0);
    let disk = VolatileDisk::mount(plan.kind, &node.bricks_dir());
    let volume = volume_on(&cluster);
    rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
    let begin = disk.clock()();

    let image = volume.brick_file(0, IMAGE);
    let within: PathBuf = image.strip_prefix(disk.path()).unwrap().to_owned();
    let mut daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let healer = plan.healer.then(|| Healer::start(node, &[]));
    let connect = |daemon: &Daemon| UnixStream::connect(daemon.socket()).unwrap();
    let mut guest = FlushingGuest::connect(connect(&daemon), plan.habits, disk.clock());
    for _ in 0..plan.kills {
        let answers = 20 + guest.random() % 200;
        guest.work_for(answers);
        daemon.again();
        guest.reconnect(connect(&daemon));
    }
    let answers = 100 + guest.random() % 200;
    guest.work_for(answers);
    cluster.crash_node(0).unwrap();
    drop((daemon, healer));
    assert!(guest.flushes > 0);

    let mut past = disk.power_off();
    let mut dice = Dice::new(plan.habits.seed);
    let mut moments: Vec<_> = (0..plan.cuts)
        .map(|_| begin + dice.below(past.moments() + 1 - begin))
        .collect();
    moments.sort_unstable();
    for moment in moments {
        let cut = past.cut(moment, &mut dice, &node.place().dir().join("cut"));
        let image = cut.path().join(&within);
        let written = guest.check(&image, moment, "a cut");
        if written && !plan.healer {
            assert!(accuses(&image), "written to without marks, cut at {moment}");
        }
    }

    // The last cut is what the host finds when it boots. Its map is of another boot.
    let last = past.moments();
    let after = past.cut(last, &mut dice, &node.bricks_dir());
    std::fs::remove_dir_all(state_dir(node)).unwrap();
    cluster.boot_node(0).unwrap();
    volume.wait_bricks_up().unwrap();
    if plan.healer {
        let daemon = Daemon::serve(&volume, 0, &[]);
        let healer = Healer::start(node, &[]);
        daemon.wait_state("clean");
        drop((daemon, healer));
    } else {
        volume.wait_healed(IMAGE, PATIENCE).unwrap();
    }
    for copy in 0..3 {
        guest.check(&volume.brick_file(copy, IMAGE), last, "a healed copy");
    }
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    volume.stop().unwrap();
    cluster.crash_node(0).unwrap();
    drop(after);
}

fn asked(variable: &str, few: u64) -> u64 {
    let asked = std::env::var(variable);
    asked.map_or(few, |asked| asked.parse().unwrap())
}

/// As many pasts as are asked for, each with a seed of its own.
fn lose_caches(plan: Plan) {
    let first = asked("BYPASS_POWER_SEED", plan.habits.seed);
    for seed in first..first + asked("BYPASS_POWER_PASTS", 1) {
        eprintln!("seed {seed}");
        let habits = Habits {
            seed,
            ..plan.habits
        };
        lose_cache(Plan { habits, ..plan });
    }
}

#[test]
fn what_was_flushed_survives_killed_daemons_and_a_lost_cache_and_is_healed_everywhere() {
    lose_caches(Plan {
        kind: FileSystem::Xfs,
        habits: Habits {
            room: 16 << 10,
            stride: (IMAGE_BYTES / 32) as u32,
            parts: false,
            seed: 1,
        },
        kills: 2,
        cuts: asked("BYPASS_POWER_CUTS", 8) as usize,
        healer: true,
    });
}

#[test]
fn no_byte_of_the_guests_is_there_without_marks_after_a_lost_cache() {
    lose_caches(Plan {
        kind: FileSystem::Ext4,
        habits: Habits {
            room: 13 << 9,
            stride: 13 << 9,
            parts: true,
            seed: 2,
        },
        kills: 2,
        cuts: asked("BYPASS_POWER_CUTS", 8) as usize,
        healer: false,
    });
}
