//! What is said of one cell, and of all cells together. Pure.

use std::time::Duration;

use bypass_harness::stats::percentile;
use serde::Serialize;

use crate::counters::{Counters, Used};
use crate::load::Load;
use crate::way::Contender;
use crate::workload::Workload;

/// One workload, one way, one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Requests per second, without flushes.
    pub iops: f64,
    /// Latency in µs: half of the requests did not exceed it.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The serving process' processor time per request, in µs.
    pub cpu_us: f64,
    /// Its context switches per request.
    pub switches: f64,
    /// The processor time of all Gluster processes per request, in µs; of heald too, if it heals.
    pub gluster_cpu_us: f64,
    /// The front-end's own processor time per request, in µs; with fio that is `cpu_us`.
    pub front_end_cpu_us: Option<f64>,
    /// The first request's latency, in µs, with all that it had to wait for.
    pub first_us: Option<f64>,
}

impl Used {
    /// Microseconds of processor time per request, at this rate.
    fn cpu_us(&self, counters: &Counters, iops: f64) -> f64 {
        per(
            counters.cpu.as_secs_f64() * 1e6,
            self.time.as_secs_f64() * iops,
        )
    }

    /// The parts that are reckoned per request; the rest is 0.
    pub fn at(&self, iops: f64) -> Figures {
        Figures {
            iops,
            p50_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
            cpu_us: self.cpu_us(&self.serving, iops),
            switches: per(
                self.serving.switches() as f64,
                self.time.as_secs_f64() * iops,
            ),
            gluster_cpu_us: self.cpu_us(&self.gluster, iops),
            front_end_cpu_us: None,
            first_us: None,
        }
    }
}

/// Of a load of our own front-end in a window of this length.
pub fn of_load(load: &Load, window: Duration, used: &Used) -> Figures {
    let requests = load.latencies.len() as f64;
    let iops = per(requests, window.as_secs_f64());
    let at = |of_1000| f64::from(percentile(&load.latencies, of_1000)) / 1e3;
    Figures {
        p50_us: at(500),
        p99_us: at(990),
        p999_us: at(999),
        front_end_cpu_us: Some(per(load.cpu.as_secs_f64() * 1e6, requests)),
        first_us: Some(load.first.as_secs_f64() * 1e6),
        ..used.at(iops)
    }
}

fn per(amount: f64, of: f64) -> f64 {
    if of > 0.0 { amount / of } else { 0.0 }
}

/// A cell with its place.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// From 0.
    pub round: u32,
    /// What was done.
    pub workload: Workload,
    /// How.
    pub contender: Contender,
    /// What came out.
    pub figures: Figures,
}

/// All cells of a run.
#[derive(Debug, Default)]
pub struct Cells(pub Vec<Cell>);

impl Cells {
    /// One figure of every round.
    pub fn values(
        &self,
        workload: &str,
        contender: Contender,
        figure: impl Fn(&Figures) -> f64,
    ) -> Vec<f64> {
        let of_all = |cell: &&Cell| cell.workload.name == workload && cell.contender == contender;
        self.0
            .iter()
            .filter(of_all)
            .map(|cell| figure(&cell.figures))
            .collect()
    }

    /// One figure of `contender` for each of `other`'s, of the rounds that have both.
    pub fn ratios(
        &self,
        workload: &str,
        [contender, other]: [Contender; 2],
        figure: impl Fn(&Figures) -> f64,
    ) -> Vec<f64> {
        let find = |round: u32, contender: Contender| {
            let place = (round, workload, contender);
            let is = |cell: &&Cell| (cell.round, cell.workload.name, cell.contender) == place;
            self.0.iter().find(is).map(|cell| figure(&cell.figures))
        };
        let rounds = self
            .0
            .iter()
            .map(|cell| cell.round + 1)
            .max()
            .unwrap_or_default();
        let of_round = |round| Some((find(round, contender)?, find(round, other)?));
        let pairs = (0..rounds).filter_map(of_round);
        pairs
            .filter(|(_, other)| *other > 0.0)
            .map(|(one, other)| one / other)
            .collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::way::{State, Way};

    pub const OURS: Contender = Contender {
        way: Way::Bypass,
        state: Some(State::Clean),
    };

    /// Cells of one workload: of each round our IOPS and the limit's.
    pub fn cells(name: &str, rounds: &[[f64; 2]]) -> Cells {
        cells_of(name, [OURS, Contender::LIMIT], rounds)
    }

    /// The same of any two.
    pub fn cells_of(name: &str, contenders: [Contender; 2], rounds: &[[f64; 2]]) -> Cells {
        let nothing = Used {
            serving: Counters::default(),
            gluster: Counters::default(),
            time: Duration::from_secs(1),
        };
        let workload = Workload::named(name).unwrap();
        let of_round = |(round, iops): (usize, &[f64; 2])| {
            let cell = |(contender, iops): (Contender, f64)| Cell {
                round: round as u32,
                workload,
                contender,
                figures: Figures {
                    cpu_us: 1e6 / iops,
                    ..nothing.at(iops)
                },
            };
            contenders
                .into_iter()
                .zip(*iops)
                .map(cell)
                .collect::<Vec<_>>()
        };
        Cells(rounds.iter().enumerate().flat_map(of_round).collect())
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut cells = cells("randread-1", &[[80.0, 100.0], [20.0, 40.0], [1.0, 1.0]]);
        cells.0.pop();
        let ratios = cells.ratios("randread-1", [OURS, Contender::LIMIT], |f| f.iops);
        assert_eq!(ratios, [0.8, 0.5]);
    }

    #[test]
    fn use_is_reckoned_per_request() {
        let serving = Counters {
            cpu: Duration::from_millis(500),
            voluntary: 900,
            involuntary: 100,
        };
        let gluster = Counters::default();
        let used = Used {
            serving,
            gluster,
            time: Duration::from_secs(2),
        };
        let figures = used.at(1000.0);
        assert_eq!((figures.cpu_us, figures.switches), (250.0, 0.5));
        assert_eq!(used.at(0.0).cpu_us, 0.0);
    }

    #[test]
    fn a_loads_latencies_are_in_microseconds() {
        let load = Load {
            latencies: vec![1_000, 2_000, 50_000],
            ..Load::default()
        };
        let used = Used {
            serving: Counters::default(),
            gluster: Counters::default(),
            time: Duration::from_secs(1),
        };
        let figures = of_load(&load, Duration::from_secs(3), &used);
        assert_eq!(
            (figures.iops, figures.p50_us, figures.p99_us),
            (1.0, 2.0, 50.0)
        );
    }
}
