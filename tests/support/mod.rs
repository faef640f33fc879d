//! What the end-to-end tests share: a running `bypass-blk serve`, a front-end
//! without a guest, and a volume with an image.
//!
//! Each test target uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod certificates;
pub mod daemon;
pub mod front_end;
pub mod healer;
pub mod locker;
pub mod migration;
pub mod netns;
pub mod power;
pub mod shards;
pub mod small_disk;
pub mod tmpfs;
pub mod volatile_disk;

use std::time::Duration;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind};

/// The image of most tests.
pub const IMAGE: &str = "/vm1.img";
/// Its size in bytes.
pub const IMAGE_BYTES: u64 = 64 << 20;
/// How long anything that works may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A started replica-3 volume `gv0` with [`IMAGE`] on it.
pub fn replica_3(cluster: &Cluster) -> Volume {
    volume_with_image(cluster, VolumeKind::Replica(3), &[])
}

/// A started volume `gv0` of this kind with [`IMAGE`] on it.
pub fn volume_with_image(cluster: &Cluster, kind: VolumeKind, options: &[(&str, &str)]) -> Volume {
    let mut all = vec![("network.ping-timeout", "5")];
    all.extend(options);
    let volume = cluster.create_volume("gv0", kind, &all).unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Noise)
        .unwrap();
    volume
}

/// Bytes that name their place: `seed` and the offset, every 16 bytes.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for at in (offset..offset + len as u64).step_by(16) {
        bytes.extend_from_slice(&seed.to_le_bytes());
        bytes.extend_from_slice(&at.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
