//! Requests that a front-end lays out by hand: what a correct driver asks for, what must not be
//! done, and chains that are malformed.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::sync::atomic::Ordering;

use bypass_blk::device::EndReason;
use device_support::front_end::{DATA, Desc, FrontEnd, INDIRECT, NEXT, RING_SIZE, WRITE};
use device_support::{DISK_SIZE, Device, SERIAL, pattern};
use virtio_bindings::virtio_blk::*;

const OK: u32 = VIRTIO_BLK_S_OK;
const IO_ERROR: u32 = VIRTIO_BLK_S_IOERR;
const UNSUPPORTED: u32 = VIRTIO_BLK_S_UNSUPP;

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut raw = sector.to_le_bytes().to_vec();
    raw.extend(sectors.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    raw
}

#[test]
fn written_data_is_in_the_file_and_reads_back() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    let data = pattern(64 << 10, 1);
    guest.write(DATA, &data);
    // Several segments, page aligned.
    let segments: Vec<_> = (0..16).map(|i| (DATA + i * 4096, 4096)).collect();
    assert_eq!(guest.request(0, VIRTIO_BLK_T_OUT, 8, &segments), OK);
    guest.wait_call(0);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(device.image.read(8 * 512, data.len()), data);
    let back = DATA + (1 << 20);
    let status = guest.submit(1, VIRTIO_BLK_T_IN, 8, &[(back, data.len() as u32)]);
    assert_eq!(guest.wait_used(1).1, data.len() as u32 + 1);
    assert_eq!(u32::from(guest.byte(status)), OK);
    assert_eq!(guest.read(back, data.len()), data);
    let total = device.server.stats().snapshot().total();
    assert_eq!((total.reads, total.writes, total.flushes), (1, 1, 1));
    assert_eq!(total.written_bytes, data.len() as u64);
    assert_eq!((total.in_flight, total.errors), (0, 0));
    drop(guest);
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Disconnected);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn buffers_without_alignment_work() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    // More than one bounce buffer, odd addresses and lengths.
    let data = pattern(300 * 1024, 7);
    guest.write(DATA + 3, &data);
    let cut = 100_001;
    let rest = data.len() as u32 - cut;
    let segments = [(DATA + 3, cut), (DATA + 3 + u64::from(cut), rest)];
    assert_eq!(guest.request(0, VIRTIO_BLK_T_OUT, 16, &segments), OK);
    assert_eq!(device.image.read(16 * 512, data.len()), data);
    let back = DATA + (2 << 20) + 1;
    let segments = [(back, cut), (back + u64::from(cut), rest)];
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 16, &segments), OK);
    assert_eq!(guest.read(back, data.len()), data);
}

#[test]
fn header_and_status_may_share_descriptors_with_the_data() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let page = guest.header(VIRTIO_BLK_T_OUT, 0);
    let data = pattern(512, 3);
    guest.write(page + 16, &data);
    guest.put_chain(0, &[(page, 16 + 512, 0), (page + 1000, 1, WRITE)]);
    assert_eq!(guest.wait_used(0).1, 1);
    assert_eq!(u32::from(guest.byte(page + 1000)), OK);
    assert_eq!(device.image.read(0, 512), data);
    let page = guest.header(VIRTIO_BLK_T_IN, 0);
    guest.put_chain(
        0,
        &[(page, 7, 0), (page + 7, 9, 0), (page + 100, 513, WRITE)],
    );
    assert_eq!(guest.wait_used(0).1, 513);
    assert_eq!(guest.read(page + 100, 512), data);
    assert_eq!(u32::from(guest.byte(page + 612)), OK);
}

#[test]
fn an_indirect_chain_works() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let page = guest.header(VIRTIO_BLK_T_IN, 0);
    let table = page + 1024;
    guest.put_desc(
        table,
        0,
        Desc {
            addr: page,
            len: 16,
            flags: NEXT,
            next: 1,
        },
    );
    guest.put_desc(
        table,
        1,
        Desc {
            addr: DATA,
            len: 4096,
            flags: NEXT | WRITE,
            next: 2,
        },
    );
    guest.put_desc(
        table,
        2,
        Desc {
            addr: page + 16,
            len: 1,
            flags: WRITE,
            next: 0,
        },
    );
    guest.put_chain(0, &[(table, 48, INDIRECT)]);
    assert_eq!(guest.wait_used(0).1, 4097);
    assert_eq!(u32::from(guest.byte(page + 16)), OK);
    assert_eq!(guest.read(DATA, 4096), vec![0xee; 4096]);
}

