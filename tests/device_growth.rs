//! A disk that grows while a front-end uses it: who is told, and when requests may go there.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;

use device_support::front_end::{DATA, FrontEnd};
use device_support::{DEADLINE, DISK_SIZE, Device, pattern};
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;

const GROWN: u64 = 2 * DISK_SIZE;
const END: u64 = DISK_SIZE / 512;

/// Gives the device a channel for its own requests; our end of it.
fn channel(front_end: &mut FrontEnd) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    front_end.vhost.set_backend_request_fd(&theirs).unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    ours
}

/// Was a front-end told?
fn grow(device: &Device) -> bool {
    let file = File::options().write(true).open(device.image.path());
    file.unwrap().set_len(GROWN).unwrap();
    (device.server.growth())(GROWN)
}

/// Request 2, version 1, no body: `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
fn assert_told(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

fn sectors(front_end: &mut FrontEnd) -> u64 {
    u64::from_le_bytes(front_end.config(0, 8).try_into().unwrap())
}

fn write(front_end: &mut FrontEnd, sector: u64) -> u32 {
    front_end.write(DATA, &pattern(512, 7));
    front_end.request(0, VIRTIO_BLK_T_OUT, sector, &[(DATA, 512)])
}

#[test]
fn a_front_end_is_told_of_a_new_size_and_may_use_it_from_then_on() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut front_end = FrontEnd::start(stream, 1);
    let mut channel = channel(&mut front_end);
    assert_eq!(sectors(&mut front_end), END);
    assert_eq!(write(&mut front_end, END), VIRTIO_BLK_S_IOERR);
    grow(&device);
    assert_told(&mut channel);
    assert_eq!(sectors(&mut front_end), GROWN / 512);
    assert_eq!(write(&mut front_end, END), VIRTIO_BLK_S_OK);
    assert_eq!(device.image.read(DISK_SIZE, 512), pattern(512, 7));
    assert_eq!(write(&mut front_end, GROWN / 512), VIRTIO_BLK_S_IOERR);
    drop(front_end);
    serving.join().unwrap().unwrap();
}

#[test]
fn one_that_comes_with_an_old_size_in_mind_is_told_when_its_rings_start() {
    let device = Device::new();
    assert!(!grow(&device), "nobody is there");
    let (stream, serving) = device.serve();
    let mut front_end = FrontEnd::connect(stream, 1, 0);
    let mut channel = channel(&mut front_end);
    front_end.share_memory();
    front_end.start_queue(0, 0);
    assert_told(&mut channel);
    drop(front_end);
    serving.join().unwrap().unwrap();
}
