//! What is asked of a disk: the workloads by name. Pure.

use crate::rng::Rng;

const KIB: usize = 1 << 10;

/// A workload. Every queue has requests of its own in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// For the command line and the JSON.
    pub name: &'static str,
    /// For the reader.
    pub title: &'static str,
    /// How many of 100 requests read; the others write.
    pub reads: u64,
    /// One request behind the other, and again from the beginning at the end.
    pub sequential: bool,
    /// Bytes of a request.
    pub block: usize,
    /// Requests in flight per queue.
    pub depth: usize,
    /// Queues of the device; jobs of fio.
    pub queues: u16,
    /// A flush after so many writes, waited for; 0 is none.
    pub flush_every: u64,
}

const RANDOM: Workload = Workload {
    name: "",
    title: "",
    reads: 100,
    sequential: false,
    block: 4 * KIB,
    depth: 1,
    queues: 1,
    flush_every: 0,
};

const fn read(name: &'static str, title: &'static str, depth: usize, queues: u16) -> Workload {
    Workload {
        name,
        title,
        depth,
        queues,
        ..RANDOM
    }
}

const fn write(name: &'static str, title: &'static str, depth: usize, queues: u16) -> Workload {
    Workload {
        reads: 0,
        ..read(name, title, depth, queues)
    }
}

const fn sequential(random: Workload) -> Workload {
    Workload {
        sequential: true,
        block: 128 * KIB,
        ..random
    }
}

/// All there are, in the order of the report.
pub const ALL: [Workload; 12] = [
    read("randread-1", "4 KiB random read, depth 1", 1, 1),
    write("randwrite-1", "4 KiB random write, depth 1", 1, 1),
    read("randread-32", "4 KiB random read, depth 32", 32, 1),
    write("randwrite-32", "4 KiB random write, depth 32", 32, 1),
    read(
        "randread-1x2",
        "4 KiB random read, two queues of depth 1",
        1,
        2,
    ),
    write(
        "randwrite-1x2",
        "4 KiB random write, two queues of depth 1",
        1,
        2,
    ),
    read(
        "randread-32x2",
        "4 KiB random read, two queues of depth 32",
        32,
        2,
    ),
    write(
        "randwrite-32x2",
        "4 KiB random write, two queues of depth 32",
        32,
        2,
    ),
    sequential(read("read-8", "128 KiB sequential read, depth 8", 8, 1)),
    sequential(write("write-8", "128 KiB sequential write, depth 8", 8, 1)),
    Workload {
        reads: 70,
        ..read("mix-32", "4 KiB random, 70 % reads, depth 32", 32, 1)
    },
    Workload {
        flush_every: 16,
        ..write(
            "writeflush-1",
            "4 KiB random write, flush after 16, depth 1",
            1,
            1,
        )
    },
];

impl Workload {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Workload> {
        ALL.into_iter().find(|workload| workload.name == name)
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// From this byte on.
    Read(u64),
    /// From this byte on.
    Write(u64),
    /// Of all writes answered.
    Flush,
}

/// The requests of one queue, in order.
pub struct Requests {
    workload: Workload,
    blocks: u64,
    rng: Rng,
    next: u64,
    unflushed: u64,
}

impl Requests {
    /// In an area of `area` bytes, which holds at least one request.
    pub fn new(workload: Workload, area: u64, rng: Rng) -> Requests {
        Requests {
            workload,
            blocks: area / workload.block as u64,
            rng,
            next: 0,
            unflushed: 0,
        }
    }

    /// The next one.
    pub fn next(&mut self) -> Request {
        let flush_every = self.workload.flush_every;
        if flush_every > 0 && self.unflushed == flush_every {
            self.unflushed = 0;
            return Request::Flush;
        }
        let block = match self.workload.sequential {
            true => self.next % self.blocks,
            false => self.rng.below(self.blocks),
        };
        self.next += 1;
        let offset = block * self.workload.block as u64;
        match self.workload.reads {
            100 => Request::Read(offset),
            reads if reads > 0 && self.rng.chance(reads, 100) => Request::Read(offset),
            _ => {
                self.unflushed += 1;
                Request::Write(offset)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(name: &str, area: u64) -> Requests {
        Requests::new(Workload::named(name).unwrap(), area, Rng::new(1, 0))
    }

    #[test]
    fn sequential_requests_begin_again_at_the_end() {
        let mut requests = requests("read-8", 256 << 10);
        let three = [requests.next(), requests.next(), requests.next()];
        let reads = [0, 128 << 10, 0].map(Request::Read);
        assert_eq!(three, reads);
    }

    #[test]
    fn a_flush_comes_after_as_many_writes_as_it_says() {
        let mut requests = requests("writeflush-1", 1 << 20);
        let all: Vec<Request> = (0..34).map(|_| requests.next()).collect();
        let flush = |request: &Request| *request == Request::Flush;
        assert_eq!(all.iter().position(flush), Some(16));
        assert!(flush(&all[33]));
    }

    #[test]
    fn a_mixture_has_its_part_of_reads() {
        let mut requests = requests("mix-32", 1 << 20);
        let read = |_: &u32| matches!(requests.next(), Request::Read(_));
        let reads = (0..10_000).filter(read).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
    }

    #[test]
    fn names_are_unique() {
        for workload in ALL {
            assert_eq!(Workload::named(workload.name), Some(workload));
        }
    }
}
