//! Requests that wait at the gate alone, as the one part of the disk is not marked yet: others pass them,
//! and when the ring stops none is lost, and none done twice.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::time::{Duration, Instant};

use bypass_blk::device::gate::Admission;
use device_support::front_end::{DATA, FrontEnd, Inflight, ORDINARY};
use device_support::{Device, Serving, pattern, wait_for};
use vhost::VhostBackend;
use virtio_bindings::virtio_blk::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
/// Not answered yet.
const NONE: u8 = 0xff;
const PAGE: u64 = 4096;

/// The first MiB waits, the rest does not.
const CLOSED: std::ops::Range<u64> = 0..1 << 20;
const OPEN: std::ops::Range<u64> = 0..0;

/// A front-end with a record of requests in flight, if it keeps one, and a running ring.
fn start(device: &Device, record: bool) -> (FrontEnd, Option<Inflight>, Serving) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, 1, ORDINARY);
    let inflight = record.then(|| guest.get_inflight());
    if let Some(inflight) = &inflight {
        guest.set_inflight(inflight).unwrap();
    }
    guest.share_memory();
    guest.start_queue(0, 0);
    (guest, inflight, serving)
}

/// Writes a page of the disk; returns where the status will be.
fn write(guest: &mut FrontEnd, page: u64) -> u64 {
    let at = DATA + page % 256 * PAGE;
    guest.write(at, &pattern(PAGE as usize, page as u8));
    guest.submit(0, VIRTIO_BLK_T_OUT, page * 8, &[(at, PAGE as u32)])
}

/// A page that does not wait.
const FREE: u64 = 512;

fn wait_parked(device: &Device, count: u64) {
    wait_for("requests to wait", || device.parked() == count);
}

fn is_written(device: &Device, page: u64) -> bool {
    device.image.read(page * PAGE, PAGE as usize) == pattern(PAGE as usize, page as u8)
}

fn wait_answers(guest: &mut FrontEnd, count: usize) {
    for _ in 0..count {
        guest.wait_used(0);
    }
}

fn statuses(guest: &FrontEnd, of: &[u64]) -> Vec<u8> {
    of.iter().map(|&status| guest.byte(status)).collect()
}

#[test]
fn others_pass_those_that_wait_alone_on_the_same_queue() {
    let device = Device::new();
    let (mut guest, _inflight, _serving) = start(&device, true);
    device.gate.close(CLOSED);
    let waiting: Vec<_> = (0..5).map(|page| write(&mut guest, page)).collect();
    wait_parked(&device, 5);
    for page in FREE..FREE + 20 {
        let status = write(&mut guest, page);
        guest.wait_used(0);
        assert_eq!(guest.byte(status), OK);
    }
    let read = guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA + (2 << 20), 4096)]);
    assert_eq!(read, u32::from(OK));
    assert_eq!(guest.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]), u32::from(OK));
    assert_eq!(statuses(&guest, &waiting), [NONE; 5]);
    assert!(!is_written(&device, 0));
    device.gate.close(OPEN);
    wait_answers(&mut guest, 5);
    assert_eq!(statuses(&guest, &waiting), [OK; 5]);
    assert!((0..5).all(|page| is_written(&device, page)));
    // In their order, after the others.
    assert_eq!(
        device.gate.order()[20..],
        [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE]
    );
    assert_eq!(device.gate.unbalanced(), []);
    assert_eq!(device.parked(), 0);
}

#[test]
fn a_gate_that_closes_for_all_and_opens_again_forgets_none_that_waits_alone() {
    let device = Device::new();
    let (mut guest, _inflight, _serving) = start(&device, true);
    device.gate.close(CLOSED);
    let alone = write(&mut guest, 1);
    wait_parked(&device, 1);
    device.gate.set(Admission::Wait);
    let parked = write(&mut guest, FREE);
    wait_parked(&device, 2);
    // What was taken waits for all; behind it nothing is taken.
    let behind = write(&mut guest, FREE + 1);
    device.gate.set(Admission::Go);
    wait_answers(&mut guest, 2);
    assert_eq!(statuses(&guest, &[alone, parked, behind]), [NONE, OK, OK]);
    device.gate.set(Admission::Refuse);
    guest.wait_used(0);
    assert_eq!(guest.byte(alone), IO_ERROR);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_range_in_two_places_waits_as_a_whole() {
    let device = Device::new();
    let (mut guest, _inflight, _serving) = start(&device, true);
    device.gate.close(CLOSED);
    let ranges: Vec<u8> = [FREE, 0]
        .iter()
        .flat_map(|page| [(page * 8).to_le_bytes(), 8u64.to_le_bytes()].concat())
        .collect();
    let page = guest.page();
    guest.write(page, &ranges);
    let status = guest.submit(0, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(page, 32)]);
    wait_parked(&device, 1);
    assert_eq!(
        device.gate.unbalanced(),
        [],
        "nothing is owed for the first"
    );
    assert_eq!(device.image.read(FREE * PAGE, 512), [0xee; 512]);
    device.gate.close(OPEN);
    guest.wait_used(0);
    assert_eq!(guest.byte(status), OK);
    for page in [FREE, 0] {
        assert_eq!(
            device.image.read(page * PAGE, PAGE as usize),
            [0; PAGE as usize]
        );
    }
}

