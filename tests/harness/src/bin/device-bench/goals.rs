//! The goals of the project for the device, and what was measured beside them. Pure.

use bypass_harness::stats::Spread;

use crate::figures::{Cells, Figures};
use crate::table::{Goal, Table};
use crate::way::{Contender, State, Way};
use crate::workload::{self, Workload};

/// A goal for a ratio of one of our ways to another way.
struct Asked {
    ours: Way,
    workload: &'static str,
    what: &'static str,
    figure: fn(&Figures) -> f64,
    /// Of the figure, in the table.
    digits: usize,
    of: Way,
    /// Only with our image in this state.
    state: Option<State>,
    goal: Goal,
}

const fn speed(workload: &'static str, of: Way, times: f64) -> Asked {
    Asked {
        ours: Way::Bypass,
        workload,
        what: "requests per second",
        figure: |figures| figures.iops,
        digits: 0,
        of,
        state: None,
        goal: Goal::AtLeast(times),
    }
}

const fn cost(workload: &'static str, of: Way, times: f64) -> Asked {
    Asked {
        what: "µs of CPU per request",
        figure: |figures| figures.cpu_us,
        digits: 2,
        goal: Goal::AtMost(times),
        ..speed(workload, of, 0.0)
    }
}

const fn tail(workload: &'static str) -> Asked {
    Asked {
        what: "p99 in µs",
        figure: |figures| figures.p99_us,
        digits: 0,
        goal: Goal::AtMost(1.2),
        ..speed(workload, Way::Fio, 0.0)
    }
}

/// What marks and the dirty map may cost, where there are marks already.
const fn with_marks(asked: Asked) -> Asked {
    Asked {
        state: Some(State::Dirty),
        ..asked
    }
}

const ASKED: [Asked; 17] = [
    speed("randread-1", Way::Fio, 0.85),
    speed("randwrite-1", Way::Fio, 0.85),
    speed("randread-32", Way::Fio, 0.92),
    speed("randwrite-32", Way::Fio, 0.92),
    speed("randread-32x2", Way::Fio, 0.92),
    speed("read-8", Way::Fio, 0.97),
    speed("write-8", Way::Fio, 1.0),
    cost("randread-32", Way::Fio, 1.15),
    cost("randwrite-32", Way::Fio, 1.15),
    tail("randread-1"),
    tail("randwrite-1"),
    speed("randwrite-32", Way::Fuse, 50.0),
    speed("randwrite-32", Way::Gfapi, 40.0),
    with_marks(speed("randread-32", Way::Unmarked, 0.98)),
    with_marks(speed("randwrite-32", Way::Unmarked, 0.98)),
    with_marks(cost("randread-32", Way::Unmarked, 1.02)),
    with_marks(cost("randwrite-32", Way::Unmarked, 1.02)),
];

/// What an image may cost that is in shards, at every workload, beside one that is whole.
fn of_shards(workload: &Workload) -> [Asked; 3] {
    let first = Asked {
        what: "µs until the first request is answered",
        figure: |figures| figures.first_us.unwrap_or_default(),
        goal: Goal::AtMost(1.0),
        state: Some(State::Clean),
        ..speed(workload.name, Way::Bypass, 0.0)
    };
    let asked = [
        speed(workload.name, Way::Bypass, 0.97),
        cost(workload.name, Way::Bypass, 1.05),
        first,
    ];
    asked.map(|asked| Asked {
        ours: Way::Sharded,
        ..asked
    })
}

