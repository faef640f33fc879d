//! An image in shards, as it is on the bricks.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bypass_harness::{Cluster, Fill, Marks, Volume, VolumeKind};

use super::{IMAGE, IMAGE_BYTES, PATIENCE, pattern};

/// Bytes of a shard: the least that Gluster takes.
pub const SHARD: u64 = 4 << 20;
/// How many files [`IMAGE`] is made of.
pub const FILES: u64 = IMAGE_BYTES / SHARD;

/// A started volume `gv0` with [`IMAGE`] on it, in shards.
pub fn sharded(
    cluster: &Cluster,
    kind: VolumeKind,
    fill: Fill,
    options: &[(&str, &str)],
) -> Volume {
    let mut all = vec![
        ("network.ping-timeout", "5"),
        ("features.shard", "on"),
        ("features.shard-block-size", "4MB"),
    ];
    all.extend(options);
    let volume = cluster.create_volume("gv0", kind, &all).unwrap();
    volume.start().unwrap();
    let mount = volume.mount(0).unwrap();
    let image = File::create(mount.path().join(IMAGE.trim_start_matches('/'))).unwrap();
    image.set_len(IMAGE_BYTES).unwrap();
    if fill == Fill::Noise {
        let bytes = pattern(99, 0, IMAGE_BYTES as usize);
        image.write_all_at(&bytes, 0).unwrap();
    }
    image.sync_all().unwrap();
    drop((image, mount));
    // A mount that ends may leave its last writes as ones that were cut short.
    match fill {
        Fill::Noise => wait_healed(&volume),
        Fill::Sparse => volume.wait_healed(IMAGE, PATIENCE).unwrap(),
    }
    volume
}

/// The identity of [`IMAGE`].
pub fn gfid(volume: &Volume) -> uuid::Uuid {
    let found = xattr::get(volume.brick_file(0, IMAGE), "trusted.gfid").unwrap();
    uuid::Uuid::from_slice(&found.unwrap()).unwrap()
}

/// Bytes of the image, as each brick has them.
pub fn sizes(volume: &Volume) -> Vec<u64> {
    (0..3).map(|brick| noted(volume, brick, 0)).collect()
}

/// Blocks of 512 bytes that the image uses, as each brick says.
pub fn blocks(volume: &Volume) -> Vec<u64> {
    (0..3).map(|brick| noted(volume, brick, 2)).collect()
}

/// One of the four numbers of the attribute that has both.
fn noted(volume: &Volume, brick: usize, number: usize) -> u64 {
    let path = volume.brick_file(brick, IMAGE);
    let value = xattr::get(path, "trusted.glusterfs.shard.file-size").unwrap();
    u64::from_be_bytes(value.unwrap()[8 * number..][..8].try_into().unwrap())
}

/// The same, as one brick's disk has them.
pub fn blocks_used(volume: &Volume, brick: usize, files: u64) -> u64 {
    let used = |number| fs::metadata(volume.brick_file(brick, &file(volume, number)));
    (0..files)
        .map(|number| used(number).unwrap().blocks())
        .sum()
}

/// The path in the volume of one of its files; 0 is its own.
pub fn file(volume: &Volume, number: u64) -> String {
    match number {
        0 => IMAGE.to_owned(),
        number => format!("/.shard/{}.{number}", gfid(volume)),
    }
}

/// A file on a brick.
pub fn on_brick(volume: &Volume, brick: usize, number: u64) -> PathBuf {
    volume.brick_file(brick, &file(volume, number))
}

/// The marks on a file.
pub fn marks(volume: &Volume, number: u64) -> Marks {
    volume.marks(&file(volume, number)).unwrap()
}

/// The files that have any mark.
pub fn marked(volume: &Volume) -> Vec<u64> {
    let files = 0..FILES;
    files.filter(|&n| !marks(volume, n).is_clean()).collect()
}

/// The disk as a brick has it: what a file lacks reads as zeros.
pub fn disk(volume: &Volume, brick: usize) -> Vec<u8> {
    let mut disk = Vec::new();
    for number in 0..FILES {
        let mut bytes = fs::read(on_brick(volume, brick, number)).unwrap_or_default();
        bytes.resize(SHARD as usize, 0);
        disk.extend(bytes);
    }
    disk
}

/// All copies of every file have the same bytes and the same size.
pub fn assert_equal(volume: &Volume) {
    for number in 0..FILES {
        let copies = volume.copies_equal(&file(volume, number)).unwrap();
        assert!(copies.are_equal(), "shard {number}: {copies:?}");
    }
}

/// Waits until stock Gluster has healed every file.
pub fn wait_healed(volume: &Volume) {
    let begin = Instant::now();
    for number in 0..FILES {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        volume.wait_healed(&file(volume, number), left).unwrap();
    }
}

/// What a fresh mount reads.
pub fn read_by_mount(volume: &Volume, node: usize) -> Vec<u8> {
    let mount = volume.mount(node).unwrap();
    let path: &Path = mount.path();
    fs::read(path.join(IMAGE.trim_start_matches('/'))).unwrap()
}
