//! What is told of changes around an image, and when it is looked.

use super::*;
use crate::gluster::{BrickSpec, Volume};
use crate::image::layout::Pieces;
use crate::image::replica::brick_set::BrickSet;
use uuid::Uuid;

const REPLICA3: &str = include_str!("../../gluster/testdata/replica3.vol");

fn opened() -> Located {
    let volume = Volume::parse(REPLICA3).unwrap();
    Located {
        volume: "gv0".to_owned(),
        volume_id: volume.volume_id,
        image: "/vm1.img".to_owned(),
        set: volume.replica_sets[0].clone(),
        gfid: Uuid::from_u128(7),
        size: 4096,
        pieces: None,
    }
}

#[test]
fn bricks_that_came_or_went_are_counted_and_named_with_what_to_do() {
    let located = opened();
    let with = |change: &dyn Fn(&mut ReplicaSet)| {
        let mut set = located.set.clone();
        change(&mut set);
        let difference = Difference::between(&located.set, &set);
        let warning = warning(&located, 0, Some(&difference)).unwrap_or_default();
        (difference.as_counted(), warning)
    };
    assert_eq!(with(&|_| {}), (SetChange::NONE, String::new()));
    let (counted, added) = with(&|set| {
        let more = BrickSpec {
            path: "/bricks/4/gv0".to_owned(),
            ..set.bricks[0].clone()
        };
        set.bricks.push(more);
    });
    assert_eq!((counted.came, counted.gone), (1, BrickSet::EMPTY));
    assert!(added.contains("127.1.1.1:/bricks/4/gv0 came."), "{added}");
    let (counted, replaced) = with(&|set| set.bricks[2].path = "/new".to_owned());
    assert_eq!((counted.came, counted.gone), (1, BrickSet::only(2)));
    let both = "127.1.1.3:/new came; 127.1.1.3:/bricks/3/gv0 went.";
    assert!(replaced.contains(both), "{replaced}");
    let (counted, marks) =
        with(&|set| set.pending_names[1] = "trusted.afr.gv0-client-9".to_owned());
    assert_eq!(counted, SetChange::NONE);
    assert!(marks.contains("other marks"), "{marks}");
    let gone = warning(&located, 0, None).unwrap();
    assert!(gone.contains("copy /bricks/1/gv0/vm1.img into"), "{gone}");
}

#[test]
fn copies_with_counters_of_their_own_are_newcomers_and_not_those_in_the_place_of_others() {
    let located = opened();
    let with = |change: &dyn Fn(&mut ReplicaSet)| {
        let mut set = located.set.clone();
        change(&mut set);
        Difference::between(&located.set, &set).newcomers
    };
    let added = with(&|set| {
        set.pending_names
            .push("trusted.afr.gv0-client-3".to_owned())
    });
    assert_eq!(added, ["trusted.afr.gv0-client-3"]);
    let replaced = with(&|set| set.bricks[2].path = "/new".to_owned());
    assert!(replaced.is_empty(), "{replaced:?}");
}

#[test]
fn a_volume_that_got_another_replica_set_is_of_concern_to_an_image_in_shards_alone() {
    let mut located = opened();
    assert_eq!(spread_warning(&located, 2), None);
    located.pieces = Some(Pieces {
        size: 4096,
        gfids: Vec::new(),
    });
    assert_eq!(spread_warning(&located, 1), None);
    let warning = spread_warning(&located, 2).unwrap();
    assert!(warning.contains("gv0 has 2 replica sets now"), "{warning}");
}

#[test]
fn a_look_that_is_asked_for_comes_before_its_time_and_the_end_at_once() {
    let prompt = Prompt::default();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| prompt.wait());
        prompt.ask();
        assert!(waits.join().unwrap());
    });
    assert!(begin.elapsed() >= PAUSE, "not one after the other");
    // It was answered.
    assert!(!prompt.0.asked.load(Ordering::SeqCst));
    drop(Watching(prompt.clone()));
    assert!(!prompt.wait());
    assert!(begin.elapsed() < PERIOD);
}

#[test]
fn with_glusterd_down_on_this_host_those_of_the_other_bricks_are_asked() {
    let located = opened();
    let around = |server: &str| {
        let around = Surroundings::new(&located, 1, server, 24007, Prompt::default());
        let hosts = around.hosts().into_iter().map(str::to_owned);
        hosts.collect::<Vec<_>>()
    };
    // The local brick is on 127.1.1.2, however this host's glusterd is called.
    assert_eq!(around("localhost"), ["localhost", "127.1.1.1", "127.1.1.3"]);
    assert_eq!(around("127.1.1.1"), ["127.1.1.1", "127.1.1.3"]);
}
