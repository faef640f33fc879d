//! Against a glusterd made of a script; the answers are those of glusterd 10.3.

use proptest::prelude::*;

use super::*;
use crate::gluster::fake_peer::{Peer, listen};

fn glusterd(answers: impl IntoIterator<Item = Vec<u8>>) -> Glusterd {
    let answers: Vec<_> = answers.into_iter().collect();
    let (port, _peer) = listen(|mut peer: Peer| {
        for results in answers {
            match peer.receive() {
                Some(call) => peer.reply(call.xid, &results),
                None => return,
            }
        }
        peer.drain();
    });
    Glusterd::connect("127.0.0.1", port, &Timeouts::default()).unwrap()
}

fn spec(op_ret: i32, errno: i32, text: &str) -> Vec<u8> {
    let mut results = Encoder::new();
    results.i32(op_ret).i32(errno).string(text).opaque(&[]);
    results.into_bytes()
}

fn details(op_ret: i32, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut results = Encoder::new();
    let pairs = dict::encode_text(pairs.iter().copied());
    results.i32(op_ret).i32(0).string("").opaque(&pairs);
    results.into_bytes()
}

fn port(op_ret: i32, port: i32) -> Vec<u8> {
    let mut results = Encoder::new();
    results.i32(op_ret).i32(0).i32(0).i32(port);
    results.into_bytes()
}

#[test]
fn who_stays_connected_hears_that_a_volume_has_changed() {
    let (port, _peer) = listen(|mut peer: Peer| {
        let call = peer.receive().unwrap();
        peer.call_back(1, 1);
        peer.reply(call.xid, &spec(4, 0, "text"));
        peer.drain();
    });
    let glusterd = Glusterd::connect("127.0.0.1", port, &Timeouts::default()).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    glusterd.on_change(move || told.send(()).unwrap());
    glusterd.volfile("gv0").unwrap();
    assert_eq!(heard.try_iter().count(), 1);
    assert!(glusterd.is_connected());
}

const ID: &str = "703bc901-aa43-4630-a891-6feee0e0556c";

#[test]
fn a_volfile_is_handed_over_and_a_missing_one_is_an_unknown_volume() {
    let unsupported = libc::EOPNOTSUPP;
    let glusterd = glusterd([
        spec(4, 0, "text"),
        spec(-1, libc::ENOENT, ""),
        spec(-1, unsupported, ""),
    ]);
    assert_eq!(glusterd.volfile("gv0").unwrap(), "text");
    let unknown = glusterd.volfile("gv0");
    assert!(matches!(unknown, Err(GlusterdError::UnknownVolume { .. })));
    match glusterd.volfile("gv0") {
        Err(GlusterdError::Refused { errno, .. }) => assert_eq!(errno, Errno(unsupported)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_state_of_a_volume_is_told() {
    let states = [
        ("0", VolumeState::Created),
        ("1", VolumeState::Started),
        ("2", VolumeState::Stopped),
    ];
    for (number, state) in states {
        let glusterd = glusterd([details(
            0,
            &[
                ("count", "1"),
                ("volume0.status", number),
                ("volume0.volume_id", ID),
                ("volume0.option.features.shard", "on"),
            ],
        )]);
        let info = glusterd.volume_info("gv0").unwrap();
        assert_eq!(info.state, state);
        assert_eq!(info.volume_id.to_string(), ID);
        assert_eq!(info.options["features.shard"], "on");
    }
}

#[test]
fn an_unknown_volume_is_told_apart_from_an_incomplete_answer() {
    let glusterd = glusterd([
        details(-1, &[("count", "0")]),
        details(0, &[("count", "0")]),
        details(0, &[("count", "1"), ("volume0.status", "1")]),
        details(0, &[("count", "1"), ("volume0.volume_id", ID)]),
    ]);
    for _ in 0..2 {
        let unknown = glusterd.volume_info("gv0");
        assert!(matches!(unknown, Err(GlusterdError::UnknownVolume { .. })));
    }
    for _ in 0..2 {
        let incomplete = glusterd.volume_info("gv0");
        assert!(matches!(incomplete, Err(GlusterdError::Incomplete { .. })));
    }
}

#[test]
fn a_brick_without_a_port_does_not_run() {
    let glusterd = glusterd([port(0, 49152), port(-1, 0), port(0, 0), port(0, 1 << 16)]);
    assert_eq!(glusterd.brick_port("/brick").unwrap(), 49152);
    for _ in 0..3 {
        let down = glusterd.brick_port("/brick");
        assert!(matches!(down, Err(GlusterdError::BrickNotRunning { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn garbage_answers_never_panic(answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 3)) {
        let glusterd = glusterd(answers);
        let _ = glusterd.volfile("gv0");
        let _ = glusterd.volume_info("gv0");
        let _ = glusterd.brick_port("/brick");
        prop_assert!(glusterd.connection.is_connected());
    }
}
