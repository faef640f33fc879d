//! A daemon that is killed over and over under a guest that verifies what it
//! reads: no request is lost, none is answered twice, none fails, and nothing that a
//! killed daemon had asked of the kernel lands after the next one has begun.

#![allow(clippy::unwrap_used)]

mod device_support;

use device_support::daemon::{Daemon, QUEUES, serve_if_daemon};
use device_support::front_end::{DATA, FrontEnd, Inflight, ORDINARY};
use device_support::{Image, wait_for};
use virtio_bindings::virtio_blk::*;

const DEPTH: u16 = 20;
/// Bytes of the disk and of the guest's memory that each request has to itself.
const ROOM: u32 = 16 << 10;
const KILLS: usize = 60;

/// Not a test: the process that the test below kills.
#[test]
fn the_daemon() {
    serve_if_daemon();
}

/// What one of the guest's places on the disk is at.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Idle,
    Changing,
    Reading,
}

/// What a request does.
#[derive(Clone, Copy, PartialEq)]
enum Op {
    Write,
    /// Discards, or writes zeroes: of this type.
    Clear(u32),
    Read,
}

#[derive(Clone, Copy)]
struct Place {
    state: State,
    /// What was last written there.
    generation: u32,
    /// It was cleared since.
    cleared: bool,
}

struct Guest {
    front_end: FrontEnd,
    places: Vec<[Place; DEPTH as usize]>,
    seed: u64,
    answered: u64,
}

impl Guest {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn at(queue: usize, place: u16) -> u64 {
        DATA + (queue as u64 * u64::from(DEPTH) + u64::from(place)) * u64::from(ROOM)
    }

    /// Memory for header and status that no other request uses.
    fn page(queue: usize, place: u16) -> u64 {
        (512 << 10) + (queue as u64 * u64::from(DEPTH) + u64::from(place)) * 4096
    }

    /// Every word of it says whose it is, and of when.
    fn pattern(queue: usize, place: u16, generation: u32) -> Vec<u8> {
        (0..ROOM / 8)
            .flat_map(|i| {
                let word =
                    u64::from(generation) << 32 | (queue as u64) << 24 | u64::from(place) << 16;
                (word | u64::from(i)).to_le_bytes()
            })
            .collect()
    }

    fn submit(&mut self, queue: usize, place: u16, op: Op) {
        let (at, page) = (Self::at(queue, place), Self::page(queue, place));
        let sector = (at - DATA) / 512;
        let slot = &mut self.places[queue][usize::from(place)];
        slot.state = State::Changing;
        let (kind, data) = match op {
            Op::Write => {
                (slot.generation, slot.cleared) = (slot.generation + 1, false);
                let data = Self::pattern(queue, place, slot.generation);
                self.front_end.write(at, &data);
                (VIRTIO_BLK_T_OUT, (at, ROOM, 0))
            }
            Op::Clear(kind) => {
                slot.cleared = true;
                let range = [sector.to_le_bytes(), u64::from(ROOM / 512).to_le_bytes()];
                self.front_end.write(page + 32, &range.concat());
                (kind, (page + 32, 16, 0))
            }
            Op::Read => {
                slot.state = State::Reading;
                self.front_end.write(at, &[0xaa; ROOM as usize]);
                (VIRTIO_BLK_T_IN, (at, ROOM, 2))
            }
        };
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        header.push(0xff);
        self.front_end.write(page, &header);
        self.front_end
            .put_chain_at(queue, place * 3, &[(page, 16, 0), data, (page + 16, 1, 2)]);
    }

    /// A place that was read back is written, or cleared now and then.
    fn next_change(&mut self) -> Op {
        match self.random() % 4 {
            0 => Op::Clear(VIRTIO_BLK_T_DISCARD),
            1 => Op::Clear(VIRTIO_BLK_T_WRITE_ZEROES),
            _ => Op::Write,
        }
    }

    /// Keeps every place busy: changed, read back, changed again.
    fn work(&mut self) {
        for queue in 0..QUEUES {
            for place in 0..DEPTH {
                if self.places[queue][usize::from(place)].state == State::Idle {
                    let change = self.next_change();
                    self.submit(queue, place, change);
                }
            }
            while let Some((head, _)) = self.front_end.poll_used(queue) {
                self.answered += 1;
                self.take_answer(queue, head as u16);
            }
        }
    }

    fn take_answer(&mut self, queue: usize, head: u16) {
        assert_eq!(head % 3, 0);
        let place = head / 3;
        let Place {
            state,
            generation,
            cleared,
        } = self.places[queue][usize::from(place)];
        assert!(
            state != State::Idle,
            "answered twice: queue {queue}, place {place}"
        );
        assert_eq!(self.front_end.byte(Self::page(queue, place) + 16), 0);
        self.places[queue][usize::from(place)].state = State::Idle;
        if state == State::Changing {
            self.submit(queue, place, Op::Read);
        } else {
            let data = self.front_end.read(Self::at(queue, place), ROOM as usize);
            let expected = match cleared {
                true => vec![0; ROOM as usize],
                false => Self::pattern(queue, place, generation),
            };
            assert!(
                data == expected,
                "queue {queue}, place {place} reads back wrong"
            );
        }
    }
}

#[test]
fn a_guest_does_not_notice_that_its_daemon_is_killed_again_and_again() {
    let image = Image::new(0);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (mut daemon, stream) = Daemon::start(&socket, image.path());
    let mut front_end = FrontEnd::connect(stream, QUEUES, ORDINARY);
    let inflight: Inflight = front_end.get_inflight();
    front_end.set_inflight(&inflight).unwrap();
    front_end.share_memory();
    for queue in 0..QUEUES {
        front_end.start_queue(queue, 0);
    }
    let idle = Place {
        state: State::Idle,
        generation: 0,
        cleared: false,
    };
    let mut guest = Guest {
        front_end,
        places: vec![[idle; DEPTH as usize]; QUEUES],
        seed: 0x9e37_79b9_7f4a_7c15,
        answered: 0,
    };
    let mut interrupted = 0;
    for _ in 0..KILLS {
        let until = guest.answered + guest.random() % 150;
        wait_for("answers", || {
            for _ in 0..100 {
                if guest.answered < until {
                    guest.work();
                }
            }
            guest.answered >= until
        });
        drop(daemon);
        let busy = |place: &&Place| place.state != State::Idle;
        interrupted += guest.places.iter().flatten().filter(busy).count();
        let stream;
        (daemon, stream) = Daemon::start(&socket, image.path());
        guest.front_end.reconnect(stream, &inflight);
    }
    assert!(
        interrupted > KILLS,
        "only {interrupted} requests were in flight when it was killed"
    );
    wait_for("everything to be answered", || {
        for queue in 0..QUEUES {
            while let Some((head, _)) = guest.front_end.poll_used(queue) {
                guest.take_answer(queue, head as u16);
            }
        }
        guest
            .places
            .iter()
            .flatten()
            .all(|place| place.state == State::Idle)
    });
    drop(daemon);
}
