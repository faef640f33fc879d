//! What the device offers: feature bits and the virtio-blk config space.
//!
//! Numbers and layout: virtio 1.2, section 5.2. The answers are the truth about
//! the file: block size, cache mode, what a discard's unit is.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::device::config::Config;
use crate::device::io::disk::Disk;
use crate::device::limits::SECTOR;
use crate::device::request::decode::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};

/// Bytes of config space that a vhost-user message can carry (`VHOST_USER_CONFIG_SIZE`).
const SPACE_LEN: usize = 256;
/// Offset of the `writeback` byte in the config space.
const WRITEBACK_OFFSET: u32 = 32;

/// The part of the config space that has a meaning for the features offered.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Layout {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// The virtio and vhost feature bits offered for `disk`.
pub fn features(disk: &Disk) -> u64 {
    let mut bits = vec![
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_F_VERSION_1,
    ];
    if disk.read_only() {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ]);
    }
    let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
    bits.iter().fold(vhost.bits(), |all, &bit| all | 1 << bit)
}

/// The vhost-user protocol features offered.
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
}

/// `size` bytes of the config space from `offset`; what lies behind the last
/// field reads as zeros, and nothing can be read behind the 256th byte.
pub fn read(disk: &Disk, config: &Config, writeback: bool, offset: u32, size: u32) -> Vec<u8> {
    let sectors = |bytes: u32| U32::new(bytes / SECTOR);
    let block = disk.block_size();
    let mutable = |limit: u32| U32::new(if disk.read_only() { 0 } else { limit });
    let layout = Layout {
        capacity: U64::new(disk.size() / u64::from(SECTOR)),
        size_max: U32::ZERO,
        seg_max: U32::new(config.seg_max().into()),
        cylinders: U16::ZERO,
        heads: 0,
        sectors: 0,
        blk_size: U32::new(block),
        physical_block_exp: (disk.cluster() / block).ilog2() as u8,
        alignment_offset: 0,
        min_io_size: U16::new((disk.cluster() / block) as u16),
        opt_io_size: U32::ZERO,
        writeback: writeback.into(),
        unused0: 0,
        num_queues: U16::new(config.num_queues),
        max_discard_sectors: mutable(MAX_DISCARD_SECTORS),
        max_discard_seg: mutable(MAX_RANGES),
        discard_sector_alignment: sectors(disk.cluster()),
        max_write_zeroes_sectors: mutable(MAX_WRITE_ZEROES_SECTORS),
        max_write_zeroes_seg: mutable(MAX_RANGES),
        write_zeroes_may_unmap: (!disk.read_only()).into(),
        unused1: [0; 3],
    };
    let mut space = layout.as_bytes().to_vec();
    space.resize(SPACE_LEN, 0);
    let end = offset.saturating_add(size) as usize;
    space
        .get(offset as usize..end)
        .map(<[u8]>::to_vec)
        .unwrap_or_default()
}

/// The cache mode that a write of `bytes` at `offset` asks for; nothing else in
/// the config space can be written.
pub fn written_writeback(offset: u32, bytes: &[u8]) -> Option<bool> {
    match (offset, bytes) {
        (WRITEBACK_OFFSET, [0]) => Some(false),
        (WRITEBACK_OFFSET, [1]) => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    fn disk(write: bool) -> Disk {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(3 << 20).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(image.path())
            .unwrap();
        Disk::new(file, "serial").unwrap()
    }

    fn field(disk: &Disk, offset: u32, size: u32) -> u64 {
        let bytes = read(disk, &Config::default(), true, offset, size);
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    #[test]
    fn the_fields_lie_where_the_specification_has_them() {
        let disk = disk(true);
        assert_eq!(field(&disk, 0, 8), (3 << 20) / 512);
        assert_eq!(field(&disk, 12, 4), 126);
        assert_eq!(field(&disk, 20, 4), u64::from(disk.block_size()));
        assert_eq!(field(&disk, 32, 1), 1);
        assert_eq!(field(&disk, 34, 2), 4);
        assert_eq!(field(&disk, 36, 4), u64::from(MAX_DISCARD_SECTORS));
        assert_eq!(field(&disk, 40, 4), u64::from(MAX_RANGES));
        assert_eq!(field(&disk, 44, 4), u64::from(disk.cluster() / 512));
        assert_eq!(field(&disk, 48, 4), u64::from(MAX_WRITE_ZEROES_SECTORS));
        assert_eq!(field(&disk, 56, 1), 1);
    }

    #[test]
    fn the_config_space_ends_at_256_bytes() {
        let disk = disk(true);
        let config = Config::default();
        assert_eq!(read(&disk, &config, true, 0, 256).len(), 256);
        assert!(read(&disk, &config, true, 1, 256).is_empty());
        assert!(read(&disk, &config, true, u32::MAX, u32::MAX).is_empty());
    }

    #[test]
    fn a_read_only_disk_offers_no_change_of_its_contents() {
        let features = features(&disk(false));
        assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
        for bit in [
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_BLK_F_CONFIG_WCE,
        ] {
            assert_eq!(features & 1 << bit, 0);
        }
        assert_eq!(field(&disk(false), 36, 4), 0);
    }

    #[test]
    fn a_guest_can_be_migrated_and_its_requests_outlive_us() {
        let logging = VhostUserVirtioFeatures::LOG_ALL.bits();
        assert_ne!(features(&disk(true)) & logging, 0);
        assert!(protocol_features().contains(
            VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        ));
    }

    #[test]
    fn a_disk_that_grows_says_so_at_once() {
        let disk = disk(true);
        disk.grow(4 << 20);
        assert_eq!(field(&disk, 0, 8), (4 << 20) / 512);
        assert!(protocol_features().contains(VhostUserProtocolFeatures::BACKEND_REQ));
    }

    #[test]
    fn nothing_unfinished_is_offered() {
        use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
        let features = features(&disk(true));
        assert_eq!(features & 1 << VIRTIO_F_RING_PACKED, 0);
        let protocol = protocol_features();
        assert!(!protocol.intersects(
            VhostUserProtocolFeatures::STATUS | VhostUserProtocolFeatures::DEVICE_STATE
        ));
    }

    #[test]
    fn only_the_writeback_byte_can_be_written() {
        assert_eq!(written_writeback(32, &[0]), Some(false));
        assert_eq!(written_writeback(32, &[1]), Some(true));
        for (offset, bytes) in [(32, &[2][..]), (32, &[0, 0]), (31, &[0]), (32, &[])] {
            assert_eq!(written_writeback(offset, bytes), None);
        }
    }
}
