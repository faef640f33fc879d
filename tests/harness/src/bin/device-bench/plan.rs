//! The order of a round. Pure.
//!
//! All ways of one workload come one after the other, so that they see the same machine as
//! far as can be; workloads and ways are shuffled anew for each round.

use crate::rng::Rng;
use crate::way::Contender;
use crate::workload::Workload;

/// Every workload with every contender that can do it, in the order of this round.
pub fn round(
    seed: u64,
    round: u32,
    workloads: &[Workload],
    contenders: &[Contender],
) -> Vec<(Workload, Contender)> {
    let mut rng = Rng::new(seed, round.into());
    let mut workloads = workloads.to_vec();
    shuffle(&mut workloads, &mut rng);
    let of_workload = |workload| {
        let can = contenders.iter().filter(|one| one.can(&workload));
        let mut contenders: Vec<Contender> = can.copied().collect();
        shuffle(&mut contenders, &mut rng);
        contenders
            .into_iter()
            .map(move |contender| (workload, contender))
    };
    workloads.into_iter().flat_map(of_workload).collect()
}

/// Every order is as likely as any other (Fisher and Yates).
fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for end in (1..items.len()).rev() {
        items.swap(end, rng.below(end as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::way::{State, Way};
    use crate::workload::ALL;

    fn contenders() -> Vec<Contender> {
        Contender::all(
            &[Way::Bypass, Way::Fio, Way::Null],
            &[State::Clean, State::Dirty],
        )
    }

    #[test]
    fn a_round_has_each_workload_with_each_contender_side_by_side() {
        let plan = round(1, 0, &ALL, &contenders());
        assert_eq!(plan.len(), ALL.len() * 4);
        for of_workload in plan.chunks(4) {
            assert!(
                of_workload
                    .iter()
                    .all(|(workload, _)| *workload == of_workload[0].0)
            );
            for contender in contenders() {
                assert!(of_workload.iter().any(|(_, other)| *other == contender));
            }
        }
    }

    #[test]
    fn what_a_way_cannot_do_is_left_out() {
        let null = Contender::all(&[Way::Null, Way::BareNull], &[]);
        let of = |name| {
            let plan = round(1, 0, &[Workload::named(name).unwrap()], &null);
            plan.len()
        };
        assert_eq!((of("randwrite-1"), of("writeflush-1")), (2, 1));
    }

    #[test]
    fn a_seed_repeats_its_rounds_and_rounds_differ() {
        let plan = |seed, number| round(seed, number, &ALL, &contenders());
        assert_eq!(plan(1, 0), plan(1, 0));
        assert_ne!(plan(1, 0), plan(1, 1));
        assert_ne!(plan(1, 0), plan(2, 0));
    }
}
