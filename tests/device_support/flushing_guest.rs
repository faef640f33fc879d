//! A guest that changes its disk all the time, flushes now and then, and knows what each block
//! may hold after a power cut.
//!
//! It has places of the disk, one request in flight at each. When is told in *moments*, numbers
//! that grow with what the disk under the image does; who cuts knows at which moment it was.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use virtio_bindings::virtio_blk::*;

use super::daemon::QUEUES;
use super::front_end::{DATA, FrontEnd, Inflight, ORDINARY, WRITE};
use super::wait_for;

/// Places of each queue, and requests in flight.
const DEPTH: u16 = 16;
/// Of a block each is there or not.
const BLOCK: usize = 512;
/// The chain of a flush, and its page of the guest's memory; those of places begin at `PAGES`.
const FLUSH: u16 = DEPTH * 3;
const FLUSH_PAGE: u64 = 448 << 10;
const PAGES: u64 = 512 << 10;

/// What a block may hold: zeros, or the bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Zeros,
    Written(u32),
}

/// A block's past.
#[derive(Clone, Debug)]
struct Block {
    /// What it was to hold, and when that was asked for.
    history: Vec<(usize, Content)>,
    /// From when on which part of the history's beginning is over.
    over: Vec<(usize, usize)>,
    /// What will be when the flush under way is answered.
    flushing: usize,
}

impl Block {
    /// After a cut at `moment`.
    fn may_hold(&self, moment: usize) -> Vec<Content> {
        let over = self.over.iter().rev().find(|(when, _)| *when <= moment);
        let begin = over.map_or(0, |(_, begin)| *begin);
        let asked = |(when, content): &(usize, Content)| (*when <= moment).then_some(*content);
        self.history[begin..].iter().filter_map(asked).collect()
    }
}

struct Place {
    blocks: Vec<Block>,
    /// The blocks that a change in flight is about.
    busy: Option<Range<usize>>,
}

/// Where on the disk it works, and how.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Bytes of a place.
    pub room: u32,
    /// Bytes from one place to the next.
    pub stride: u32,
    /// A change may be of a part of a place.
    pub parts: bool,
    pub seed: u64,
}

pub struct FlushingGuest<Clock> {
    front_end: FrontEnd,
    inflight: Inflight,
    habits: Habits,
    places: Vec<Vec<Place>>,
    /// The moment that it is.
    clock: Clock,
    generation: u32,
    seed: u64,
    answered: u64,
    pub flushes: u64,
    flushing: bool,
}

impl<Clock: Fn() -> usize> FlushingGuest<Clock> {
    /// Of a disk of zeros.
    pub fn connect(stream: UnixStream, habits: Habits, clock: Clock) -> Self {
        let mut front_end = FrontEnd::connect(stream, QUEUES, ORDINARY);
        let inflight = front_end.get_inflight();
        front_end.set_inflight(&inflight).unwrap();
        front_end.share_memory();
        (0..QUEUES).for_each(|queue| front_end.start_queue(queue, 0));
        let block = Block {
            history: vec![(0, Content::Zeros)],
            over: Vec::new(),
            flushing: 0,
        };
        let place = || Place {
            blocks: vec![block.clone(); habits.room as usize / BLOCK],
            busy: None,
        };
        Self {
            front_end,
            inflight,
            habits,
            places: (0..QUEUES)
                .map(|_| (0..DEPTH).map(|_| place()).collect())
                .collect(),
            clock,
            generation: habits.seed as u32 & 0xffff_0000,
            seed: habits.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            answered: 0,
            flushes: 0,
            flushing: false,
        }
    }

    /// To a daemon in the place of the one that was killed.
    pub fn reconnect(&mut self, stream: UnixStream) {
        self.front_end.reconnect(stream, &self.inflight);
    }

    pub fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// On the disk.
    fn at(&self, queue: usize, place: usize) -> u64 {
        (queue * usize::from(DEPTH) + place) as u64 * u64::from(self.habits.stride)
    }

    /// In the guest's memory.
    fn data(&self, queue: usize, place: usize) -> u64 {
        DATA + (queue * usize::from(DEPTH) + place) as u64 * u64::from(self.habits.room)
    }

    fn page(queue: usize, place: usize) -> u64 {
        PAGES + (queue * usize::from(DEPTH) + place) as u64 * 4096
    }

    fn part(&mut self) -> Range<usize> {
        let blocks = self.habits.room as usize / BLOCK;
        if !self.habits.parts {
            return 0..blocks;
        }
        let begin = self.random() as usize % blocks;
        begin..begin + 1 + self.random() as usize % (blocks - begin)
    }

