//! Requests in flight that outlive the process that took them: the record that
//! the front-end keeps, and a daemon that is killed over and over.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::os::unix::fs::FileExt;

use bypass_blk::device::DeviceError;
use bypass_blk::device::gate::Admission;
use device_support::front_end::{DATA, FrontEnd, Inflight, ORDINARY, RING_SIZE};
use device_support::{Device, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use virtio_bindings::virtio_blk::*;
use zerocopy::IntoBytes;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
/// Descriptors of each queue for which a new record has room, whatever was asked for.
const ENTRIES: u16 = 1024;

/// One queue's part of the record, as the specification lays it out.
struct Part<'a> {
    inflight: &'a Inflight,
    begin: u64,
}

impl<'a> Part<'a> {
    fn new(inflight: &'a Inflight, queue: u64) -> Self {
        let len = inflight.description.mmap_size / u64::from(inflight.description.num_queues);
        Self {
            inflight,
            begin: queue * len,
        }
    }

    fn get<const N: usize>(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        let at = self.begin + offset;
        self.inflight
            .file
            .read_exact_at(&mut bytes[..N], at)
            .unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn set(&self, offset: u64, bytes: &[u8]) {
        self.inflight
            .file
            .write_all_at(bytes, self.begin + offset)
            .unwrap();
    }

    fn version(&self) -> u64 {
        self.get::<2>(8)
    }

    fn desc_num(&self) -> u64 {
        self.get::<2>(10)
    }

    fn used_idx(&self) -> u64 {
        self.get::<2>(14)
    }

    fn in_flight(&self, head: u16) -> bool {
        self.get::<1>(16 + 16 * u64::from(head)) == 1
    }

    fn counter(&self, head: u16) -> u64 {
        self.get::<8>(16 + 16 * u64::from(head) + 8)
    }

    /// What a device leaves that took `head` as the request number `counter`.
    fn put(&self, head: u16, counter: u64) {
        let entry = 16 + 16 * u64::from(head);
        self.set(entry + 8, counter.as_bytes());
        self.set(entry, &[1]);
    }

    /// What a device leaves that has begun.
    fn begun(&self) {
        self.set(8, &1u16.to_ne_bytes());
        self.set(10, &ENTRIES.to_ne_bytes());
    }

    fn any_in_flight(&self) -> bool {
        (0..ENTRIES).any(|head| self.in_flight(head))
    }
}

/// A front-end with a new record and running rings.
fn start(device: &Device, queues: usize) -> (FrontEnd, Inflight, device_support::Serving) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, queues, ORDINARY);
    let inflight = guest.get_inflight();
    guest.set_inflight(&inflight).unwrap();
    guest.share_memory();
    for queue in 0..queues {
        guest.start_queue(queue, 0);
    }
    (guest, inflight, serving)
}

#[test]
fn a_request_is_in_the_record_from_when_it_is_taken_until_it_is_answered() {
    let device = Device::new();
    let (mut guest, inflight, _serving) = start(&device, 2);
    assert_eq!(
        guest
            .request(1, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)])
            .to_le_bytes()[0],
        OK
    );
    device.gate.set(Admission::Wait);
    guest.submit(1, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    wait_for("the write to be parked", || device.parked() == 1);
    let part = Part::new(&inflight, 1);
    assert_eq!(inflight.description.mmap_size % 64, 0);
    assert_eq!(
        (part.version(), part.desc_num(), part.used_idx()),
        (1, 1024, 1)
    );
    // The second chain of three descriptors.
    assert!(part.in_flight(3));
    assert_eq!((part.counter(0), part.counter(3)), (0, 1));
    assert!(!Part::new(&inflight, 0).any_in_flight());
    device.gate.set(Admission::Go);
    guest.wait_used(1);
    guest.vhost.get_vring_base(1).unwrap();
    assert!(!part.any_in_flight());
    assert_eq!(part.used_idx(), 2);
}

/// QEMU 10.0.13 makes every ring as large as the driver likes, up to 1024 entries, and asks
/// for a record of `queue-size`, 128.
#[test]
fn rings_larger_than_the_record_that_was_asked_for_are_in_it_as_a_whole() {
    for ring_size in [256, 1024] {
        let device = Device::new();
        let (stream, serving) = device.serve();
        let mut guest = FrontEnd::connect(stream, 2, ORDINARY);
        (guest.queue_size, guest.ring_size) = (128, ring_size);
        let inflight = guest.get_inflight();
        assert_eq!(inflight.description.queue_size, 128);
        guest.set_inflight(&inflight).unwrap();
        guest.share_memory();
        for queue in 0..2 {
            guest.start_queue(queue, 0);
            let status = guest.request(queue, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]);
            assert_eq!(status, u32::from(OK));
        }
        // A request of the last descriptors is in flight when the daemon is lost.
        device.gate.set(Admission::Wait);
        let head = ring_size - 3;
        let page = guest.header(VIRTIO_BLK_T_OUT, 8);
        let chain = [(page, 16, 0), (DATA, 512, 0), (page + 16, 1, 2)];
        guest.put_chain_at(1, head, &chain);
        wait_for("the write to be parked", || device.parked() == 1);
        assert!(Part::new(&inflight, 1).in_flight(head));
        guest.vhost.get_vring_base(1).unwrap();
        Part::new(&inflight, 1).put(head, 7);
        // QEMU hands the record on with the size that it asked for.
        let (stream, _next) = device.serve();
        guest.reconnect(stream, &inflight);
        serving.join().unwrap().unwrap();
        device.gate.set(Admission::Go);
        assert_eq!(guest.wait_used(1).0, u32::from(head));
        assert_eq!(guest.byte(page + 16), OK);
    }
}