#[test]
fn the_serial_is_told_as_far_as_it_fits() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20)]), OK);
    let mut expected = SERIAL.as_bytes().to_vec();
    expected.resize(20, 0);
    assert_eq!(guest.read(DATA, 20), expected);
    guest.write(DATA, &[0xaa; 20]);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 3)]), OK);
    assert_eq!(guest.read(DATA, 4), [b'b', b'y', b'p', 0xaa]);
}

#[test]
fn discarded_and_zeroed_ranges_are_zeros_and_their_neighbours_untouched() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let before = device.image.allocated_bytes();
    let mut ranges = range(8, 8, 0);
    ranges.extend(range(2048, 2048, 0));
    guest.write(DATA, &ranges);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 32)]), OK);
    assert!(device.image.allocated_bytes() <= before - (1 << 20));
    assert_eq!(device.image.read(0, 4096), vec![0xee; 4096]);
    assert_eq!(device.image.read(4096, 4096), vec![0; 4096]);
    assert_eq!(device.image.read(8192, 4096), vec![0xee; 4096]);
    assert_eq!(device.image.read(1 << 20, 1 << 20), vec![0; 1 << 20]);
    // Without unmap the space stays; with it, it goes. Not of whole clusters, too.
    for (flags, start) in [(0, 8192), (1, 12288)] {
        guest.write(DATA, &range(start + 1, 2046, flags));
        let before = device.image.allocated_bytes();
        assert_eq!(
            guest.request(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16)]),
            OK
        );
        assert_eq!(device.image.allocated_bytes() < before, flags == 1);
        let around = device.image.read(start * 512, 1 << 20);
        assert!(around[..512].iter().all(|&byte| byte == 0xee));
        assert!(around[512..(1 << 20) - 512].iter().all(|&byte| byte == 0));
        assert!(around[(1 << 20) - 512..].iter().all(|&byte| byte == 0xee));
    }
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn what_must_not_be_done_is_answered_and_leaves_the_file_alone() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let end = DISK_SIZE / 512;
    let page = (DATA, 4096);
    guest.write(DATA, &[0; 4096]);
    for (kind, sector, data, expected) in [
        (VIRTIO_BLK_T_OUT, end, page, IO_ERROR),
        (VIRTIO_BLK_T_OUT, end - 1, page, IO_ERROR),
        (VIRTIO_BLK_T_OUT, u64::MAX, page, IO_ERROR),
        (VIRTIO_BLK_T_OUT, u64::MAX / 512 + 1, page, IO_ERROR),
        (VIRTIO_BLK_T_OUT, 0, (DATA, 100), IO_ERROR),
        (VIRTIO_BLK_T_OUT, 0, (1 << 40, 4096), IO_ERROR),
        (VIRTIO_BLK_T_IN, end, page, IO_ERROR),
        (VIRTIO_BLK_T_IN, 0, (u64::MAX - 4095, 4096), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, 0, (DATA, 15), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, 0, (DATA, 17 * 16), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, 0, (1 << 40, 16), IO_ERROR),
        (VIRTIO_BLK_T_GET_ID, 0, (1 << 40, 20), IO_ERROR),
        (77, 0, page, UNSUPPORTED),
    ] {
        let status = guest.request(0, kind, sector, &[data]);
        assert_eq!(
            status, expected,
            "type {kind}, sector {sector}, data {data:?}"
        );
    }
    assert_eq!(
        device.image.read(0, DISK_SIZE as usize),
        vec![0xee; DISK_SIZE as usize]
    );
    assert_eq!(device.server.stats().snapshot().total().errors, 13);
    // Still in order afterwards.
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[page]), OK);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_read_only_disk_is_not_touched() {
    let device = Device::read_only();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    guest.write(DATA, &range(0, 8, 0));
    for (kind, len) in [
        (VIRTIO_BLK_T_OUT, 4096),
        (VIRTIO_BLK_T_DISCARD, 16),
        (VIRTIO_BLK_T_WRITE_ZEROES, 16),
    ] {
        assert_eq!(guest.request(0, kind, 0, &[(DATA, len)]), IO_ERROR);
    }
    assert_eq!(device.gate.asked.load(Ordering::SeqCst), 0);
    assert_eq!(device.image.read(0, 4096), vec![0xee; 4096]);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 4096)]), OK);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
}

