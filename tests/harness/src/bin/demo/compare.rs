//! The same workloads on each way to give a guest this image.

use std::fs;
use std::io;

use bypass_harness::bench::{self, Measurement, Workload};
use bypass_harness::{Disk, Error, Guest, GuestConfig, GuestImage, Place, Result, Volume};

use crate::Options;
use crate::story::{DEVICE, IMAGE, NODE};

/// The disk that the others are compared with.
pub const LIMIT: &str = "bare brick file";

/// Runs all workloads in a guest that is up.
pub fn measure_all(guest: &Guest, name: &str, options: &Options) -> Result<Vec<Measurement>> {
    let workloads = [Workload::READS, Workload::WRITES].concat();
    bench::measure(guest, &[(name, DEVICE)], &workloads, options.runtime(), 1)
}

/// The other ways: QEMU's Gluster driver, a FUSE mount, and as the measure of
/// what the disk itself can do, a copy of the image that is on the brick's file
/// system but not in the volume.
pub fn other_ways(
    image: &GuestImage,
    volume: &Volume,
    options: &Options,
) -> Result<Vec<Measurement>> {
    let node = volume.brick_node(NODE);
    let place = node.place();
    let gluster = Disk::Gluster {
        server: node.address().to_owned(),
        volume: volume.name().to_owned(),
        image: IMAGE.to_owned(),
        queues: 1,
    };
    let mut all = on_disk(image, place, "QEMU's gluster driver", gluster, options)?;
    let mount = volume.mount(NODE)?;
    let path = mount.path().join(IMAGE.trim_start_matches('/'));
    all.extend(on_disk(
        image,
        place,
        "FUSE mount",
        Disk::File { path, queues: 1 },
        options,
    )?);
    drop(mount);
    let path = place.dir().join("bare.img");
    copy_through_disk(&volume.brick_file(NODE, IMAGE), &path)?;
    all.extend(on_disk(
        image,
        place,
        LIMIT,
        Disk::File {
            path: path.clone(),
            queues: 1,
        },
        options,
    )?);
    fs::remove_file(&path).map_err(|source| file_error("remove", &path, source))?;
    Ok(all)
}

fn on_disk(
    image: &GuestImage,
    place: &Place,
    name: &str,
    disk: Disk,
    options: &Options,
) -> Result<Vec<Measurement>> {
    let guest = Guest::boot(image, place, &GuestConfig::new(vec![disk]))?;
    let measurements = measure_all(&guest, name, options)?;
    guest.power_off()?;
    Ok(measurements)
}

/// Copies and syncs, so that no write-back runs beside the measurement.
fn copy_through_disk(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let copy = |from| fs::copy(from, to).and_then(|_| fs::File::open(to)?.sync_all());
    copy(from).map_err(|source| file_error("copy to", to, source))
}

fn file_error(what: &'static str, path: &std::path::Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}
