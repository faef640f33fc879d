//! The controller against simulated disks, and against anything at all.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// A disk and network: copying goes as fast as it may, up to `most`, and from
/// `knee` on each MiB/s of it costs the guest `slope` microseconds.
#[derive(Clone, Debug)]
struct Machine {
    guest: f64,
    most: u64,
    knee: u64,
    slope: f64,
}

impl Machine {
    fn rate(&self, backoff: &Backoff, limit: u64) -> u64 {
        match backoff.rate(limit) {
            0 => self.most,
            rate => rate.min(self.most),
        }
    }

    fn latency(&self, rate: u64) -> f64 {
        let above = rate.saturating_sub(self.knee) as f64 / MIB as f64;
        self.guest + above * self.slope
    }

    /// One interval of copying; how fast, and the guest's latency.
    fn copy(&self, backoff: &mut Backoff) -> (u64, f64) {
        let rate = self.rate(backoff, 0);
        let latency = self.latency(rate);
        backoff.observe(&Interval {
            latency: Some(Duration::from_secs_f64(latency / 1e6)),
            copied: true,
            rate,
        });
        (rate, latency)
    }

    fn rest(&self, backoff: &mut Backoff) {
        backoff.observe(&Interval {
            latency: Some(Duration::from_secs_f64(self.guest / 1e6)),
            copied: false,
            rate: 0,
        });
    }

    /// The highest latency that is not suffering, in microseconds.
    fn bearable(&self) -> f64 {
        (self.guest * FACTOR).max(self.guest + MARGIN * 1e6)
    }

    /// The fastest copying that the guest does not suffer from.
    fn best(&self) -> f64 {
        let allowed = self.bearable() - self.guest;
        (self.knee as f64 + allowed / self.slope * MIB as f64).min(self.most as f64)
    }
}

prop_compose! {
    fn machine()(
        guest in 20.0..20_000.0,
        most in 100 * MIB..5000 * MIB,
        knee in 8 * MIB..200 * MIB,
        slope in 1.0..1000.0,
    ) -> Machine {
        Machine { guest, most, knee, slope }
    }
}

fn interval() -> impl Strategy<Value = Interval> {
    let latency = prop::option::of(any::<u64>().prop_map(Duration::from_nanos));
    (latency, any::<bool>(), any::<u64>()).prop_map(|(latency, copied, rate)| Interval {
        latency,
        copied,
        rate,
    })
}

/// The mean rate of many intervals, and the part of them in which the guest suffered.
fn run(machine: &Machine, backoff: &mut Backoff, intervals: u32) -> (f64, f64) {
    let (mut rates, mut suffered) = (0.0, 0.0);
    for _ in 0..intervals {
        let (rate, latency) = machine.copy(backoff);
        rates += rate as f64;
        suffered += f64::from(u8::from(latency > machine.bearable() * 1.01));
    }
    (
        rates / f64::from(intervals),
        suffered / f64::from(intervals),
    )
}

proptest! {
    #[test]
    fn settles_where_the_guest_hardly_suffers_and_copying_goes_on(
        machine in machine(),
        rested: bool,
    ) {
        let mut backoff = Backoff::default();
        if rested {
            machine.rest(&mut backoff);
        }
        run(&machine, &mut backoff, 200);
        let (rate, suffered) = run(&machine, &mut backoff, 400);
        prop_assert!(suffered <= 0.2, "in {suffered} of the time");
        prop_assert!(rate >= machine.best() * 0.5, "{rate} of {} B/s", machine.best());
    }

    #[test]
    fn nothing_that_is_seen_takes_the_rate_below_the_floor_or_above_the_limit(
        intervals in prop::collection::vec(interval(), 0..200),
        limit: u64,
    ) {
        let mut backoff = Backoff::default();
        for interval in intervals {
            backoff.observe(&interval);
            let unlimited = backoff.rate(0);
            prop_assert!(unlimited == 0 || unlimited >= FLOOR);
            let rate = backoff.rate(limit);
            prop_assert!(limit == 0 || (rate <= limit && rate >= limit.min(FLOOR)));
        }
    }

    #[test]
    fn recovers_from_anything_once_copying_does_no_harm(
        before in prop::collection::vec(interval(), 0..100),
        guest in 20.0..20_000.0,
    ) {
        let mut backoff = Backoff::default();
        before.iter().for_each(|interval| backoff.observe(interval));
        let harmless = Machine { guest, most: 500 * MIB, knee: u64::MAX, slope: 0.0 };
        run(&harmless, &mut backoff, 1000);
        prop_assert_eq!(harmless.rate(&backoff, 0), harmless.most);
    }
}

#[test]
fn an_idle_guest_holds_nothing_back_and_its_return_finds_the_cap_again() {
    let machine = Machine {
        guest: 100.0,
        most: 1000 * MIB,
        knee: 20 * MIB,
        slope: 100.0,
    };
    let mut backoff = Backoff::default();
    run(&machine, &mut backoff, 100);
    assert!(backoff.rate(0) > 0);
    let idle = Interval {
        latency: None,
        copied: true,
        rate: 1000 * MIB,
    };
    backoff.observe(&idle);
    assert_eq!(backoff.rate(0), 0);
    machine.copy(&mut backoff);
    assert!(backoff.rate(0) > 0, "no cap after its return");
}

#[test]
fn a_guest_that_becomes_slow_by_itself_does_not_hold_copying_back_for_long() {
    let quick = Machine {
        guest: 100.0,
        most: 500 * MIB,
        knee: u64::MAX,
        slope: 0.0,
    };
    let slow = Machine {
        guest: 5000.0,
        ..quick.clone()
    };
    let mut backoff = Backoff::default();
    quick.rest(&mut backoff);
    run(&quick, &mut backoff, 10);
    let first = run(&slow, &mut backoff, 10).0;
    assert!(first < 400.0 * MIB as f64, "nobody knows it at first");
    run(&slow, &mut backoff, 300);
    assert_eq!(slow.rate(&backoff, 0), slow.most);
}

#[test]
fn with_no_baseline_copying_slows_down_for_a_moment_to_learn_one() {
    let machine = Machine {
        guest: 100.0,
        most: 1000 * MIB,
        knee: 50 * MIB,
        slope: 100.0,
    };
    let mut backoff = Backoff::default();
    assert_eq!(machine.copy(&mut backoff).0, machine.most);
    assert_eq!(machine.copy(&mut backoff).0, FLOOR);
    let suffered = run(&machine, &mut backoff, 20).1;
    assert!(suffered <= 0.2, "in {suffered} of the time");
}