/// Adds a row for each goal of what was measured, for each state of ours: the medians of
/// both, and the median of the ratios of the same round.
pub fn judge(cells: &Cells, contenders: &[Contender], table: &mut Table) {
    let asked: Vec<Asked> = ASKED
        .into_iter()
        .chain(workload::ALL.iter().flat_map(of_shards))
        .collect();
    for ours in contenders {
        let of_ours = |asked: &&Asked| {
            asked.ours == ours.way && (asked.state.is_none() || asked.state == ours.state)
        };
        for asked in asked.iter().filter(of_ours) {
            // Two of ours are compared in the same state.
            let other = Contender {
                way: asked.of,
                state: ours.state.filter(|_| asked.of.is_ours()),
            };
            let (figure, digits) = (asked.figure, asked.digits);
            let ratios = cells.ratios(asked.workload, [*ours, other], figure);
            let Some(workload) = Workload::named(asked.workload).filter(|_| !ratios.is_empty())
            else {
                continue;
            };
            let ratios = Spread::of(&ratios);
            let [of_ours, of_other] = [*ours, other]
                .map(|contender| Spread::of(&cells.values(asked.workload, contender, figure)));
            let (title, what) = (workload.title, asked.what);
            let (ours, other) = (ours.name(), other.name());
            table.add(
                &format!("{title}, {what}: {ours} / {other}"),
                &format!("{of_ours:.digits$} / {of_other:.digits$}; ratios {ratios:.3}"),
                ratios.median,
                asked.goal,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::{OURS, cells, cells_of};

    fn judged(name: &str, rounds: &[[f64; 2]]) -> String {
        let mut table = Table::default();
        judge(&cells(name, rounds), &[OURS, Contender::LIMIT], &mut table);
        table.to_string()
    }

    #[test]
    fn a_goal_is_met_by_the_median_of_the_rounds_ratios() {
        let text = judged("randread-1", &[[90.0, 100.0], [86.0, 100.0], [1.0, 100.0]]);
        assert!(text.contains("| 0.860 | ≥ 0.85 | yes |"), "{text}");
        let text = judged("randread-1", &[[84.0, 100.0]]);
        assert!(text.contains("| 0.840 | ≥ 0.85 | **no** |"), "{text}");
    }

    #[test]
    fn costs_are_goals_too_and_what_was_not_measured_is_left_out() {
        let text = judged("randread-32", &[[90.0, 100.0]]);
        assert!(text.contains("| 1.111 | ≤ 1.15 | yes |"), "{text}");
        assert!(!text.contains("depth 1,"), "{text}");
    }

    #[test]
    fn what_marking_costs_is_judged_of_a_marked_image_alone() {
        let unmarked = Contender {
            way: Way::Unmarked,
            state: None,
        };
        let judged = |state, rounds: &[[f64; 2]]| {
            let ours = Contender {
                state: Some(state),
                ..OURS
            };
            let mut table = Table::default();
            let cells = cells_of("randwrite-32", [ours, unmarked], rounds);
            judge(&cells, &[ours, unmarked], &mut table);
            serde_json::to_value(&table).unwrap()
        };
        let table = judged(State::Dirty, &[[985.0, 1000.0]]);
        assert_eq!(
            (&table[0]["goal"], &table[0]["met"]),
            (&"≥ 0.98".into(), &true.into())
        );
        assert_eq!(
            (&table[1]["goal"], &table[1]["met"]),
            (&"≤ 1.02".into(), &true.into())
        );
        let table = judged(State::Dirty, &[[970.0, 1000.0]]);
        assert!(
            table[0]["met"] == false && table[1]["met"] == false,
            "{table}"
        );
        assert_eq!(
            judged(State::Clean, &[[500.0, 1000.0]]),
            serde_json::json!([])
        );
    }

    #[test]
    fn an_image_in_shards_is_judged_beside_a_whole_one_in_the_same_state() {
        let [whole, sharded] = [Way::Bypass, Way::Sharded].map(|way| Contender { way, ..OURS });
        let mut table = Table::default();
        let cells = cells_of("mix-32", [sharded, whole], &[[96.0, 100.0]]);
        judge(&cells, &[sharded, whole], &mut table);
        let text = table.to_string();
        assert!(text.contains("| 0.960 | ≥ 0.97 | **no** |"), "{text}");
        assert!(text.contains("| 1.042 | ≤ 1.05 | yes |"), "{text}");
    }
}