    fn submit(&mut self, queue: usize, place: usize) {
        let (page, part) = (Self::page(queue, place), self.part());
        let (skipped, len) = ((part.start * BLOCK) as u64, part.len() * BLOCK);
        let begin = self.at(queue, place) + skipped;
        let data = self.data(queue, place) + skipped;
        let kind = match self.random() % 4 {
            0 => VIRTIO_BLK_T_DISCARD,
            1 => VIRTIO_BLK_T_WRITE_ZEROES,
            _ => VIRTIO_BLK_T_OUT,
        };
        let (content, segment) = match kind {
            VIRTIO_BLK_T_OUT => {
                self.generation += 1;
                let content = Content::Written(self.generation);
                let bytes = part
                    .clone()
                    .flat_map(|block| bytes_of(content, queue, place, block));
                self.front_end.write(data, &bytes.collect::<Vec<_>>());
                (content, (data, len as u32, 0))
            }
            _ => {
                // Half of the zeros may give space back, half must not.
                let unmap =
                    u64::from(kind == VIRTIO_BLK_T_WRITE_ZEROES && self.random().is_multiple_of(2));
                let range = [begin / 512, (len / 512) as u64 | unmap << 32];
                let range = range.map(u64::to_le_bytes).concat();
                self.front_end.write(page + 32, &range);
                (Content::Zeros, (page + 32, 16, 0))
            }
        };
        let now = (self.clock)();
        let slot = &mut self.places[queue][place];
        for block in &mut slot.blocks[part.clone()] {
            block.history.push((now, content));
        }
        slot.busy = Some(part);
        let head = place as u16 * 3;
        self.request(queue, head, page, kind, begin / 512, Some(segment));
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
            for (number, block) in place.blocks.iter_mut().enumerate() {
                let busy = place
                    .busy
                    .as_ref()
                    .is_some_and(|part| part.contains(&number));
                block.flushing = block.history.len() - usize::from(busy) - 1;
            }
        }
        self.flushing = true;
        self.request(0, FLUSH, FLUSH_PAGE, VIRTIO_BLK_T_FLUSH, 0, None);
    }

    fn flush_over(&mut self) {
        self.flushing = false;
        self.flushes += 1;
        let now = (self.clock)();
        let places = self.places.iter_mut().flatten();
        for block in places.flat_map(|place| &mut place.blocks) {
            if block.over.last().is_none_or(|last| last.1 < block.flushing) {
                block.over.push((now, block.flushing));
            }
        }
    }

    fn take_answers(&mut self, queue: usize) {
        while let Some((head, _)) = self.front_end.poll_used(queue) {
            self.answered += 1;
            if head as u16 == FLUSH {
                assert_eq!(self.front_end.byte(FLUSH_PAGE + 16), 0);
                self.flush_over();
                continue;
            }
            let place = head as usize / 3;
            assert_eq!(self.front_end.byte(Self::page(queue, place) + 16), 0);
            self.places[queue][place].busy = None;
        }
    }

    /// Keeps every place busy, and flushes now and then.
    fn work(&mut self) {
        for queue in 0..QUEUES {
            for place in 0..usize::from(DEPTH) {
                if self.places[queue][place].busy.is_none() {
                    self.submit(queue, place);
                }
            }
            self.take_answers(queue);
        }
        if !self.flushing && self.random().is_multiple_of(3) {
            self.flush();
        }
    }

    /// Until so many more were answered.
    pub fn work_for(&mut self, answers: u64) {
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

    /// Nothing is in flight when this returns.
    pub fn pause(&mut self) {
        wait_for("everything to be answered", || {
            (0..QUEUES).for_each(|queue| self.take_answers(queue));
            !self.flushing
                && self
                    .places
                    .iter()
                    .flatten()
                    .all(|place| place.busy.is_none())
        });
    }

    /// Each block of `image` must hold something that it may after a cut at `moment`. Whether any
    /// holds anything.
    pub fn check(&self, image: &Path, moment: usize, what: &str) -> bool {
        let file = File::open(image).unwrap();
        let mut any = false;
        for (queue, places) in self.places.iter().enumerate() {
            for (place, slot) in places.iter().enumerate() {
                let mut found = vec![0; self.habits.room as usize];
                let at = self.at(queue, place);
                file.read_exact_at(&mut found, at).unwrap();
                any |= found.iter().any(|byte| *byte != 0);
                for (number, (found, block)) in found.chunks(BLOCK).zip(&slot.blocks).enumerate() {
                    let may = block.may_hold(moment);
                    let known = may
                        .iter()
                        .any(|content| bytes_of(*content, queue, place, number) == found);
                    assert!(
                        known,
                        "{what}: queue {queue}, place {place}, block {number} (byte {}) holds \
                         {:x?}…, and may hold {may:?}; {block:?}, cut at {moment}",
                        at as usize + number * BLOCK,
                        &found[..8],
                    );
                }
            }
        }
        any
    }
}

/// Every word says whose it is, and of when.
fn bytes_of(content: Content, queue: usize, place: usize, block: usize) -> Vec<u8> {
    let Content::Written(generation) = content else {
        return vec![0; BLOCK];
    };
    let word = u64::from(generation) << 32 | (queue as u64) << 24 | (place as u64) << 16;
    let first = block * BLOCK / 8;
    let words = (first..first + BLOCK / 8).map(|i| word | i as u64);
    words.flat_map(u64::to_le_bytes).collect()
}