#[test]
fn those_taken_last_go_back_into_the_ring_whether_there_is_a_record_or_not() {
    for record in [true, false] {
        let device = Device::new();
        let (mut guest, _inflight, _serving) = start(&device, record);
        let first = write(&mut guest, FREE);
        guest.wait_used(0);
        device.gate.close(CLOSED);
        let waiting: Vec<_> = (0..3).map(|page| write(&mut guest, page)).collect();
        wait_parked(&device, 3);
        assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 1, "as if not taken");
        guest.start_queue(0, 1);
        wait_parked(&device, 3);
        device.gate.close(OPEN);
        wait_answers(&mut guest, 3);
        assert_eq!(statuses(&guest, &waiting), [OK; 3]);
        assert_eq!(guest.byte(first), OK);
        assert_eq!(device.gate.order().len(), 4, "each is done once");
    }
}

#[test]
fn those_that_others_have_passed_stay_in_the_record_for_the_next_start_or_connection() {
    for new_connection in [false, true] {
        let device = Device::new();
        let (mut guest, inflight, serving) = start(&device, true);
        device.gate.close(CLOSED);
        let waiting: Vec<_> = (0..2).map(|page| write(&mut guest, page)).collect();
        wait_parked(&device, 2);
        let passed = write(&mut guest, FREE);
        guest.wait_used(0);
        assert_eq!(guest.byte(passed), OK);
        let last = write(&mut guest, 2);
        wait_parked(&device, 3);
        // The last one goes back into the ring.
        assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 3);
        let mut connections = vec![serving];
        if new_connection {
            let (stream, next) = device.serve();
            guest.reconnect(stream, &inflight.unwrap());
            connections.push(next);
        } else {
            guest.start_queue(0, 3);
        }
        wait_parked(&device, 3);
        let unrepeated = device.server.stats().snapshot().total().unrepeated;
        assert_eq!(unrepeated, 2, "they were taken before the ring stopped");
        device.gate.close(OPEN);
        wait_answers(&mut guest, 3);
        assert_eq!(statuses(&guest, &[waiting[0], waiting[1], last]), [OK; 3]);
        assert!((0..3).all(|page| is_written(&device, page)));
        assert_eq!(device.gate.order().len(), 4, "each is done once");
        assert_eq!(device.server.stats().snapshot().total().unrepeated, 0);
    }
}

#[test]
fn without_a_record_a_stop_waits_for_the_gate_and_loses_none_that_it_lets_go() {
    for leaving in [false, true] {
        let device = Device::new();
        let (mut guest, _inflight, _serving) = start(&device, leaving);
        if leaving {
            device.gate.leave();
        }
        device.gate.close(CLOSED);
        let waiting = write(&mut guest, 0);
        wait_parked(&device, 1);
        let passed = write(&mut guest, FREE);
        guest.wait_used(0);
        let last = write(&mut guest, 1);
        wait_parked(&device, 2);
        let asked = device.gate.asked.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            let stopped = scope.spawn(|| guest.vhost.get_vring_base(0).unwrap());
            wait_for("the gate to be asked again", || {
                device.gate.asked.load(std::sync::atomic::Ordering::SeqCst) > asked
            });
            assert!(!stopped.is_finished());
            device.gate.close(OPEN);
            assert_eq!(stopped.join().unwrap(), 2, "the last one goes back");
        });
        assert_eq!(statuses(&guest, &[waiting, passed, last]), [OK, OK, NONE]);
        assert_eq!(device.gate.order(), [FREE * PAGE, 0]);
    }
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let device = Device::new();
    let (mut guest, _inflight, _serving) = start(&device, false);
    device.gate.close(CLOSED);
    let waiting = write(&mut guest, 0);
    wait_parked(&device, 1);
    write(&mut guest, FREE);
    guest.wait_used(0);
    let begin = Instant::now();
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 2);
    assert!(begin.elapsed() > Duration::from_secs(4));
    assert_eq!(guest.byte(waiting), IO_ERROR);
    assert_eq!(device.parked(), 0);
    // The ring works as before.
    guest.start_queue(0, 2);
    guest.wait_used(0);
    device.gate.close(OPEN);
    let status = write(&mut guest, 0);
    guest.wait_used(0);
    assert_eq!(guest.byte(status), OK);
}
