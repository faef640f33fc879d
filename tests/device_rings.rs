//! Rings that stop, start, are spoiled or lose their memory, with requests under way; and the gate
//! in front of them.

#![allow(clippy::unwrap_used)]

mod device_support;

use bypass_blk::device::EndReason;
use bypass_blk::device::gate::Admission;
use device_support::front_end::{DATA, FrontEnd};
use device_support::{Device, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;

const OK: u32 = VIRTIO_BLK_S_OK;
const IO_ERROR: u32 = VIRTIO_BLK_S_IOERR;

#[test]
fn a_spoiled_ring_stops_alone_until_it_is_started_anew() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
    guest.set_avail_index(0, 1000);
    guest.kick(0);
    assert_eq!(guest.request(1, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
    let base = guest.vhost.get_vring_base(0).unwrap();
    assert_eq!(base, 1);
    guest.set_avail_index(0, 1);
    guest.start_queue(0, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
}

#[test]
fn a_write_waits_at_a_closed_gate_and_other_queues_go_on() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    device.gate.set(Admission::Wait);
    guest.write(DATA, &[0x55; 4096]);
    let status = guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]);
    wait_for("the write to be parked", || device.parked() == 1);
    assert_eq!(
        guest.request(1, VIRTIO_BLK_T_IN, 0, &[(DATA + 4096, 4096)]),
        OK
    );
    assert_eq!(guest.read(DATA + 4096, 4096), vec![0xee; 4096]);
    assert_eq!(guest.byte(status), 0xff);
    device.gate.set(Admission::Go);
    guest.wait_used(0);
    assert_eq!(u32::from(guest.byte(status)), OK);
    assert_eq!(device.image.read(0, 4096), vec![0x55; 4096]);
    assert_eq!(device.parked(), 0);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_gate_that_refuses_fails_the_request_parked_or_not() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    device.gate.set(Admission::Wait);
    let status = guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]);
    wait_for("the write to be parked", || device.parked() == 1);
    device.gate.set(Admission::Refuse);
    guest.wait_used(0);
    assert_eq!(u32::from(guest.byte(status)), IO_ERROR);
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN] {
        assert_eq!(guest.request(0, kind, 0, &[(DATA, 4096)]), IO_ERROR);
    }
    assert_eq!(device.image.read(0, 4096), vec![0xee; 4096]);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_stopping_ring_puts_the_parked_request_back() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
    device.gate.set(Admission::Wait);
    let write = guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    let read = guest.submit(0, VIRTIO_BLK_T_IN, 1, &[(DATA + 512, 512)]);
    wait_for("the write to be parked", || device.parked() == 1);
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 1);
    assert_eq!(guest.used_index(0), 1);
    assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
    device.gate.set(Admission::Go);
    assert_eq!(guest.byte(write), 0xff);
    guest.start_queue(0, 1);
    guest.wait_used(0);
    guest.wait_used(0);
    assert_eq!((guest.byte(write), guest.byte(read)), (0, 0));
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_stopped_ring_has_answered_all_it_took() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let mut base = 0;
    for round in 0..50 {
        for i in 0..20 {
            let sector = (round * 20 + i) * 8;
            guest.submit(0, VIRTIO_BLK_T_OUT, sector, &[(DATA, 4096)]);
        }
        base = guest.vhost.get_vring_base(0).unwrap() as u16;
        assert_eq!(guest.used_index(0), base);
        assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
        guest.start_queue(0, base);
        for _ in 0..20 {
            guest.wait_used(0);
        }
        base = guest.used_index(0);
    }
    assert_eq!(base, 1000);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_request_keeps_the_memory_it_was_made_in() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    device.gate.set(Admission::Wait);
    guest.write(DATA, &[0x11; 4096]);
    guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]);
    wait_for("the write to be parked", || device.parked() == 1);
    guest.replace_memory();
    guest.write(DATA, &[0x22; 4096]);
    device.gate.set(Admission::Go);
    guest.wait_used(0);
    assert_eq!(device.image.read(0, 4096), vec![0x11; 4096]);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]), OK);
    assert_eq!(device.image.read(0, 4096), vec![0x22; 4096]);
}

#[test]
fn a_ring_outlasts_a_moment_without_its_memory() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    for _ in 0..50 {
        for i in 0..8 {
            guest.submit(0, VIRTIO_BLK_T_IN, i, &[(DATA, 512)]);
        }
        // As QEMU does with a region whose size or neighbours change.
        guest.remove_memory();
        guest.kick(1);
        guest.add_memory();
        for _ in 0..8 {
            guest.wait_used(0);
        }
        assert_eq!(guest.request(1, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
    }
    assert_eq!(device.server.stats().snapshot().total().errors, 0);
}

#[test]
fn a_ring_without_its_memory_can_be_stopped() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    device.gate.set(Admission::Wait);
    guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    wait_for("the write to be parked", || device.parked() == 1);
    guest.remove_memory();
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 0);
    drop(guest);
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Disconnected);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn ring_addresses_may_be_told_again_while_requests_complete() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    for _ in 0..200 {
        for i in 0..8 {
            guest.submit(0, VIRTIO_BLK_T_IN, i, &[(DATA, 512)]);
        }
        guest.set_vring_addr(0);
        for _ in 0..8 {
            guest.wait_used(0);
        }
    }
    assert_eq!(guest.used_index(0), 1600);
}

#[test]
fn a_device_reset_drains_and_a_new_driver_starts_over() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    device.gate.set(Admission::Wait);
    guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]);
    wait_for("the write to be parked", || device.parked() == 1);
    guest.vhost.reset_device().unwrap();
    assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
    device.gate.set(Admission::Go);
    let features = guest.vhost.get_features().unwrap();
    guest.vhost.set_features(features).unwrap();
    guest.start_queue(0, 0);
    guest.wait_used(0);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), OK);
}
