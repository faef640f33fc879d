//! The demo's story, step by step.

use std::time::Duration;

use bypass_harness::bench::Measurement;
use bypass_harness::progress::Step;
use bypass_harness::{
    Cluster, Copies, Disk, Error, Fill, FioJob, Guest, GuestConfig, GuestImage, HealInfo, Pattern,
    Result, Verify, Volume, VolumeKind,
};

use crate::Options;
use crate::compare::{measure_all, other_ways};
use crate::daemon::Daemon;

/// The image's path in the volume.
pub const IMAGE: &str = "/vm1.img";
/// The node, and with one brick per node the brick, that serves it.
pub const NODE: usize = 0;
/// The image in the guest.
pub const DEVICE: &str = "/dev/vda";

const NODES: usize = 3;
const VOLUME: &str = "vms";
const THIS_DISK: &str = "bypass-blk";
const VERIFY_BYTES: u64 = 8 << 20;
const VERIFY_DEADLINE: Duration = Duration::from_secs(300);
const HEAL_DEADLINE: Duration = Duration::from_secs(600);

/// What is told at the end.
pub struct Outcome {
    pub measurements: Vec<Measurement>,
    pub copies: Copies,
}

/// Does it all.
pub fn tell(options: &Options) -> Result<Outcome> {
    let step = Step::begin("a guest's kernel and tools");
    let image = GuestImage::prepare()?;
    step.done("");
    let volume = three_nodes(options)?;
    let mut measurements = guest_on_bypass(&image, &volume, options)?;
    let mut copies = heal(&volume)?;
    if copies.are_equal() {
        measurements.extend(other_ways(&image, &volume, options)?);
        let step = Step::begin("comparing all copies once more");
        volume.wait_healed(IMAGE, HEAL_DEADLINE)?;
        copies = volume.copies_equal(IMAGE)?;
        step.done("");
    }
    Ok(Outcome {
        measurements,
        copies,
    })
}

fn three_nodes(options: &Options) -> Result<Volume> {
    let step = Step::begin("three nodes, each in a network namespace of its own");
    let cluster = Cluster::start(NODES)?;
    step.done("");
    let step = Step::begin("a replica-3 volume with an image on it");
    let volume = cluster.create_volume(VOLUME, VolumeKind::Replica(NODES), &[])?;
    volume.start()?;
    volume.create_image(IMAGE, options.image_bytes(), Fill::Noise)?;
    step.done(&format!("{VOLUME}{IMAGE}, {} MiB", options.size));
    Ok(volume)
}

/// A guest on the disk that bypass-blk serves: verified I/O first, then speed.
fn guest_on_bypass(
    image: &GuestImage,
    volume: &Volume,
    options: &Options,
) -> Result<Vec<Measurement>> {
    let step = Step::begin("bypass-blk serve");
    let daemon = Daemon::start(&options.program, volume, IMAGE, NODE)?;
    step.done(&format!("on {}", volume.brick_name(NODE)));
    let step = Step::begin("booting the guest");
    let disk = Disk::VhostUser {
        socket: daemon.socket.clone(),
        queues: 1,
        reconnect: false,
    };
    let place = volume.brick_node(NODE).place();
    let guest = Guest::boot(image, place, &GuestConfig::new(vec![disk]))?;
    step.done("");
    let step = Step::begin("fio --verify in the guest");
    guest.fio(&verify_job(options), VERIFY_DEADLINE)?;
    step.done("every block read back as written");
    let measurements = measure_all(&guest, THIS_DISK, options)?;
    let step = Step::begin("shutting the guest down, stopping bypass-blk");
    guest.power_off()?;
    daemon.stop()?;
    step.done("");
    Ok(measurements)
}

fn verify_job(options: &Options) -> FioJob {
    FioJob {
        depth: 16,
        bytes: Some(VERIFY_BYTES.min(options.image_bytes())),
        verify: Verify::AfterWrite,
        ..FioJob::new("verify", DEVICE, Pattern::RandWrite)
    }
}

/// Stock Gluster takes over: it knows what the other bricks miss, and heals it.
fn heal(volume: &Volume) -> Result<Copies> {
    let step = Step::begin("gluster volume heal info");
    let info = volume.heal_info(NODE)?;
    step.done("");
    print_heal_info(&info);
    if !info.lists(IMAGE) && !volume.copies_equal(IMAGE)?.are_equal() {
        return Err(Error::Unsuitable(format!(
            "the copies of {IMAGE} differ, and Gluster does not know it:\n{}",
            volume.marks(IMAGE)?
        )));
    }
    let step = Step::begin("gluster volume heal");
    volume.wait_healed(IMAGE, HEAL_DEADLINE)?;
    step.done("every mark is gone");
    let step = Step::begin("comparing all copies byte for byte");
    let copies = volume.copies_equal(IMAGE)?;
    step.done("");
    Ok(copies)
}

fn print_heal_info(info: &HealInfo) {
    for brick in &info.bricks {
        eprintln!("    {}: {}", brick.name, brick.entries.join(", "));
    }
}
