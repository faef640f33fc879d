//! How connections begin and end: cleanly, abruptly, by garbage, by our own wish.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bypass_blk::device::gate::Admission;
use bypass_blk::device::{DeviceError, EndReason};
use device_support::front_end::{DATA, FrontEnd};
use device_support::{Device, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::*;
use vmm_sys_util::eventfd::EventFd;

/// A whole conversation with one read in it.
fn works(device: &Device) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    drop(guest);
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Disconnected);
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut raw = request.to_ne_bytes().to_vec();
    raw.extend(flags.to_ne_bytes());
    raw.extend((body.len() as u32).to_ne_bytes());
    raw.extend(body);
    raw
}

#[test]
fn garbage_is_an_error_and_the_next_connection_works() {
    let device = Device::new();
    let set_vring_num = 8;
    let garbage: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0; 12],
        vec![0xff; 8192],
        message(9999, 1, &[]),
        message(1, 7, &[]),
        message(set_vring_num, 1, &[0xff; 8]),
    ];
    for bytes in garbage {
        let (mut stream, serving) = device.serve();
        stream.write_all(&bytes).unwrap();
        let error = serving.join().unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                DeviceError::Protocol(_)
                    | DeviceError::Oversized { .. }
                    | DeviceError::NoSuchQueue { .. }
            ),
            "{bytes:?}: {error:?}"
        );
        works(&device);
    }
}

#[test]
fn half_a_message_is_an_error_and_the_next_connection_works() {
    let device = Device::new();
    let whole = message(2, 1, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for len in [1, 11, 12, 19] {
        let (mut stream, serving) = device.serve();
        stream.write_all(&whole[..len]).unwrap();
        drop(stream);
        let error = serving.join().unwrap().unwrap_err();
        assert!(
            matches!(error, DeviceError::HalfMessage),
            "{len}: {error:?}"
        );
        works(&device);
    }
}

#[test]
fn a_message_may_arrive_byte_by_byte() {
    let device = Device::new();
    let (mut stream, _serving) = device.serve();
    let get_features = 1;
    for byte in message(get_features, 1, &[]) {
        stream.write_all(&[byte]).unwrap();
    }
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    let features = u64::from_ne_bytes(reply[12..].try_into().unwrap());
    assert_ne!(features & 1 << VIRTIO_BLK_F_FLUSH, 0);
}

/// Sends `byte` with so many file descriptors.
fn send_fds(stream: &UnixStream, byte: u8, fds: usize) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![stream.as_fd(); fds];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(
        stream,
        &[IoSlice::new(&[byte])],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
}

#[test]
fn file_descriptors_do_not_pile_up_in_an_unfinished_message() {
    let device = Device::new();
    for pieces in [&[33][..], &[32, 1]] {
        let (stream, serving) = device.serve();
        for &fds in pieces {
            send_fds(&stream, 0, fds);
        }
        wait_for("the connection to end", || serving.is_finished());
        let error = serving.join().unwrap().unwrap_err();
        assert!(matches!(error, DeviceError::TooManyFds), "{error:?}");
        works(&device);
    }
}

#[test]
fn a_front_end_that_vanishes_under_load_leaves_nothing_behind() {
    let device = Device::new();
    for round in 0..10 {
        let (stream, serving) = device.serve();
        let breaker = stream.try_clone().unwrap();
        let mut guest = FrontEnd::start(stream, 2);
        for i in 0..20 {
            guest.submit(round % 2, VIRTIO_BLK_T_OUT, i * 8, &[(DATA, 4096)]);
        }
        breaker.shutdown(Shutdown::Both).unwrap();
        assert_eq!(serving.join().unwrap().unwrap(), EndReason::Disconnected);
        assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
        assert_eq!(device.gate.unbalanced(), []);
    }
    works(&device);
}

#[test]
fn a_front_end_that_vanishes_takes_its_parked_request_along() {
    let device = Device::new();
    device.gate.set(Admission::Wait);
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    guest.submit(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]);
    wait_for("the write to be parked", || device.parked() == 1);
    drop(guest);
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Disconnected);
    device.gate.set(Admission::Go);
    works(&device);
    assert_eq!(device.image.read(0, 4096), vec![0xee; 4096]);
}

#[test]
fn stopping_drains_before_the_front_end_learns_of_it() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut watch = stream.try_clone().unwrap();
    let mut guest = FrontEnd::start(stream, 1);
    let statuses: Vec<u64> = (0..20)
        .map(|i| guest.submit(0, VIRTIO_BLK_T_OUT, i * 8, &[(DATA, 4096)]))
        .collect();
    device.stop_handle().stop();
    assert_eq!(watch.read(&mut [0]).unwrap(), 0);
    let used = usize::from(guest.used_index(0));
    for (i, &status) in statuses.iter().enumerate() {
        let expected = if i < used { 0 } else { 0xff };
        assert_eq!(
            guest.byte(status),
            expected,
            "request {i} of {used} answered"
        );
    }
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Stopped);
    // Once stopped, it stays so.
    let (_stream, serving) = device.serve();
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Stopped);
}

#[test]
fn a_silent_front_end_does_not_keep_the_server_from_stopping() {
    let device = Device::new();
    let (mut stream, serving) = device.serve();
    stream.write_all(&[1, 0, 0, 0, 1]).unwrap();
    device.stop_handle().stop();
    assert_eq!(serving.join().unwrap().unwrap(), EndReason::Stopped);
}

#[test]
fn a_front_end_that_never_reads_can_leave_and_the_next_is_served() {
    let device = Device::new();
    let (mut stream, serving) = device.serve();
    stream.set_nonblocking(true).unwrap();
    let get_features = message(1, 1, &[]);
    let mut sent = 0;
    // Until nothing goes any more, for requests and replies fill every buffer.
    let mut refused = 0;
    while refused < 50 {
        match stream.write(&get_features) {
            Ok(len) => (sent, refused) = (sent + len, 0),
            Err(_) => {
                refused += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
    assert!(sent > 100 * get_features.len());
    drop(stream);
    let _ = serving.join().unwrap();
    works(&device);
}

#[test]
fn a_front_end_that_takes_no_interrupts_can_leave_and_the_next_is_served() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    // A blocking event fd that holds all it can hold.
    let call = EventFd::new(0).unwrap();
    call.write(u64::MAX - 1).unwrap();
    guest.set_call(0, call);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    drop(guest);
    wait_for("the connection to end", || serving.is_finished());
    works(&device);
}

#[test]
fn the_cache_mode_is_told_set_and_remembered() {
    const WRITEBACK: u32 = 32;
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.config(WRITEBACK, 1), [1]);
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.vhost.set_config(WRITEBACK, flags, &[0]).unwrap();
    assert_eq!(guest.config(WRITEBACK, 1), [0]);
    // Other fields cannot be set, and trying does no harm.
    guest.vhost.set_config(0, flags, &[0; 8]).unwrap();
    assert_ne!(guest.config(0, 8), [0; 8]);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 4096)]), 0);
    drop(guest);
    serving.join().unwrap().unwrap();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.config(WRITEBACK, 1), [0]);
}

#[test]
fn more_queues_than_there_are_cannot_be_set_up() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let guest = FrontEnd::start(stream, 2);
    assert!(guest.vhost.set_vring_num(2, 64).is_err() || guest.vhost.get_vring_base(2).is_err());
    drop(guest);
    let _ = serving.join().unwrap();
    works(&device);
}
