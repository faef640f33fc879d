use super::*;
use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Bytes;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const SIZE: usize = 0x10000;
const TABLE: GuestAddress = GuestAddress(0);
const TABLE_LEN: u16 = 16;

fn memory() -> Memory {
    // Two regions side by side, and nothing behind them.
    Memory::from_ranges(&[
        (GuestAddress(0), SIZE / 2),
        (GuestAddress(SIZE as u64 / 2), SIZE / 2),
    ])
    .unwrap()
}

fn put(memory: &Memory, table: u64, index: u16, desc: (u64, u32, u16, u16)) {
    let descriptor = Descriptor::new(desc.0, desc.1, desc.2, desc.3);
    let addr = GuestAddress(table + 16 * u64::from(index));
    memory.write_obj(descriptor, addr).unwrap();
}

fn walk(memory: &Memory, head: u16) -> Result<Chain, ChainError> {
    let mut chain = Chain::default();
    chain.walk(memory, TABLE, TABLE_LEN, head).map(|()| chain)
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment {
        addr: GuestAddress(addr),
        len,
    }
}

#[test]
fn a_header_and_a_status_may_lie_anywhere_in_their_parts() {
    let memory = memory();
    put(&memory, 0, 3, (0x1000, 10, NEXT, 5));
    put(&memory, 0, 5, (0x2000, 6 + 512, NEXT, 1));
    put(&memory, 0, 1, (0x3000, 101, WRITE, 0));
    memory.write_slice(&[1; 10], GuestAddress(0x1000)).unwrap();
    memory.write_slice(&[2; 6], GuestAddress(0x2000)).unwrap();
    let mut chain = walk(&memory, 3).unwrap();
    let header: [u8; 16] = chain.take_header(&memory).unwrap();
    assert_eq!(header, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    assert_eq!(chain.readable(), [segment(0x2006, 512)]);
    assert_eq!(chain.take_status(&memory), Ok(GuestAddress(0x3000 + 100)));
    assert_eq!(chain.writable(), [segment(0x3000, 100)]);
}

#[test]
fn an_indirect_table_continues_the_chain() {
    let memory = memory();
    put(&memory, 0, 0, (0x1000, 16, NEXT, 1));
    put(&memory, 0, 1, (0x4000, 32, INDIRECT, 0));
    put(&memory, 0x4000, 0, (0x2000, 512, NEXT, 1));
    put(&memory, 0x4000, 1, (0x3000, 1, WRITE, 0));
    let chain = walk(&memory, 0).unwrap();
    assert_eq!(
        chain.readable(),
        [segment(0x1000, 16), segment(0x2000, 512)]
    );
    assert_eq!(chain.writable(), [segment(0x3000, 1)]);
}

/// A read of so many segments in an indirect table, whose status is at 0x7000.
fn read_of(memory: &Memory, segments: u16) -> Result<Chain, (Chain, ChainError)> {
    put(
        memory,
        0,
        0,
        (0x8000, u32::from(segments) * 16 + 32, INDIRECT, 0),
    );
    put(memory, 0x8000, 0, (0x1000, 16, NEXT, 1));
    for index in 1..=segments {
        put(
            memory,
            0x8000,
            index,
            (0x2000, 512, NEXT | WRITE, index + 1),
        );
    }
    put(memory, 0x8000, segments + 1, (0x7000, 1, WRITE, 0));
    let mut chain = Chain::default();
    match chain.walk(memory, TABLE, TABLE_LEN, 0) {
        Ok(()) => Ok(chain),
        Err(error) => Err((chain, error)),
    }
}

#[test]
fn a_request_has_as_many_segments_as_one_system_call_takes() {
    let memory = memory();
    let mut chain = read_of(&memory, 1024).map_err(|(_, error)| error).unwrap();
    assert_eq!(chain.take_status(&memory), Ok(GuestAddress(0x7000)));
    assert_eq!(chain.writable().len(), 1024);
}

#[test]
fn the_status_of_a_request_with_too_many_segments_is_found() {
    let memory = memory();
    for segments in [1025, 1026, 2000] {
        let (mut chain, error) = read_of(&memory, segments).unwrap_err();
        assert_eq!(error, ChainError::TooLong, "{segments}");
        assert_eq!(chain.take_status(&memory), Ok(GuestAddress(0x7000)));
    }
}

#[test]
fn every_malformation_has_its_name() {
    let memory = memory();
    let check = |descs: &[(u64, u32, u16, u16)], expected: ChainError| {
        for (index, &desc) in descs.iter().enumerate() {
            put(&memory, 0, index as u16, desc);
        }
        assert_eq!(walk(&memory, 0).unwrap_err(), expected);
    };
    check(&[(0x1000, 16, NEXT, 0)], ChainError::Loop);
    check(
        &[(0x1000, 16, NEXT, 16)],
        ChainError::Index { index: 16, len: 16 },
    );
    check(
        &[(0x1000, 16, WRITE | NEXT, 1), (0x2000, 16, 0, 0)],
        ChainError::Order,
    );
    check(&[(u64::MAX, 2, 0, 0)], ChainError::Address);
    check(&[(0x4000, 16, INDIRECT | NEXT, 1)], ChainError::Indirect);
    for len in [0, 15, 17, u32::MAX, (u32::from(MAX_TABLE) + 1) * 16] {
        check(
            &[(0x4000, len, INDIRECT, 0)],
            ChainError::IndirectLength { len },
        );
    }
    put(&memory, 0x4000, 0, (0x5000, 16, INDIRECT, 0));
    check(&[(0x4000, 16, INDIRECT, 0)], ChainError::Indirect);
    check(&[(SIZE as u64, 16, INDIRECT, 0)], ChainError::Table);
    assert_eq!(
        walk(&memory, 99).unwrap_err(),
        ChainError::Index { index: 99, len: 16 }
    );
}

#[test]
fn a_part_that_is_missing_or_not_in_memory_is_noticed() {
    let memory = memory();
    let header = |desc| {
        put(&memory, 0, 0, desc);
        walk(&memory, 0).unwrap().take_header::<16>(&memory)
    };
    assert_eq!(header((0x1000, 15, 0, 0)), Err(ChainError::NoHeader));
    assert_eq!(
        header((SIZE as u64 - 8, 16, 0, 0)),
        Err(ChainError::NoHeader)
    );
    let status = |desc| {
        put(&memory, 0, 0, desc);
        walk(&memory, 0).unwrap().take_status(&memory)
    };
    assert_eq!(status((0x1000, 16, 0, 0)), Err(ChainError::NoStatus));
    assert_eq!(status((0x1000, 0, WRITE, 0)), Err(ChainError::NoStatus));
    assert_eq!(
        status((SIZE as u64 - 8, 9, WRITE, 0)),
        Err(ChainError::NoStatus)
    );
}

#[test]
fn copies_keep_their_place_over_segments_and_regions() {
    let memory = memory();
    let half = SIZE as u64 / 2;
    let segments = [segment(half - 3, 7), segment(0x100, 5)];
    copy_to_guest(&memory, &segments, 2, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
    let mut back = [0; 12];
    copy_from_guest(&memory, &segments, 0, &mut back).unwrap();
    assert_eq!(back, [0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0]);
    assert_eq!(copy_to_guest(&memory, &segments, 6, &[0; 7]), None);
    assert_eq!(
        copy_from_guest(&memory, &[segment(SIZE as u64, 1)], 0, &mut [0]),
        None
    );
}

fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr = prop_oneof![0..SIZE as u64 + 64, any::<u64>()];
    let len = prop_oneof![0..64u32, (0..8u32).prop_map(|n| n * 16), any::<u32>()];
    let flags = prop_oneof![4 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..20u16, 1 => any::<u16>()];
    proptest::collection::vec((addr, len, flags, next), 64)
}

proptest! {
    #[test]
    fn any_table_yields_a_chain_or_an_error(descs in descriptors(), head in 0..20u16) {
        let memory = memory();
        for (index, &desc) in descs.iter().enumerate() {
            put(&memory, 0, index as u16, desc);
        }
        let mut chain = Chain::default();
        if chain.walk(&memory, TABLE, TABLE_LEN, head).is_ok() {
            let before = total_len(chain.readable());
            let segments = chain.readable().len() + chain.writable().len();
            prop_assert!(segments <= MAX_SEGMENTS);
            if chain.take_header::<16>(&memory).is_ok() {
                prop_assert_eq!(total_len(chain.readable()), before - 16);
            }
            let before = total_len(chain.writable());
            if let Ok(status) = chain.take_status(&memory) {
                prop_assert!(status.0 < SIZE as u64);
                prop_assert_eq!(total_len(chain.writable()), before - 1);
            }
            prop_assert!(chain.writable().iter().all(|segment| segment.len > 0));
        }
    }
}