#[test]
fn malformed_chains_are_returned_and_the_queue_goes_on() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let page = guest.header(VIRTIO_BLK_T_OUT, 0);
    let status = page + 16;
    let far = 1 << 40;
    type Descriptors<'a> = &'a [(u64, u32, u16)];
    let answered: [Descriptors<'_>; 3] = [
        // The header is cut short, or lies outside the memory.
        &[(page, 15, 0), (status, 1, WRITE)],
        &[(far, 16, 0), (status, 1, WRITE)],
        // Data after the status.
        &[(page, 16, 0), (status, 1, WRITE), (DATA, 512, 0)],
    ];
    for chain in answered {
        guest.write(status, &[0xff]);
        guest.put_chain(0, chain);
        assert_eq!(guest.wait_used(0).1, 1, "{chain:?}");
        assert_eq!(u32::from(guest.byte(status)), IO_ERROR, "{chain:?}");
    }
    let unanswerable: [Descriptors<'_>; 6] = [
        &[(page, 16, 0), (DATA, 512, 0)],
        &[(page, 16, 0), (status, 0, WRITE)],
        &[(page, 16, 0), (far, 1, WRITE)],
        &[(page, 16, 0), (u64::MAX, 2, WRITE)],
        &[(page, 33, INDIRECT)],
        &[(far, 32, INDIRECT)],
    ];
    for chain in unanswerable {
        guest.write(status, &[0xff]);
        let head = guest.put_chain(0, chain);
        assert_eq!(guest.wait_used(0), (head.into(), 0), "{chain:?}");
        assert_eq!(guest.byte(status), 0xff, "{chain:?}");
    }
    // A loop, an indirect table in an indirect table, heads outside the table.
    let looping = Desc {
        addr: page,
        len: 16,
        flags: NEXT,
        next: RING_SIZE - 1,
    };
    guest.put_desc(0, RING_SIZE - 1, looping);
    guest.put_desc(
        page + 64,
        0,
        Desc {
            addr: page,
            len: 32,
            flags: INDIRECT,
            next: 0,
        },
    );
    guest.put_desc(
        0,
        RING_SIZE - 2,
        Desc {
            addr: page + 64,
            len: 16,
            flags: INDIRECT,
            next: 0,
        },
    );
    for head in [RING_SIZE - 1, RING_SIZE - 2, RING_SIZE, u16::MAX] {
        guest.make_available(0, head);
        assert_eq!(guest.wait_used(0), (head.into(), 0));
    }
    assert_eq!(device.image.read(0, 4096), vec![0xee; 4096]);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
}

#[test]
fn a_request_of_more_segments_than_are_offered_is_done_or_told_to_have_failed() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let table = DATA + (4 << 20);
    for (segments, expected) in [(1024u16, OK), (1025, IO_ERROR), (2000, IO_ERROR)] {
        let page = guest.header(VIRTIO_BLK_T_IN, 0);
        let last = segments + 1;
        for index in 0..=last {
            let (addr, len, flags) = match index {
                0 => (page, 16, 0),
                _ if index == last => (page + 16, 1, WRITE),
                _ => (DATA + u64::from(index) * 512, 512, WRITE),
            };
            let flags = flags | if index == last { 0 } else { NEXT };
            let next = index + 1;
            guest.put_desc(
                table,
                index,
                Desc {
                    addr,
                    len,
                    flags,
                    next,
                },
            );
        }
        guest.put_chain(0, &[(table, 16 * (u32::from(last) + 1), INDIRECT)]);
        guest.wait_used(0);
        assert_eq!(u32::from(guest.byte(page + 16)), expected, "{segments}");
    }
    assert_eq!(guest.read(DATA + 512, 1024 * 512), vec![0xee; 1024 * 512]);
}
