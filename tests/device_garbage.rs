//! Messages that no front-end sends, to a device in use, and silence: an error or an
//! answer, never a crash, and the next connection works.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bypass_blk::device::{DeviceError, Patience};
use device_support::front_end::{DATA, FrontEnd};
use device_support::{DEADLINE, Device};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_bindings::virtio_blk::*;

const GET_FEATURES: u32 = 1;
/// Requests that carry memory or files of ours.
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_LOG_FD: u32 = 7;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const ADD_MEM_REG: u32 = 37;
/// One more than the last request of the specification.
const REQUESTS: u32 = 46;

/// Numbers that look random; a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// A payload of small numbers, which go further than large ones do.
    fn body(&mut self) -> Vec<u8> {
        let lengths = [0, 4, 8, 12, 16, 20, 24, 40, 64];
        let len = lengths[self.below(lengths.len() as u64) as usize];
        let mut body = Vec::new();
        while body.len() < len {
            let word = match self.below(6) {
                0 => u32::MAX,
                1 => 4096,
                2 => self.below(1 << 32) as u32,
                _ => self.below(3) as u32,
            };
            body.extend(word.to_ne_bytes());
        }
        body
    }
}

/// What may come with a message.
struct Files(Vec<OwnedFd>);

impl Files {
    fn new() -> Self {
        let memory = memfd_create("garbage", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 8192).unwrap();
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let socket = UnixStream::pair().unwrap().0;
        Self(vec![memory, event, socket.into()])
    }

    fn some(&self, random: &mut Random) -> Vec<BorrowedFd<'_>> {
        let count = [0, 0, 1, 1, 1, 2, 8][random.below(7) as usize];
        (0..count)
            .map(|_| self.0[random.below(3) as usize].as_fd())
            .collect()
    }
}

fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut raw = code.to_ne_bytes().to_vec();
    raw.extend(flags.to_ne_bytes());
    raw.extend((body.len() as u32).to_ne_bytes());
    raw.extend(body);
    raw
}

/// Whether it could be sent: the other end may have had enough.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .is_ok()
}

/// A running guest with reads in flight, and its socket for other use.
fn busy_guest(device: &Device) -> (FrontEnd, UnixStream, device_support::Serving) {
    let (stream, serving) = device.serve();
    let socket = stream.try_clone().unwrap();
    let mut guest = FrontEnd::start(stream, 2);
    for i in 0..8 {
        guest.submit(i % 2, VIRTIO_BLK_T_IN, 0, &[(DATA, 64 << 10)]);
    }
    (guest, socket, serving)
}

/// Ends the connection, and sees that nothing is left of it.
fn leave(device: &Device, guest: FrontEnd, socket: &UnixStream, serving: device_support::Serving) {
    let _ = socket.shutdown(Shutdown::Both);
    drop(guest);
    let _ = serving.join().unwrap();
    assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
}

fn works(device: &Device) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    drop(guest);
    serving.join().unwrap().unwrap();
}

#[test]
fn any_message_at_any_time_is_survived_and_the_next_connection_works() {
    let device = Device::new();
    for seed in 1..=120 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let files = Files::new();
        let (guest, socket, serving) = busy_guest(&device);
        for _ in 0..12 {
            let code = random.below(REQUESTS.into()) as u32;
            let flags = [1, 9][random.below(2) as usize];
            let bytes = message(code, flags, &random.body());
            if !send(&socket, &bytes, &files.some(&mut random)) {
                break;
            }
        }
        leave(&device, guest, &socket, serving);
        if seed % 20 == 0 {
            works(&device);
        }
    }
    works(&device);
}

#[test]
fn a_message_that_breaks_off_anywhere_is_survived_with_its_files() {
    let device = Device::new();
    let files = Files::new();
    for code in [
        SET_MEM_TABLE,
        SET_LOG_BASE,
        SET_LOG_FD,
        SET_INFLIGHT_FD,
        ADD_MEM_REG,
    ] {
        let whole = message(code, 9, &[0; 40]);
        for len in [1, 11, 12, 13, 51] {
            let (guest, socket, serving) = busy_guest(&device);
            assert!(send(&socket, &whole[..len], &[files.0[0].as_fd()]));
            leave(&device, guest, &socket, serving);
        }
    }
    works(&device);
}

