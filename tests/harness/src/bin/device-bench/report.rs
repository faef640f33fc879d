//! The report: Markdown tables, JSON with every round, plots. Pure but for writing it.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use bypass_harness::stats::Spread;
use serde_json::{Value, json};

use crate::MIB;
use crate::figures::{Cells, Figures};
use crate::healing::Healing;
use crate::idle::Idle;
use crate::many_shards::ManyShards;
use crate::plot::{self, Group};
use crate::table::Table;
use crate::way::{Contender, Way};
use crate::workload::Workload;

/// All that was measured.
pub struct Report<'a> {
    /// The workloads, in order.
    pub workloads: &'a [Workload],
    /// The ways, in order.
    pub contenders: &'a [Contender],
    /// The cells.
    pub cells: &'a Cells,
    /// The idle daemon.
    pub idle: Option<Idle>,
    /// What healing sends.
    pub healing: Option<Healing>,
    /// An image of many shards.
    pub many_shards: Option<ManyShards>,
    /// The goals.
    pub goals: &'a Table,
    /// How it was measured: command, time, load averages.
    pub about: Value,
}

impl Report<'_> {
    /// Writes all files into a folder, which is made if need be.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("report.md"), self.markdown())?;
        std::fs::write(dir.join("report.json"), format!("{:#}\n", self.json()))?;
        for (file, title, figure) in PLOTS {
            let against_limit = self.contenders.contains(&Contender::LIMIT);
            let title = match against_limit {
                true => format!("{title}, of fio on the brick's file in the same round"),
                false => title.to_owned(),
            };
            let svg = plot::bars(&title, &self.groups(figure, against_limit), against_limit);
            std::fs::write(dir.join(file), svg)?;
        }
        Ok(())
    }

    /// The goals, all ratios at a glance, then a table for each workload.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n{}\n", self.goals, self.overview());
        for workload in self.workloads {
            text.push_str(&self.of_workload(*workload));
        }
        text
    }

    /// Requests per second of all ways, of bare fio's in the same round.
    fn overview(&self) -> String {
        let names: Vec<&str> = self.contenders.iter().map(Contender::name).collect();
        let mut text = format!("| of bare fio | {} |\n", names.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(names.len()));
        for workload in self.workloads {
            let ratio = |contender: &Contender| {
                let pair = [*contender, Contender::LIMIT];
                match self
                    .cells
                    .ratios(workload.name, pair, |f| f.iops)
                    .as_slice()
                {
                    [] => "–".to_owned(),
                    ratios => format!("{:.2}", Spread::of(ratios).median),
                }
            };
            let ratios: Vec<String> = self.contenders.iter().map(ratio).collect();
            let _ = writeln!(text, "| {} | {} |", workload.title, ratios.join(" | "));
        }
        text
    }

    fn of_workload(&self, workload: Workload) -> String {
        let unit = match workload.block as u64 >= MIB / 8 {
            true => "MiB/s",
            false => "IOPS",
        };
        let mut text = format!(
            "### {}\n\n| way | {unit} | of bare fio | p50 µs | p99 µs | p99.9 µs | CPU µs | of \
             bare fio's | switches | Gluster's CPU µs | front-end's CPU µs |\n| --- | {} |\n",
            workload.title,
            ["---"; 10].join(" | ")
        );
        for contender in self.contenders {
            let row = self.row(workload, *contender);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {} | {} |", contender.name(), row.join(" | "));
        }
        text.push('\n');
        text
    }

    fn row(&self, workload: Workload, contender: Contender) -> Vec<String> {
        let spread = |figure: fn(&Figures) -> f64| {
            Spread::of(&self.cells.values(workload.name, contender, figure))
        };
        let ratio = |figure: fn(&Figures) -> f64| {
            let pair = [contender, Contender::LIMIT];
            match self.cells.ratios(workload.name, pair, figure).as_slice() {
                [] => "–".to_owned(),
                ratios => format!("{:.2}", Spread::of(ratios)),
            }
        };
        let iops = self.cells.values(workload.name, contender, |f| f.iops);
        let per_unit = match workload.block as u64 >= MIB / 8 {
            true => workload.block as f64 / MIB as f64,
            false => 1.0,
        };
        let speed: Vec<f64> = iops.iter().map(|iops| iops * per_unit).collect();
        let front_end = match contender.way {
            Way::Fio | Way::Fuse | Way::Gfapi => "–".to_owned(),
            _ => format!(
                "{:.2}",
                spread(|f| f.front_end_cpu_us.unwrap_or_default()).median
            ),
        };
        vec![
            format!("{:.0}", Spread::of(&speed)),
            ratio(|f| f.iops),
            format!("{:.0}", spread(|f| f.p50_us)),
            format!("{:.0}", spread(|f| f.p99_us)),
            format!("{:.0}", spread(|f| f.p999_us)),
            format!("{:.2}", spread(|f| f.cpu_us)),
            ratio(|f| f.cpu_us),
            format!("{:.3}", spread(|f| f.switches)),
            format!("{:.2}", spread(|f| f.gluster_cpu_us).median),
            front_end,
        ]
    }

    /// Every cell of every round.
    pub fn json(&self) -> Value {
        let cell = |cell: &crate::figures::Cell| {
            json!({
                "round": cell.round,
                "workload": cell.workload.name,
                "way": cell.contender.name(),
                "figures": cell.figures,
            })
        };
        json!({
            "about": self.about,
            "cells": self.cells.0.iter().map(cell).collect::<Vec<_>>(),
            "idle": self.idle,
            "healing": self.healing,
            "many_shards": self.many_shards,
            "goals": self.goals,
        })
    }

    fn groups(&self, figure: fn(&Figures) -> f64, against_limit: bool) -> Vec<Group<'_>> {
        let group = |workload: &Workload| {
            let bar = |(colour, contender): (usize, &Contender)| {
                let values = match against_limit {
                    true => {
                        let pair = [*contender, Contender::LIMIT];
                        self.cells.ratios(workload.name, pair, figure)
                    }
                    false => self.cells.values(workload.name, *contender, figure),
                };
                (contender.name(), colour, Spread::of(&values))
            };
            Group {
                title: workload.title,
                bars: self.contenders.iter().enumerate().map(bar).collect(),
            }
        };
        self.workloads.iter().map(group).collect()
    }
}

type Plot = (&'static str, &'static str, fn(&Figures) -> f64);

const PLOTS: [Plot; 3] = [
    ("speed.svg", "Requests per second", |figures| figures.iops),
    ("p99.svg", "p99 latency", |figures| figures.p99_us),
    ("cpu.svg", "CPU per request", |figures| figures.cpu_us),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::{OURS, cells};

    #[test]
    fn a_workloads_table_has_medians_and_the_ratios_of_rounds() {
        let cells = cells("read-8", &[[80.0, 160.0], [40.0, 40.0], [240.0, 240.0]]);
        let report = Report {
            workloads: &[Workload::named("read-8").unwrap()],
            contenders: &[OURS, Contender::LIMIT],
            cells: &cells,
            idle: None,
            healing: None,
            many_shards: None,
            goals: &Table::default(),
            about: json!({}),
        };
        let text = report.markdown();
        assert!(
            text.contains("| bypass-blk, clean | 10 (5–30) | 1.00 (0.50–1.00) |"),
            "{text}"
        );
        assert!(
            text.contains("| 128 KiB sequential read, depth 8 | 1.00 | 1.00 |"),
            "{text}"
        );
        assert_eq!(report.json()["cells"][5]["figures"]["iops"], 240.0);
        assert_eq!(report.json()["cells"][0]["way"], "bypass-blk, clean");
    }
}
