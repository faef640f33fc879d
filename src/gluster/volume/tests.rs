//! Against volfiles of real volumes, written by glusterd 10.3.

use super::*;

const REPLICA3: &str = include_str!("../testdata/replica3.vol");
const REPLICA2: &str = include_str!("../testdata/replica2.vol");
const ARBITER: &str = include_str!("../testdata/arbiter.vol");
const DISTRIBUTED: &str = include_str!("../testdata/distributed.vol");
const SHARDED: &str = include_str!("../testdata/sharded.vol");
const DISTRIBUTE: &str = include_str!("../testdata/distribute.vol");
const DISPERSED: &str = include_str!("../testdata/disperse.vol");
const BRICK_PLAIN: &str = include_str!("../testdata/brick-plain.vol");
const BRICK_FEATURES: &str = include_str!("../testdata/brick-features.vol");

#[test]
fn a_replica_three_volume_is_read_in_child_order() {
    let volume = Volume::parse(REPLICA3).unwrap();
    assert_eq!(volume.name, "gv0");
    assert!(!volume.volume_id.is_nil() && volume.unknown.is_empty());
    let [set] = volume.replica_sets.as_slice() else {
        panic!("{volume:?}");
    };
    assert_eq!(set.name, "gv0-replicate-0");
    assert_eq!(
        (set.arbiter_count, &set.quorum),
        (0, &QuorumOption::Default)
    );
    let names = [0, 1, 2].map(|index| format!("trusted.afr.gv0-client-{index}"));
    assert_eq!(set.pending_names, names);
    for (index, brick) in set.bricks.iter().enumerate() {
        assert_eq!(brick.host, format!("127.1.1.{}", index + 1));
        assert_eq!(brick.path, format!("/bricks/{}/gv0", index + 1));
        assert!(brick.username.is_some() && brick.password.is_some() && !brick.tls);
    }
}

#[test]
fn the_other_replica_layouts_are_read() {
    let two = Volume::parse(REPLICA2).unwrap();
    assert_eq!(two.replica_sets[0].bricks.len(), 2);
    let arbiter = Volume::parse(ARBITER).unwrap();
    assert_eq!(arbiter.replica_sets[0].arbiter_count, 1);
    assert_eq!(arbiter.replica_sets[0].bricks.len(), 3);
    let sharded = Volume::parse(SHARDED).unwrap();
    assert!(sharded.unknown.is_empty(), "each file says whether it is");
    let distributed = Volume::parse(DISTRIBUTED).unwrap();
    assert_eq!(distributed.replica_sets.len(), 2);
    let second = &distributed.replica_sets[1];
    assert_eq!(second.name, "dr-replicate-1");
    assert_eq!(second.pending_names[0], "trusted.afr.dr-client-3");
    assert_eq!(second.bricks[0].path, "/bricks/1/dr2");
}

#[test]
fn volumes_without_replicas_are_refused_by_what_they_are() {
    for (text, name, expected) in [
        (DISTRIBUTE, "dist", Layout::Distribute),
        (DISPERSED, "disp", Layout::Disperse),
    ] {
        let volume = name.to_owned();
        let layout = expected;
        assert_eq!(
            Volume::parse(text),
            Err(VolfileError::NotReplicated { volume, layout })
        );
    }
}

#[test]
fn pending_names_are_those_of_the_option_and_not_of_the_index() {
    let replaced = REPLICA3.replace(
        "afr-pending-xattr gv0-client-0,",
        "afr-pending-xattr gv0-client-7,",
    );
    let volume = Volume::parse(&replaced).unwrap();
    assert_eq!(
        volume.replica_sets[0].pending_names[0],
        "trusted.afr.gv0-client-7"
    );
}

#[test]
fn what_would_lose_marks_is_refused() {
    let bad = |from: &str, to: &str| Volume::parse(&REPLICA3.replace(from, to)).unwrap_err();
    assert!(matches!(
        bad("gv0-client-0,gv0-client-1,", "gv0-client-1,"),
        VolfileError::BadOption {
            option: "afr-pending-xattr",
            ..
        }
    ));
    assert!(matches!(
        bad("use-compound-fops off", "thin-arbiter host:/ta"),
        VolfileError::ThinArbiter { .. }
    ));
    assert!(matches!(
        bad("remote-host 127.1.1.2", "other x"),
        VolfileError::BadOption {
            option: "remote-host",
            ..
        }
    ));
    assert!(matches!(
        bad("use-compound-fops off", "arbiter-count 3"),
        VolfileError::BadOption {
            option: "arbiter-count",
            ..
        }
    ));
}

