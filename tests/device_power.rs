//! A host that loses power under a guest, after its daemon was killed and started again: what the
//! guest was told to be durable is there, and nothing else but what it asked for.
//!
//! The power of a file system fails here, not that of a disk: what only the journal's memory has
//! is lost (an extent that was written for the first time reads as zeros then), what only a
//! disk's cache has is not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device_support;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use device_support::daemon::{Daemon, QUEUES, serve_if_daemon};
use device_support::front_end::{DATA, FrontEnd, Inflight, ORDINARY, WRITE};
use device_support::{DISK_SIZE, wait_for};
use support::power::{Disk, FileSystem};
use virtio_bindings::virtio_blk::*;

/// Places of the disk of each queue, and requests in flight.
const DEPTH: u16 = 16;
/// Bytes of a place; of a block, of which each is there or not.
const ROOM: u32 = 16 << 10;
const BLOCK: u32 = 4 << 10;
/// The chain of a flush.
const FLUSH: u16 = DEPTH * 3;

/// Not a test: the process that the tests below kill.
#[test]
fn the_daemon() {
    serve_if_daemon();
}

/// What a block may hold: zeros, or the bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Zeros,
    Written(u32),
}

/// A place of the disk: what it may hold after a power cut, from the last that is durable on.
#[derive(Clone)]
struct Place {
    history: Vec<Content>,
    /// A change is in flight.
    busy: bool,
    /// How much of the history is over when the flush under way is answered.
    flushed: usize,
}

struct Guest {
    front_end: FrontEnd,
    places: Vec<Vec<Place>>,
    generation: u32,
    seed: u64,
    answered: u64,
    flushes: u64,
    flushing: bool,
}

fn at(queue: usize, place: u16) -> u64 {
    (queue as u64 * u64::from(DEPTH) + u64::from(place)) * u64::from(ROOM)
}

/// Every word says whose it is, and of when.
fn bytes_of(content: Content, queue: usize, place: u16) -> Vec<u8> {
    let Content::Written(generation) = content else {
        return vec![0; ROOM as usize];
    };
    let word = u64::from(generation) << 32 | (queue as u64) << 24 | u64::from(place) << 16;
    let words = (0..u64::from(ROOM / 8)).map(|i| word | i);
    words.flat_map(u64::to_le_bytes).collect()
}

impl Guest {
    fn connect(stream: UnixStream, places: Vec<Vec<Place>>, seed: u64) -> (Self, Inflight) {
        let mut front_end = FrontEnd::connect(stream, QUEUES, ORDINARY);
        let inflight = front_end.get_inflight();
        front_end.set_inflight(&inflight).unwrap();
        front_end.share_memory();
        (0..QUEUES).for_each(|queue| front_end.start_queue(queue, 0));
        let guest = Self {
            front_end,
            places,
            generation: seed as u32 & 0xffff_0000,
            seed: seed | 1,
            answered: 0,
            flushes: 0,
            flushing: false,
        };
        (guest, inflight)
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn submit(&mut self, queue: usize, place: u16) {
        let room = at(queue, place);
        let (data, page) = (DATA + room, (512 << 10) + room / 4);
        let kind = match self.random() % 4 {
            0 => VIRTIO_BLK_T_DISCARD,
            1 => VIRTIO_BLK_T_WRITE_ZEROES,
            _ => VIRTIO_BLK_T_OUT,
        };
        let (content, segment) = match kind {
            VIRTIO_BLK_T_OUT => {
                self.generation += 1;
                let content = Content::Written(self.generation);
                self.front_end.write(data, &bytes_of(content, queue, place));
                (content, (data, ROOM, 0))
            }
            _ => {
                let range = [room / 512, u64::from(ROOM / 512)].map(u64::to_le_bytes);
                self.front_end.write(page + 32, &range.concat());
                (Content::Zeros, (page + 32, 16, 0))
            }
        };
        let slot = &mut self.places[queue][usize::from(place)];
        slot.history.push(content);
        slot.busy = true;
        self.request(queue, place * 3, page, kind, room / 512, Some(segment));
    }

    fn request(
        &mut self,
        queue: usize,
        head: u16,
        page: u64,
        kind: u32,
        sector: u64,
        segment: Option<(u64, u32, u16)>,
    ) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        header.push(0xff);
        self.front_end.write(page, &header);
        let mut chain = vec![(page, 16, 0)];
        chain.extend(segment);
        chain.push((page + 16, 1, WRITE));
        self.front_end.put_chain_at(queue, head, &chain);
    }