#[test]
fn shared_memory_that_is_wrong_is_refused_with_a_reason() {
    let device = Device::new();
    let files = Files::new();
    let memory = files.0[0].as_fd();
    let inflight = |len: u64, queues: u16, entries: u16| {
        let mut body = len.to_ne_bytes().to_vec();
        body.extend([0; 8]);
        body.extend(queues.to_ne_bytes());
        body.extend(entries.to_ne_bytes());
        body.extend([0; 4]);
        body
    };
    let pair = |one: u64, other: u64| [one.to_ne_bytes(), other.to_ne_bytes()].concat();
    type Case<'a> = (u32, u32, Vec<u8>, Vec<BorrowedFd<'a>>);
    let malformed: Vec<Case<'_>> = vec![
        (GET_INFLIGHT_FD, 1, vec![0; 19], vec![]),
        (GET_INFLIGHT_FD, 1, vec![0; 25], vec![]),
        (GET_INFLIGHT_FD, 5, inflight(0, 1, 64), vec![]),
        (SET_INFLIGHT_FD, 1, inflight(8192, 1, 64), vec![]),
        (
            SET_INFLIGHT_FD,
            1,
            inflight(8192, 1, 64),
            vec![memory, memory],
        ),
        (SET_LOG_BASE, 1, vec![0; 8], vec![memory]),
        (SET_LOG_BASE, 1, pair(4096, 0), vec![]),
        (SET_LOG_FD, 1, vec![], vec![]),
        (SET_LOG_FD, 2, vec![], vec![memory]),
    ];
    let unusable: Vec<Case<'_>> = vec![
        (GET_INFLIGHT_FD, 1, inflight(0, 0, 64), vec![]),
        (GET_INFLIGHT_FD, 1, inflight(0, u16::MAX, u16::MAX), vec![]),
        (SET_INFLIGHT_FD, 1, inflight(8192, 1, 64), vec![memory]),
        (SET_INFLIGHT_FD, 1, inflight(u64::MAX, 2, 256), vec![memory]),
        (SET_LOG_BASE, 1, pair(4096, u64::MAX), vec![memory]),
        (SET_LOG_BASE, 1, pair(u64::MAX, 0), vec![memory]),
        (SET_LOG_BASE, 1, pair(16, 0), vec![memory]),
        (SET_LOG_BASE, 1, pair(256, 1), vec![memory]),
        (
            ADD_MEM_REG,
            1,
            [pair(0, 1 << 30), pair(12288, 1 << 40), vec![0; 8]].concat(),
            vec![memory],
        ),
    ];
    let all = malformed.iter().map(|case| (case, true));
    for ((code, flags, body, fds), is_malformed) in
        all.chain(unusable.iter().map(|case| (case, false)))
    {
        let (guest, mut socket, serving) = busy_guest(&device);
        assert!(send(&socket, &message(*code, *flags, body), fds));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(
            socket.read(&mut [0]).unwrap(),
            0,
            "closed, not answered: {code} {body:?}"
        );
        drop(guest);
        let error = serving.join().unwrap().unwrap_err();
        let expected = match error {
            DeviceError::Malformed { code: of } => is_malformed && of == *code,
            DeviceError::Inflight(_) | DeviceError::Log(_) | DeviceError::Memory(_) => {
                !is_malformed
            }
            _ => false,
        };
        assert!(expected, "{code} {body:?}: {error:?}");
    }
    works(&device);
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let device = Device::new();
    let files = Files::new();
    for (code, len) in [
        (GET_INFLIGHT_FD, 24),
        (SET_INFLIGHT_FD, 24),
        (SET_LOG_BASE, 16),
    ] {
        let (socket, serving) = device.serve();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        assert!(send(
            &socket,
            &message(code, 1, &vec![1; len]),
            &[files.0[0].as_fd()]
        ));
        let error = serving.join().unwrap().unwrap_err();
        assert!(
            matches!(error, DeviceError::NotNegotiated { code: of, .. } if of == code),
            "{error:?}"
        );
    }
    works(&device);
}

/// So short that whoever is meant to keep to it has spoken before it is served.
const SHORT: Duration = Duration::from_millis(20);

/// A front-end that has asked for the features, and then one that has the answer.
struct Talking(UnixStream);

impl Talking {
    fn ask(&mut self) {
        self.0.write_all(&message(GET_FEATURES, 1, &[])).unwrap();
    }

    fn is_answered(&mut self) {
        self.0.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reply = [0; 20];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], GET_FEATURES.to_ne_bytes());
    }
}

#[test]
fn a_message_that_does_not_go_on_ends_the_connection_and_the_next_is_served() {
    let device = Device::with_patience(Patience {
        first: None,
        message: SHORT,
    });
    let whole = message(SET_MEM_TABLE, 9, &[0; 40]);
    for len in [1, 11, 12, 13, 51] {
        let (guest, mut socket, serving) = busy_guest(&device);
        assert!(send(&socket, &whole[..len], &[]));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "{len}: closed");
        let error = serving.join().unwrap().unwrap_err();
        assert!(
            matches!(error, DeviceError::Stalled { limit: SHORT }),
            "{len}: {error:?}"
        );
        drop(guest);
        assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
        works(&device);
    }
}

#[test]
fn a_message_that_goes_on_drop_by_drop_wins_no_time() {
    let device = Device::with_patience(Patience {
        first: None,
        message: 10 * SHORT,
    });
    let (mut stream, serving) = device.serve();
    let mut drops = 0;
    for byte in message(SET_MEM_TABLE, 9, &[0; 4000]) {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        drops += 1;
        std::thread::sleep(SHORT);
    }
    let error = serving.join().unwrap().unwrap_err();
    assert!(
        matches!(error, DeviceError::Stalled { .. }),
        "after {drops} drops: {error:?}"
    );
    works(&device);
}

#[test]
fn whoever_says_nothing_gives_way_to_the_next_in_line() {
    let device = Device::with_patience(Patience {
        first: Some(SHORT),
        message: DEADLINE,
    });
    for begun in [0, 1, 13] {
        let (mut silent, theirs) = UnixStream::pair().unwrap();
        silent
            .write_all(&message(SET_MEM_TABLE, 9, &[0; 40])[..begun])
            .unwrap();
        let (next, waiting) = UnixStream::pair().unwrap();
        let mut next = Talking(next);
        next.ask();
        let first = device.serve_this(theirs);
        silent.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "closed");
        let error = first.join().unwrap().unwrap_err();
        assert!(
            matches!(error, DeviceError::Silent { limit: SHORT }),
            "{begun}: {error:?}"
        );
        let serving = device.serve_this(waiting);
        next.is_answered();
        drop(next);
        serving.join().unwrap().unwrap();
    }
}

#[test]
fn a_front_end_that_is_idle_between_messages_is_never_ended() {
    let device = Device::with_patience(Patience {
        first: Some(SHORT),
        message: SHORT,
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut idle = Talking(ours);
    idle.ask();
    let serving = device.serve_this(theirs);
    for _ in 0..3 {
        idle.is_answered();
        std::thread::sleep(10 * SHORT);
        idle.ask();
    }
    idle.is_answered();
    drop(idle);
    serving.join().unwrap().unwrap();
}
