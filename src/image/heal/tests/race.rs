//! The healer against everybody who does something at the same time, in hundreds
//! of seeded rounds. A failing round is named by its seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::super::Engine;
use super::brick::{Call, Fault};
use super::world::{Client, EXTENT, Guest, SIZE, World};
use super::{KILLED, Rng};

const ROUNDS: u64 = 300;
const PASSES: usize = 6;

/// A pass may be killed: the healer then leaves everything as it is.
fn pass(world: &World, engine: &mut Option<Engine>) {
    let current = engine.get_or_insert_with(|| world.engine());
    let done = catch_unwind(AssertUnwindSafe(|| current.run_pass()));
    let usable = match done {
        Ok(done) => !done.is_err_and(|error| error.lost_peer()),
        Err(panic) => {
            assert!(panic.downcast_ref::<String>().is_some_and(|p| p == KILLED));
            false
        }
    };
    if !usable {
        *engine = None;
    }
}

#[test]
fn what_the_guest_writes_meanwhile_is_never_lost() {
    for seed in 0..ROUNDS {
        let mut world = World::either(seed);
        world.options.compare_first = Arc::new((seed % 10 == 0).into());
        let guest = Arc::new(Mutex::new(Guest::new(&world, SIZE)));
        let (acting, mut rng) = (guest.clone(), Rng(seed));
        world.brick.meanwhile(move || {
            let mut guest = acting.lock().unwrap();
            (0..rng.below(4)).for_each(|_| guest.step(&mut rng));
        });
        let mut engine = world.engine();
        for _ in 0..PASSES {
            engine.run_pass().unwrap();
        }
        world.brick.meanwhile(|| {});
        guest.lock().unwrap().drain();
        assert!(world.clean_means_equal(), "seed {seed}");
        world.finish(engine);
    }
}

#[test]
fn a_pass_that_covers_leaves_out_no_write_that_was_over() {
    let mut in_flight = 0;
    for seed in 0..ROUNDS {
        let world = World::either(seed);
        let guest = Arc::new(Mutex::new(Guest::new(&world, SIZE)));
        let mut engine = world.engine();
        let (acting, mut rng) = (guest.clone(), Rng(seed));
        // Slowly, so that writes stay in flight for the length of a pass.
        world.brick.meanwhile(move || {
            if rng.chance(20) {
                acting.lock().unwrap().step(&mut rng);
            }
        });
        for _ in 0..PASSES {
            guest.lock().unwrap().remember();
            let pass = engine.run_pass().unwrap();
            in_flight += pass.in_flight;
            assert!(pass.covered, "seed {seed}");
            let whole = guest.lock().unwrap().is_all_at(&world.brick);
            assert!(whole, "seed {seed}");
        }
        world.brick.meanwhile(|| {});
        guest.lock().unwrap().drain();
        assert!(world.clean_means_equal(), "seed {seed}");
        world.finish(engine);
    }
    assert!(in_flight > ROUNDS, "only {in_flight} extents in flight");
}

#[test]
fn nothing_is_clean_that_a_crash_takes_away_again() {
    let mut faults = 0;
    for seed in 0..ROUNDS {
        let world = World::either(seed);
        let mut rng = Rng(seed);
        let mut guest = Guest::new(&world, SIZE);
        let mut engine = None;
        for _ in 0..PASSES {
            let fault = [
                Fault::PowerCut,
                Fault::LostLink,
                Fault::HealerDies,
                Fault::Refuse,
            ][rng.below(4) as usize];
            let call = [Call::Any, Call::Write, Call::Fsync][rng.below(3) as usize];
            world.brick.state().fault = Some((call, rng.below(40), fault));
            pass(&world, &mut engine);
            faults += u64::from(world.brick.state().fault.take().is_none());
            if rng.chance(3) {
                // A crash right after the pass takes the rest.
                world.brick.state().power_cut();
                engine = None;
            }
            assert!(world.clean_means_equal(), "seed {seed}");
            (0..rng.below(30)).for_each(|_| guest.step(&mut rng));
            guest.drain();
        }
        let engine = engine.unwrap_or_else(|| world.engine());
        world.finish(engine);
    }
    assert!(faults > ROUNDS, "only {faults} faults in all rounds");
}

#[test]
fn an_ordinary_client_s_write_is_never_overtaken() {
    let border = 20 * EXTENT;
    for seed in 0..ROUNDS {
        let world = World::either(seed);
        let guest = Arc::new(Mutex::new(Guest::new(&world, border)));
        let client = Arc::new(Mutex::new(Client::new(&world, border)));
        let acting = (guest.clone(), client.clone());
        let mut rng = Rng(seed);
        world.brick.meanwhile(move || {
            for _ in 0..rng.below(6) {
                match rng.chance(3) {
                    true => acting.0.lock().unwrap().step(&mut rng),
                    false => acting.1.lock().unwrap().step(&mut rng),
                }
            }
        });
        let mut engine = world.engine();
        for _ in 0..PASSES {
            engine.run_pass().unwrap();
        }
        world.brick.meanwhile(|| {});
        guest.lock().unwrap().drain();
        client.lock().unwrap().drain(&mut Rng(seed));
        assert!(world.clean_means_equal(), "seed {seed}");
        world.finish(engine);
    }
}

#[test]
fn a_guest_on_another_thread_ends_with_equal_copies() {
    for seed in 0..60 {
        let world = World::either(seed);
        let mut guest = Guest::new(&world, SIZE);
        let over = AtomicBool::new(false);
        let mut engine = world.engine();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = Rng(seed);
                (0..3000).for_each(|_| guest.step(&mut rng));
                guest.drain();
                over.store(true, Ordering::SeqCst);
            });
            while !over.load(Ordering::SeqCst) {
                engine.run_pass().unwrap();
            }
        });
        assert!(world.clean_means_equal(), "seed {seed}");
        world.finish(engine);
    }
}