    /// What was answered by now is durable when it is.
    fn flush(&mut self) {
        for place in self.places.iter_mut().flatten() {
            place.flushed = place.history.len() - usize::from(place.busy) - 1;
        }
        self.flushing = true;
        let page = 448 << 10;
        self.request(0, FLUSH, page, VIRTIO_BLK_T_FLUSH, 0, None);
    }

    fn flush_over(&mut self) {
        self.flushing = false;
        self.flushes += 1;
        for place in self.places.iter_mut().flatten() {
            place.history.drain(..place.flushed);
        }
    }

    /// Keeps every place busy, and flushes now and then.
    fn work(&mut self) {
        for queue in 0..QUEUES {
            for place in 0..DEPTH {
                if !self.places[queue][usize::from(place)].busy {
                    self.submit(queue, place);
                }
            }
            while let Some((head, _)) = self.front_end.poll_used(queue) {
                self.answered += 1;
                if head as u16 == FLUSH {
                    assert_eq!(self.front_end.byte((448 << 10) + 16), 0);
                    self.flush_over();
                    continue;
                }
                let place = head as u16 / 3;
                let status = (512 << 10) + at(queue, place) / 4 + 16;
                assert_eq!(self.front_end.byte(status), 0);
                self.places[queue][usize::from(place)].busy = false;
            }
        }
        if !self.flushing && self.random().is_multiple_of(8) {
            self.flush();
        }
    }

    fn work_for(&mut self, answers: u64) {
        let until = self.answered + answers;
        wait_for("answers", || {
            for _ in 0..50 {
                if self.answered < until {
                    self.work();
                }
            }
            self.answered >= until
        });
    }
}

/// What each block holds must be of its place's history; the next round begins with that.
fn check(image: &Path, places: &mut [Vec<Place>], round: usize) {
    let file = File::open(image).unwrap();
    for (queue, places) in places.iter_mut().enumerate() {
        for (number, place) in (0..).zip(places) {
            let mut found = vec![0; ROOM as usize];
            file.read_exact_at(&mut found, at(queue, number)).unwrap();
            let whole: Vec<_> = place
                .history
                .iter()
                .map(|c| bytes_of(*c, queue, number))
                .collect();
            for block in (0..ROOM as usize).step_by(BLOCK as usize) {
                let range = block..block + BLOCK as usize;
                let known = whole
                    .iter()
                    .any(|bytes| bytes[range.clone()] == found[range.clone()]);
                let first = &found[range.start..range.start + 8];
                assert!(
                    known,
                    "round {round}: queue {queue}, place {number}, byte {block} holds {first:x?}…, and may hold {:?}",
                    place.history
                );
            }
        }
    }
}

fn lose_power(kind: FileSystem, rounds: usize) {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = Disk::with(kind, folder.path());
    let (socket, image) = (folder.path().join("socket"), disk.path().join("image"));
    let mut flushes = 0;
    for round in 0..rounds {
        // A sparse image each time: every block is written for the first time once more.
        let _ = std::fs::remove_file(&image);
        let file = File::create(&image).unwrap();
        file.set_len(DISK_SIZE).unwrap();
        file.sync_all().unwrap();
        File::open(disk.path()).unwrap().sync_all().unwrap();
        drop(file);
        let place = Place {
            history: vec![Content::Zeros],
            busy: false,
            flushed: 0,
        };
        let places = vec![vec![place; usize::from(DEPTH)]; QUEUES];
        let (mut daemon, stream) = Daemon::start(&socket, &image);
        let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(round as u64 + 1);
        let (mut guest, inflight) = Guest::connect(stream, places, seed);
        for _ in 0..2 {
            let answers = guest.random() % 120;
            guest.work_for(answers);
            drop(daemon);
            let stream;
            (daemon, stream) = Daemon::start(&socket, &image);
            guest.front_end.reconnect(stream, &inflight);
        }
        let answers = 40 + guest.random() % 120;
        guest.work_for(answers);
        drop(daemon);
        flushes += guest.flushes;
        disk.cut();
        check(&image, &mut guest.places, round);
    }
    assert!(flushes > rounds as u64, "{flushes} flushes");
}

#[test]
fn what_was_flushed_survives_a_killed_daemon_and_then_a_power_cut_on_xfs() {
    lose_power(FileSystem::Xfs, rounds(6));
}

#[test]
fn what_was_flushed_survives_a_killed_daemon_and_then_a_power_cut_on_ext4() {
    lose_power(FileSystem::Ext4, rounds(4));
}

fn rounds(few: usize) -> usize {
    let asked = std::env::var("BYPASS_POWER_ROUNDS");
    asked.map_or(few, |rounds| rounds.parse().unwrap())
}
