//! Rounds of random faults on a real three-node cluster, under a guest-like load
//! whose every acknowledged write is known.
//!
//! A round: the image is served from one of the nodes and written to with several
//! requests in flight, while daemon, healers, brick processes and stock self-heal
//! daemons are killed or frozen, links are cut and disks filled, at random. Then everything comes back.
//! It must hold then, and after every kill of the daemon:
//!
//! 1. nothing acknowledged is missing on the copy that is served;
//! 2. every copy that differs from it is marked, by it and by a quorum;
//! 3. after the heal all copies are equal, and are what was acknowledged.
//!
//! An image in shards has marks, and must have all this, of each file.
//!
//! What happens is drawn from a seed, each round from the seed and its number;
//! when it hits the load is up to the machine.
//!
//! ```sh
//! tests/run -- of_random_faults                   # a few rounds, one on an image in shards
//! BYPASS_CHAOS_ROUNDS=200 BYPASS_KEEP_LOGS=/var/tmp/chaos \
//!     cargo test --test e2e_chaos -- --nocapture  # a long run; the test runner would end it
//! … cargo test --test e2e_chaos shards -- --nocapture   # a long run on shards alone
//! BYPASS_CHAOS_SEED=0x1234 BYPASS_CHAOS_FIRST=17  # the same faults, from round 17 on
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chaos;
mod support;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind};
use chaos::image::Image;
use chaos::load::Tally;
use chaos::rng::Rng;
use chaos::schedule::Plan;
use chaos::world::World;
use support::shards::sharded;
use support::small_disk::SmallDisk;
use support::{IMAGE, IMAGE_BYTES};

/// The faults of a run that asks for no others, so that the gate does not depend on luck.
const SEED: u64 = 2026;
/// Rounds without `BYPASS_CHAOS_ROUNDS`: for about a minute and a half, both together.
const ROUNDS: u64 = 2;
const ROUNDS_IN_SHARDS: u64 = 1;
/// And which: with those of a whole image every kind of ending is there.
const FIRST_IN_SHARDS: u64 = 2;
/// Time-outs of the volume that are as short as they go, so that a round need not
/// wait long until a cut link is noticed.
const IMPATIENT: [(&str, &str); 5] = [
    ("network.ping-timeout", "5"),
    ("server.tcp-user-timeout", "6"),
    ("server.keepalive-time", "3"),
    ("server.keepalive-interval", "1"),
    ("server.keepalive-count", "3"),
];

#[test]
fn some_rounds_of_random_faults_lose_nothing_acknowledged_and_leave_nothing_unmarked() {
    rounds_on(Image::Whole, 0, ROUNDS);
}

#[test]
fn a_round_of_random_faults_on_an_image_in_shards_does_neither() {
    rounds_on(Image::InShards, FIRST_IN_SHARDS, ROUNDS_IN_SHARDS);
}

fn rounds_on(image: Image, first: u64, rounds: u64) {
    let seed = number("BYPASS_CHAOS_SEED").unwrap_or(SEED);
    let first = number("BYPASS_CHAOS_FIRST").unwrap_or(first);
    let rounds = number("BYPASS_CHAOS_ROUNDS").unwrap_or(rounds);
    println!(
        "{image:?}: BYPASS_CHAOS_SEED={seed:#x}, rounds {first} to {}",
        first + rounds - 1
    );

    let begin = Instant::now();
    let cluster = Cluster::start(3).unwrap();
    let disks = cluster.nodes().iter();
    let disks = disks
        .map(|node| SmallDisk::mount(&node.bricks_dir()))
        .collect();
    let volume = match image {
        Image::Whole => whole(&cluster),
        Image::InShards => sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &IMPATIENT),
    };
    let mut world = World::new(&cluster, &volume, image, disks, begin);
    for number in first..first + rounds {
        let mut rng = Rng::new(seed, number);
        let plan = Plan::draw(&mut rng, number);
        let outcome = catch_unwind(AssertUnwindSafe(|| round(&mut world, &plan, rng)));
        let failure = match outcome {
            Ok(Ok(summary)) => {
                println!("round {number}: {summary}");
                continue;
            }
            Ok(Err(failure)) => failure,
            Err(_) => "a panic, see above".to_owned(),
        };
        let journal = world.journal.join("\n");
        panic!("round {number} of seed {seed:#x}: {failure}\n\n{plan:#?}\n\n{journal}");
    }
}

fn whole(cluster: &Cluster) -> Volume {
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(3), &IMPATIENT)
        .unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    volume
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// One round; returns its summary.
fn round(world: &mut World, plan: &Plan, rng: Rng) -> Result<String, String> {
    let begin = Instant::now();
    world.begin_round(rng, plan.serve_on, plan.quorum_timeout)?;
    let served = world.local;
    let mut faults = Vec::new();
    for (pause, fault) in &plan.faults {
        std::thread::sleep(*pause);
        world.suffer(*fault)?;
        faults.push(format!("{fault:?}"));
    }
    world.recover()?;
    let healed = world.end_round(plan.ending)?;
    let Tally {
        writes,
        written,
        zeroed,
        reads,
        flushes,
        errors,
        open,
    } = world.tally;
    Ok(format!(
        "brick {}: {}; {:?}. {writes} writes ({:.1} MiB), {zeroed} zeroed, {flushes} flushes \
         acknowledged, {reads} reads right, {errors} errors, {open} never answered; \
         {:.1} s, healed in {:.1} s",
        served,
        faults.join(", "),
        plan.ending,
        written as f64 / f64::from(1 << 20),
        begin.elapsed().as_secs_f64(),
        healed.as_secs_f64(),
    ))
}