#[test]
fn a_parked_request_that_is_put_back_is_not_in_the_record() {
    let device = Device::new();
    let (mut guest, inflight, serving) = start(&device, 1);
    device.gate.set(Admission::Wait);
    let status = guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    wait_for("the write to be parked", || device.parked() == 1);
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 0);
    assert!(!Part::new(&inflight, 0).any_in_flight());
    // Nor is it lost to the next connection, which may be to another process.
    let (stream, _next) = device.serve();
    guest.reconnect(stream, &inflight);
    serving.join().unwrap().unwrap();
    device.gate.set(Admission::Go);
    guest.wait_used(0);
    assert_eq!(guest.byte(status), OK);
    assert_eq!(device.gate.unbalanced(), []);
}

/// Makes writes of one sector each to `sectors`, in the available ring of `queue`
/// but without a kick; returns their heads and statuses.
fn offer(guest: &mut FrontEnd, queue: usize, sectors: &[u64]) -> Vec<(u16, u64)> {
    sectors
        .iter()
        .zip(0..)
        .map(|(&sector, slot)| {
            let at = DATA + u64::from(slot) * 4096;
            guest.write(at, &[sector as u8; 512]);
            let page = guest.header(VIRTIO_BLK_T_OUT, sector);
            let chain = [(page, 16, 0), (at, 512, 0), (page + 16, 1, 2)];
            guest.put_chain_at(queue, slot * 3, &chain);
            (slot * 3, page + 16)
        })
        .collect()
}

/// A connection whose guest had a device that died: of its requests those of
/// `in_flight` (indices, in the order they were taken) had been taken.
fn resume(
    device: &Device,
    sectors: &[u64],
    in_flight: &[usize],
    answered: &[usize],
) -> (FrontEnd, Inflight, Vec<(u16, u64)>, device_support::Serving) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, 1, ORDINARY);
    let offered = offer(&mut guest, 0, sectors);
    let inflight = guest.get_inflight();
    let part = Part::new(&inflight, 0);
    part.begun();
    for (&index, counter) in in_flight.iter().zip(40..) {
        part.put(offered[index].0, counter);
    }
    for &index in answered {
        guest.push_used(0, offered[index].0);
    }
    part.set(14, &(answered.len() as u16).to_ne_bytes());
    guest.set_inflight(&inflight).unwrap();
    guest.share_memory();
    guest.start_queue(0, guest.used_index(0));
    (guest, inflight, offered, serving)
}

#[test]
fn requests_in_flight_are_done_again_in_their_order_before_new_ones() {
    let device = Device::new();
    // Taken in this order, as the counters say; the second was answered.
    let sectors = [16, 8, 24, 0, 40, 32];
    let (mut guest, inflight, offered, _serving) = resume(&device, &sectors, &[3, 0, 2], &[1]);
    for _ in 0..5 {
        guest.wait_used(0);
    }
    let offsets: Vec<u64> = [0, 16, 24, 40, 32]
        .iter()
        .map(|sector| sector * 512)
        .collect();
    assert_eq!(device.gate.order(), offsets);
    for (index, &(_, status)) in offered.iter().enumerate() {
        let expected = if index == 1 { 0xff } else { OK };
        assert_eq!(guest.byte(status), expected, "request {index}");
    }
    for sector in [0, 16, 24, 32, 40] {
        assert_eq!(device.image.read(sector * 512, 512), [sector as u8; 512]);
    }
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 6);
    assert!(!Part::new(&inflight, 0).any_in_flight());
}

