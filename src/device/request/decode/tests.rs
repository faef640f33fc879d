use super::*;
use proptest::prelude::*;

const GEOMETRY: Geometry = Geometry {
    size: 1 << 20,
    block: 512,
    read_only: false,
};

fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
    let mut raw = [0; HEADER_LEN];
    raw[..4].copy_from_slice(&kind.to_le_bytes());
    raw[8..].copy_from_slice(&sector.to_le_bytes());
    raw
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut raw = sector.to_le_bytes().to_vec();
    raw.extend(sectors.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    raw
}

#[test]
fn reads_and_writes_have_the_length_of_their_data() {
    let extent = Extent {
        offset: 512 * 7,
        len: 4096,
    };
    let read = parse(&header(VIRTIO_BLK_T_IN, 7), 0, 4096, &GEOMETRY);
    assert_eq!(read, Ok(Request::Read(extent)));
    let write = parse(&header(VIRTIO_BLK_T_OUT, 7), 4096, 0, &GEOMETRY);
    assert_eq!(write, Ok(Request::Write(extent)));
}

#[test]
fn the_last_block_is_inside_and_the_next_is_not() {
    let last = (GEOMETRY.size / 512) - 1;
    assert!(parse(&header(VIRTIO_BLK_T_IN, last), 0, 512, &GEOMETRY).is_ok());
    for (sector, len) in [
        (last, 1024),
        (last + 1, 512),
        (u64::MAX / 512, 512),
        (u64::MAX, 512),
        (u64::MAX / 512, u64::MAX - 511),
    ] {
        let error = parse(&header(VIRTIO_BLK_T_IN, sector), 0, len, &GEOMETRY);
        assert!(
            matches!(error, Err(RequestError::OutOfRange { .. })),
            "{sector} {len}: {error:?}"
        );
    }
}

#[test]
fn parts_of_blocks_are_refused() {
    let geometry = Geometry {
        block: 4096,
        ..GEOMETRY
    };
    for (sector, len) in [(0, 512), (1, 4096), (0, 0), (8, 4095)] {
        let error = parse(&header(VIRTIO_BLK_T_IN, sector), 0, len, &geometry).unwrap_err();
        assert_eq!(error, RequestError::Block { sector, len });
        assert_eq!(error.status(), Status::IoError);
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let geometry = Geometry {
        read_only: true,
        ..GEOMETRY
    };
    for kind in [
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        let error = parse(&header(kind, 0), 4096, 0, &geometry).unwrap_err();
        assert_eq!(error, RequestError::ReadOnly);
    }
    assert!(parse(&header(VIRTIO_BLK_T_IN, 0), 0, 512, &geometry).is_ok());
    assert!(parse(&header(VIRTIO_BLK_T_FLUSH, 0), 0, 0, &geometry).is_ok());
}

#[test]
fn unknown_types_are_not_supported() {
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, u32::MAX] {
        let error = parse(&header(kind, 0), 512, 512, &GEOMETRY).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported, "type {kind}");
    }
}

#[test]
fn the_number_of_ranges_is_limited() {
    let limit = RANGE_LEN as u64 * u64::from(MAX_RANGES);
    assert!(parse(&header(VIRTIO_BLK_T_DISCARD, 0), limit, 0, &GEOMETRY).is_ok());
    for len in [0, 1, 15, 17, limit + 16, u64::MAX - 15] {
        let error = parse(&header(VIRTIO_BLK_T_DISCARD, 0), len, 0, &GEOMETRY);
        assert_eq!(error, Err(RequestError::Ranges(len)));
    }
}

#[test]
fn one_bad_range_refuses_the_whole_request() {
    let mut extents = Vec::new();
    let mut bytes = range(0, 8, 0);
    bytes.extend(range(GEOMETRY.size / 512 - 4, 8, 0));
    let error = parse_discard(&bytes, &GEOMETRY, &mut extents).unwrap_err();
    assert!(matches!(error, RequestError::OutOfRange { .. }));
}

#[test]
fn flags_of_ranges_are_checked_per_type() {
    let mut extents = Vec::new();
    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let error = parse_discard(&range(0, 8, unmap), &GEOMETRY, &mut extents).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    let error = parse_write_zeroes(&range(0, 8, 2), &GEOMETRY, &mut extents).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    let kind = parse_write_zeroes(&range(0, 8, unmap), &GEOMETRY, &mut extents);
    assert_eq!(kind, Ok(RangeKind::WriteZeroes { unmap: true }));
}

#[test]
fn space_is_kept_if_one_range_wants_it_kept() {
    let mut extents = Vec::new();
    let mut bytes = range(0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    bytes.extend(range(8, 8, 0));
    let kind = parse_write_zeroes(&bytes, &GEOMETRY, &mut extents);
    assert_eq!(kind, Ok(RangeKind::WriteZeroes { unmap: false }));
    assert_eq!(extents.len(), 2);
}

#[test]
fn ranges_longer_than_offered_are_refused() {
    let mut extents = Vec::new();
    let geometry = Geometry {
        size: u64::MAX - 511,
        ..GEOMETRY
    };
    let at_limit = range(0, MAX_DISCARD_SECTORS, 0);
    assert!(parse_discard(&at_limit, &geometry, &mut extents).is_ok());
    let above = range(0, MAX_WRITE_ZEROES_SECTORS + 1, 0);
    assert!(parse_write_zeroes(&above, &geometry, &mut extents).is_err());
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let block = prop_oneof![Just(512), Just(1024), Just(4096)];
    (any::<u64>(), block, any::<bool>()).prop_map(|(size, block, read_only)| Geometry {
        size: size / u64::from(block) * u64::from(block),
        block,
        read_only,
    })
}

fn inside(extent: &Extent, geometry: &Geometry) -> bool {
    let block = u64::from(geometry.block);
    extent.len > 0
        && extent.offset.is_multiple_of(block)
        && extent.len.is_multiple_of(block)
        && extent
            .offset
            .checked_add(extent.len)
            .is_some_and(|end| end <= geometry.size)
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_on_the_disk_in_whole_blocks(
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..4096u64, any::<u64>()],
        readable in prop_oneof![0..65536u64, any::<u64>()],
        writable in prop_oneof![0..65536u64, any::<u64>()],
        geometry in geometries(),
    ) {
        match parse(&header(kind, sector), readable, writable, &geometry) {
            Ok(Request::Read(extent)) => prop_assert!(inside(&extent, &geometry)),
            Ok(Request::Write(extent)) => {
                prop_assert!(inside(&extent, &geometry) && !geometry.read_only);
            }
            Ok(Request::Discard(len) | Request::WriteZeroes(len)) => {
                prop_assert!(len <= RANGE_LEN * MAX_RANGES as usize && !geometry.read_only);
            }
            _ => {}
        }
    }

    #[test]
    fn whatever_ranges_are_accepted_lie_on_the_disk(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ranges in proptest::collection::vec((0..5000u64, 0..5000u32, 0..3u32), 0..16),
        geometry in geometries(),
    ) {
        let wellformed: Vec<u8> = ranges.iter().flat_map(|r| range(r.0, r.1, r.2)).collect();
        let mut extents = Vec::new();
        for bytes in [&bytes, &wellformed] {
            if parse_discard(bytes, &geometry, &mut extents).is_ok() {
                prop_assert!(extents.iter().all(|extent| inside(extent, &geometry)));
            }
            if parse_write_zeroes(bytes, &geometry, &mut extents).is_ok() {
                prop_assert!(extents.iter().all(|extent| inside(extent, &geometry)));
            }
        }
    }
}