#[test]
fn a_brick_that_is_used_twice_is_refused() {
    let twice = REPLICA3.replace(
        "subvolumes gv0-client-0 gv0-client-1 gv0-client-2",
        "subvolumes gv0-client-0 gv0-client-1 gv0-client-0",
    );
    assert_ne!(twice, REPLICA3);
    let error = Volume::parse(&twice).unwrap_err();
    let refused = VolfileError::BadOption {
        translator: "gv0-replicate-0".to_owned(),
        option: "subvolumes",
    };
    assert_eq!(error, refused);
}

#[test]
fn quorum_options_are_read() {
    let quorum = |text: &str| {
        Volume::parse(&REPLICA3.replace("    option use-compound-fops off", text))
            .map(|volume| volume.replica_sets[0].quorum.clone())
    };
    assert_eq!(quorum("option quorum-type none"), Ok(QuorumOption::None));
    assert_eq!(quorum("option quorum-type auto"), Ok(QuorumOption::Auto));
    assert_eq!(
        quorum("option quorum-type fixed\noption quorum-count 2"),
        Ok(QuorumOption::Fixed(2))
    );
    assert!(quorum("option quorum-type fixed").is_err());
}

#[test]
fn a_password_is_never_printed() {
    let volume = Volume::parse(REPLICA3).unwrap();
    let brick = &volume.replica_sets[0].bricks[0];
    let printed = format!("{volume:?} {brick}");
    assert!(!printed.contains(brick.password.as_deref().unwrap()));
}

#[test]
fn brick_features_are_read() {
    let plain = BrickFeatures::parse(BRICK_PLAIN).unwrap();
    assert_eq!(plain, BrickFeatures::default());
    assert!(!plain.can_fence());
    let features = BrickFeatures::parse(BRICK_FEATURES).unwrap();
    assert!(features.bitrot && features.changelog && features.quota);
    assert_eq!(features.mandatory_locking, MandatoryLocking::Optimal);
    assert!(features.can_fence() && !features.worm && !features.read_only);
}

#[test]
fn a_brick_that_revokes_locks_is_known() {
    let revokes = |options: &str| {
        let locks = "type features/locks\n";
        let text = BRICK_PLAIN.replace(locks, &format!("{locks}{options}\n"));
        BrickFeatures::parse(&text).unwrap().revokes_locks
    };
    assert!(revokes("option revocation-secs 30"));
    assert!(revokes("option revocation-max-blocked 5"));
    assert!(!revokes(
        "option revocation-secs 0\noption revocation-max-blocked 0"
    ));
}

/// The plain brick's volfile with one more translator of this type on top.
fn brick_with(kind: &str, options: &str) -> BrickFeatures {
    let more = format!("volume more\ntype {kind}\n{options}\nsubvolumes gv0-quota\nend-volume\n");
    let top = "volume /bricks/1/gv0\n";
    BrickFeatures::parse(&BRICK_PLAIN.replace(top, &format!("{more}\n{top}"))).unwrap()
}

#[test]
fn a_translator_of_a_brick_that_is_not_known_is_named() {
    for kind in ["features/cdc", "debug/error-gen", "user/mine"] {
        let found: Vec<_> = brick_with(kind, "").unknown.into_iter().collect();
        assert_eq!(found, [kind]);
    }
    let leases = BRICK_PLAIN.replace("option leases off", "option leases on");
    let leases = BrickFeatures::parse(&leases).unwrap();
    assert!(leases.unknown.contains("features/leases"));
}

#[test]
fn a_translator_that_may_change_what_clients_read_is_named() {
    let more = "volume more\ntype features/cloudsync\nsubvolumes gv0-client-0\nend-volume\n";
    let volume = Volume::parse(&format!("{more}{REPLICA3}"));
    assert!(volume.is_err(), "below is nothing yet");
    let top = "volume gv0\n";
    assert!(REPLICA3.contains(top));
    let text = REPLICA3.replace(top, &format!("{more}\n{top}"));
    let unknown = Volume::parse(&text).unwrap().unknown;
    assert_eq!(
        unknown.into_iter().collect::<Vec<_>>(),
        ["features/cloudsync"]
    );
}

#[test]
fn every_kind_of_quota_is_seen() {
    let simple = |options: &str| brick_with("features/simple-quota", options);
    assert_eq!(simple(""), BrickFeatures::default(), "as Gluster 11 has it");
    assert!(!simple("option pass-through true").quota);
    assert!(simple("option pass-through false").quota);
    for option in ["quota", "inode-quota", "xtime"] {
        let off = format!("option {option} off");
        let marker = BRICK_PLAIN.replace(&off, &format!("option {option} on"));
        let on = BrickFeatures::parse(&marker).unwrap();
        assert_eq!(on.quota, option != "xtime");
        assert_eq!(on.changelog, option == "xtime");
    }
}