#[test]
fn requests_in_flight_wait_at_the_gate_like_any_other() {
    let device = Device::new();
    device.gate.set(Admission::Wait);
    let (mut guest, inflight, offered, _serving) = resume(&device, &[0, 8, 16], &[1, 0], &[]);
    wait_for("the first to be parked", || device.parked() == 1);
    assert_eq!(device.gate.order(), [0u64; 0]);
    assert_eq!(device.image.read(0, 8192), vec![0xee; 8192]);
    let part = Part::new(&inflight, 0);
    assert!(part.in_flight(offered[0].0) && part.in_flight(offered[1].0));
    device.gate.set(Admission::Go);
    for _ in 0..3 {
        guest.wait_used(0);
    }
    assert_eq!(device.gate.order(), [8 * 512, 0, 16 * 512]);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_guest_that_waits_for_a_lost_interrupt_gets_one() {
    let device = Device::new();
    let (guest, ..) = resume(&device, &[0], &[], &[0]);
    guest.wait_call(0);
}

#[test]
fn requests_to_be_done_again_outlast_another_stop_of_the_ring() {
    // Once as they lie in the available ring; once with a gap, before which one stays in the
    // record, while the last one goes back into the ring.
    for (taken, answered, base) in [(&[0, 1][..], &[][..], 0), (&[0, 2], &[1], 2)] {
        let device = Device::new();
        device.gate.set(Admission::Wait);
        let (mut guest, inflight, offered, serving) = resume(&device, &[0, 8, 16], taken, answered);
        wait_for("the first to be parked", || device.parked() == 1);
        assert_eq!(guest.vhost.get_vring_base(0).unwrap(), base);
        let (stream, _next) = device.serve();
        guest.reconnect(stream, &inflight);
        serving.join().unwrap().unwrap();
        wait_for("the first to be parked again", || device.parked() == 1);
        device.gate.set(Admission::Go);
        for _ in answered.len()..3 {
            guest.wait_used(0);
        }
        for (index, &(_, status)) in offered.iter().enumerate() {
            let expected = if answered.contains(&index) { 0xff } else { OK };
            assert_eq!(guest.byte(status), expected, "request {index}");
        }
        assert_eq!(device.gate.order().len(), 3 - answered.len());
        assert!(!Part::new(&inflight, 0).any_in_flight());
    }
}

#[test]
fn a_record_that_makes_no_sense_stops_its_ring_alone() {
    let device = Device::new();
    let hostile: [(u64, &[u8]); 5] = [
        (8, &9u16.to_ne_bytes()),
        (10, &64u16.to_ne_bytes()),
        (0, &[1]),
        (16 + 16 * 5, &[7]),
        (14, &30_000u16.to_ne_bytes()),
    ];
    for (offset, bytes) in hostile {
        let (stream, serving) = device.serve();
        let mut guest = FrontEnd::connect(stream, 2, ORDINARY);
        let inflight = guest.get_inflight();
        let part = Part::new(&inflight, 0);
        part.begun();
        part.put(0, 1);
        part.set(offset, bytes);
        guest.share_memory();
        guest.start_queue(0, 0);
        guest.start_queue(1, 0);
        guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
        assert_eq!(guest.request(1, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
        let stats = device.server.stats();
        wait_for("the queue to be told dead", || stats.dead(0).is_some());
        assert!(stats.dead(0).unwrap().contains("record"));
        assert_eq!(stats.dead(1), None);
        guest.vhost.get_vring_base(0).unwrap();
        assert_eq!(stats.dead(0), None);
        assert_eq!(guest.used_index(0), 0);
        assert_eq!(device.gate.order(), [0u64; 0]);
        // With a new record it goes on.
        let fresh = guest.get_inflight();
        guest.set_inflight(&fresh).unwrap();
        guest.start_queue(0, 0);
        guest.wait_used(0);
        drop(guest);
        serving.join().unwrap().unwrap();
        assert_eq!(device.gate.order(), [0]);
        device.gate.forget();
    }
}

#[test]
fn memory_that_cannot_hold_the_record_is_refused_and_the_next_connection_works() {
    let device = Device::new();
    let spoil: [fn(&mut Inflight); 5] = [
        |inflight| inflight.description.mmap_size = 1,
        |inflight| inflight.description.mmap_offset = 4096,
        |inflight| inflight.description.mmap_offset = u64::MAX - 7,
        |inflight| inflight.description.queue_size = 2048,
        |inflight| {
            inflight.file = tempfile::tempfile().unwrap();
            inflight.file.set_len(1 << 20).unwrap();
        },
    ];
    for spoil in spoil {
        let (stream, serving) = device.serve();
        let mut guest = FrontEnd::connect(stream, 1, ORDINARY);
        let mut inflight = guest.get_inflight();
        spoil(&mut inflight);
        assert!(guest.set_inflight(&inflight).is_err());
        let error = serving.join().unwrap().unwrap_err();
        assert!(matches!(error, DeviceError::Inflight(_)), "{error:?}");
    }
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, 1, ORDINARY);
    let asked = VhostUserInflight::new(0, 0, 3, RING_SIZE);
    assert!(
        vhost::vhost_user::VhostUserFrontend::get_inflight_fd(&mut guest.vhost, &asked).is_err()
    );
    let error = serving.join().unwrap().unwrap_err();
    assert!(matches!(error, DeviceError::Inflight(_)), "{error:?}");
    let (mut guest, ..) = start(&device, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
}
