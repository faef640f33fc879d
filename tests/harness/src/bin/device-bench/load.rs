//! The front-end: drives one workload through a vhost-user-blk socket, one thread for
//! each queue, and times every request. The same for every device.
//!
//! Queues report completions by event fd; nothing is polled. What is written is fixed, so
//! that making it costs nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::device::{Device, Kind};
use crate::rng::Rng;
use crate::workload::{Request, Requests, Workload};

/// The longest wait for any answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for so many latencies from the start: nothing is moved while it is measured.
const LATENCIES: usize = 1 << 20;

/// The time that counts.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Before it, the device warms up.
    pub warm_up: Duration,
    /// Its length.
    pub length: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// The workload.
    pub workload: Workload,
    /// The device's first so many bytes.
    pub area: u64,
    /// Where random requests go.
    pub seed: u64,
    /// When it counts.
    pub window: Window,
}

/// What came out, of all queues together.
#[derive(Debug, Default)]
pub struct Load {
    /// Of each request but flushes that ended in the window, in nanoseconds, ascending.
    pub latencies: Vec<u32>,
    /// What the front-end itself used in the window.
    pub cpu: Duration,
    /// The very first request's latency, before the window.
    pub first: Duration,
}

/// Does the job; calls `sample` when the window begins and when it ends.
///
/// # Errors
/// When the device refuses, fails a request or does not answer.
pub fn run(socket: &Path, job: Job, mut sample: impl FnMut()) -> Result<Load, String> {
    let Workload {
        queues,
        depth,
        block,
        ..
    } = job.workload;
    let connected = Device::connect_queues(socket, queues, depth, block);
    let devices = connected.map_err(|error| format!("cannot connect: {error}"))?;
    let mut queues: Vec<Queue> = devices
        .into_iter()
        .enumerate()
        .map(|(stream, device)| Queue::new(device, job, stream as u64))
        .collect();
    let from = Instant::now() + job.window.warm_up;
    let to = from + job.window.length;
    let loads = thread::scope(|scope| {
        let running: Vec<_> = queues
            .iter_mut()
            .map(|queue| scope.spawn(move || queue.run(from, to)))
            .collect();
        for moment in [from, to] {
            thread::sleep(moment.saturating_duration_since(Instant::now()));
            sample();
        }
        let ends = running.into_iter().map(|queue| queue.join());
        ends.map(|end| end.unwrap_or_else(|_| Err("the front-end panicked".into())))
            .collect::<Result<Vec<Load>, String>>()
    })?;
    let mut all = Load::default();
    for load in loads {
        all.latencies.extend(load.latencies);
        all.cpu += load.cpu;
        all.first = all.first.max(load.first);
    }
    all.latencies.sort_unstable();
    Ok(all)
}

/// One queue and what is in flight in it.
struct Queue {
    device: Device,
    requests: Requests,
    block: usize,
    /// What each slot does since when.
    slots: Vec<(Request, Instant)>,
    idle: Vec<usize>,
}

impl Queue {
    fn new(mut device: Device, job: Job, stream: u64) -> Queue {
        let Workload { depth, block, .. } = job.workload;
        let mut rng = Rng::new(job.seed, stream);
        for slot in 0..depth {
            for word in device.buffer(slot, block).chunks_exact_mut(8) {
                word.copy_from_slice(&rng.next().to_le_bytes());
            }
        }
        Queue {
            device,
            requests: Requests::new(job.workload, job.area, rng),
            block,
            slots: vec![(Request::Flush, Instant::now()); depth],
            idle: (0..depth).collect(),
        }
    }

    fn run(&mut self, from: Instant, to: Instant) -> Result<Load, String> {
        let mut load = Load {
            latencies: Vec::with_capacity(LATENCIES),
            ..Load::default()
        };
        let mut cpu_before = None;
        let mut now = Instant::now();
        while now < to {
            if now >= from {
                cpu_before.get_or_insert_with(Counters::cpu_of_this_thread);
            }
            self.submit();
            let answered = self.answers()?;
            now = Instant::now();
            for slot in answered {
                self.idle.push(slot);
                let (request, submitted) = self.slots[slot];
                let latency = now - submitted;
                if load.first.is_zero() {
                    load.first = latency;
                }
                if request != Request::Flush && (from..to).contains(&now) {
                    let nanoseconds = latency.as_nanos().try_into();
                    load.latencies.push(nanoseconds.unwrap_or(u32::MAX));
                }
            }
        }
        let cpu = Counters::cpu_of_this_thread();
        load.cpu = cpu_before.map_or(Duration::ZERO, |before| cpu.saturating_sub(before));
        while self.idle.len() < self.slots.len() {
            let answered = self.answers()?;
            self.idle.extend(answered);
        }
        Ok(load)
    }

    fn submit(&mut self) {
        while let Some(slot) = self.idle.pop() {
            let request = self.requests.next();
            let (kind, offset, bytes) = match request {
                Request::Read(offset) => (Kind::Read, offset, self.block),
                Request::Write(offset) => (Kind::Write, offset, self.block),
                Request::Flush => (Kind::Flush, 0, 0),
            };
            self.slots[slot] = (request, Instant::now());
            self.device.submit(slot, kind, offset, bytes);
        }
    }

    /// The slots that were answered, at least one.
    fn answers(&mut self) -> Result<Vec<usize>, String> {
        let in_flight = self.slots.len() - self.idle.len();
        let answers = self.device.answers(in_flight, PATIENCE);
        if answers.is_empty() {
            return Err(format!("no answer in {PATIENCE:?}"));
        }
        let slot = |(slot, result): (usize, i32)| match result {
            0 => Ok(slot),
            error => Err(format!("{:?} failed: error {error}", self.slots[slot].0)),
        };
        answers.into_iter().map(slot).collect()
    }
}
