//! Against a brick made of a script: what is asked, and what is made of answers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::gluster::dict::{Dict, Value};
use crate::gluster::fake_peer::{PATIENCE, Peer, listen};
use crate::gluster::inode::{FileType, Gfid, Iatt};
use crate::gluster::io::{Checksum, MAX_IO, SeekTo, StrongChecksum};
use crate::gluster::locks::{LockKind, LockOp, LockRange, Locked};
use crate::gluster::pending::Pending;

const FILE: Gfid = Gfid(Uuid::from_u128(7));

fn spec() -> BrickSpec {
    BrickSpec {
        client_name: "gv0-client-0".into(),
        host: "127.0.0.1".into(),
        path: "/brick".into(),
        username: Some("user".into()),
        password: Some("secret".into()),
        tls: false,
        tls_files: crate::gluster::TlsFiles::default(),
    }
}

fn identity() -> Identity {
    Identity {
        process_name: "test".into(),
        pid: -9,
        lk_owner: LkOwner::new("me").unwrap(),
    }
}

fn attach(script: impl FnOnce(Peer) + Send + 'static) -> Result<Brick, BrickError> {
    let (port, _peer) = listen(script);
    let timeouts = Timeouts {
        call: PATIENCE,
        ..Timeouts::default()
    };
    Brick::attach(&spec(), port, Uuid::nil(), &identity(), &timeouts)
}

fn welcome(peer: &mut Peer) -> BTreeMap<String, String> {
    let call = peer.receive().unwrap();
    assert_eq!((call.program, call.procedure), (14_398_633, 1));
    let mut results = Encoder::new();
    results.i32(0).i32(0).opaque(&dict::encode_text([]));
    peer.reply(call.xid, &results.into_bytes());
    dict::decode_text(Decoder::new(&call.body).opaque(4096).unwrap()).unwrap()
}

/// A brick that answers the operations it is asked with these results in turn.
fn brick(answers: impl IntoIterator<Item = Vec<u8>>) -> Brick {
    let answers: Vec<_> = answers.into_iter().collect();
    attach(|mut peer| {
        welcome(&mut peer);
        for results in answers {
            match peer.receive() {
                Some(call) => peer.reply(call.xid, &results),
                None => return,
            }
        }
        peer.drain();
    })
    .unwrap()
}

fn results(op_ret: i32, errno: i32, more: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut results = Encoder::new();
    results.i32(op_ret).i32(errno);
    more(&mut results);
    results.into_bytes()
}

fn refusal(errno: Errno) -> Vec<u8> {
    results(-1, errno.0, |_| ())
}

fn no_dict(to: &mut Encoder) {
    Dict::new().encode(to);
}

fn iatt(gfid: Gfid, mode: u32) -> Iatt {
    let mut iatt = Iatt::decode(&mut Decoder::new(&[0; 256])).unwrap();
    iatt.gfid = gfid;
    iatt.mode = mode;
    iatt
}

fn found(gfid: Gfid, mode: u32, xattrs: &Dict) -> Vec<u8> {
    results(0, 0, |to| {
        xattrs.encode(to);
        iatt(gfid, mode).encode(to);
        iatt(Gfid::ROOT, libc::S_IFDIR).encode(to);
    })
}

#[test]
fn the_handshake_names_brick_volume_and_client() {
    let (told, heard) = std::sync::mpsc::channel();
    let brick = attach(move |mut peer| {
        told.send(welcome(&mut peer)).unwrap();
        peer.drain();
    });
    assert!(brick.unwrap().is_connected());
    let options = heard.recv().unwrap();
    for (key, value) in [
        ("remote-subvolume", "/brick"),
        ("volume-id", "00000000-0000-0000-0000-000000000000"),
        ("username", "user"),
        ("password", "secret"),
        ("fops-version", "1298437"),
    ] {
        assert_eq!(options[key], value);
    }
}

#[test]
fn two_connections_never_have_the_same_name() {
    let name = || {
        let (told, heard) = std::sync::mpsc::channel();
        attach(move |mut peer| told.send(welcome(&mut peer)).unwrap()).unwrap();
        heard.recv().unwrap()["process-uuid"].clone()
    };
    assert_ne!(name(), name());
}

#[test]
fn a_refused_handshake_says_why() {
    let refused = attach(|mut peer| {
        let call = peer.receive().unwrap();
        let reason = dict::encode_text([("ERROR", "Authentication failed")]);
        let results = results(-1, libc::EACCES, |to| {
            to.opaque(&reason);
        });
        peer.reply(call.xid, &results);
    });
    match refused {
        Err(BrickError::Handshake { errno, reason, .. }) => {
            assert_eq!(errno, Errno(libc::EACCES));
            assert_eq!(reason, "Authentication failed");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusal_carries_the_bricks_error_number() {
    let brick = brick([refusal(Errno::STALE)]);
    let error = brick.fsync(FILE, false).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::STALE));
    assert!(error.to_string().contains("127.0.0.1:/brick"), "{error}");
}

#[test]
fn a_path_is_followed_from_the_root_and_the_bad_component_named() {
    let directory = Gfid(Uuid::from_u128(2));
    let mut marks = Dict::new();
    marks.set(
        "trusted.afr.x",
        Value::Bytes(Pending::data(3).to_bytes().into()),
    );
    let brick = brick([
        found(directory, libc::S_IFDIR, &Dict::new()),
        found(FILE, libc::S_IFREG, &marks),
        found(FILE, libc::S_IFREG, &Dict::new()),
        refusal(Errno::NOENT),
    ]);
    let entry = brick.resolve("/dir//image", &["trusted.afr.x"]).unwrap();
    assert_eq!(entry.gfid(), FILE);
    assert_eq!(entry.iatt.file_type(), FileType::Regular);
    let value = &entry.xattrs["trusted.afr.x"];
    assert_eq!(Pending::from_bytes(value), Ok(Pending::data(3)));
    let bad = |path: &str| match brick.resolve(path, &[]) {
        Err(BrickError::Path {
            component, errno, ..
        }) => (component, errno),
        other => panic!("{other:?}"),
    };
    assert_eq!(bad("file/image"), ("file".into(), Errno::NOTDIR));
    assert_eq!(bad("gone/image"), ("gone".into(), Errno::NOENT));
    assert_eq!(bad("../image"), ("..".into(), Errno::INVAL));
}

#[test]
fn counters_come_back_as_they_are_after_the_addition() {
    let mut after = Dict::new();
    after.set("a", Value::Bytes(Pending::data(2).to_bytes().into()));
    let answer = results(0, 0, |to| {
        no_dict(to);
        after.encode(to);
    });
    let brick = brick([answer.clone(), answer]);
    let values = brick.xattrop_add(FILE, &[("a", Pending::data(1))]).unwrap();
    assert_eq!(values["a"], Pending::data(2));
    // A counter that the brick does not return was perhaps not added.
    let both = [("a", Pending::data(1)), ("b", Pending::data(1))];
    let missing = brick.xattrop_add(FILE, &both);
    assert!(matches!(missing, Err(BrickError::Protocol { .. })));
}

#[test]
fn a_missing_attribute_is_no_error() {
    let brick = brick([refusal(Errno::NODATA), refusal(Errno::STALE)]);
    assert_eq!(brick.getxattr(FILE, "user.a").unwrap(), None);
    assert!(brick.getxattr(FILE, "user.a").is_err());
}

#[test]
fn times_are_set_as_they_are_told_and_nothing_else_is() {
    let (told, asked) = std::sync::mpsc::channel();
    let brick = attach(move |mut peer| {
        welcome(&mut peer);
        let call = peer.receive().unwrap();
        peer.reply(call.xid, &results(0, 0, |_| ()));
        let mut body = Decoder::new(&call.body);
        let gfid: [u8; 16] = body.fixed().unwrap();
        let attributes = Iatt::decode(&mut body).unwrap();
        told.send((gfid, attributes, body.u32().unwrap())).unwrap();
        peer.drain();
    })
    .unwrap();
    let time = Duration::new(1_700_000_000, 123);
    brick.set_times(FILE, time).unwrap();
    let (gfid, attributes, valid) = asked.recv().unwrap();
    assert_eq!(Gfid(Uuid::from_bytes(gfid)), FILE);
    assert_eq!(attributes.times, [(1_700_000_000, 123); 4]);
    assert_eq!(valid, 0x30, "access and modification");
}

#[test]
fn a_short_write_is_an_error() {
    let brick = brick([results(4, 0, |_| ()), results(3, 0, |_| ())]);
    brick.write(FILE, 0, b"data").unwrap();
    let short = brick.write(FILE, 0, b"data");
    assert!(matches!(short, Err(BrickError::Protocol { .. })));
}

#[test]
fn writes_sent_together_go_through_the_open_file_and_each_has_its_answer() {
    let (told, asked) = std::sync::mpsc::channel();
    let brick = attach(move |mut peer| {
        welcome(&mut peer);
        for written in [4, 3] {
            let call = peer.receive().unwrap();
            peer.reply(call.xid, &results(written, 0, |_| ()));
            let mut body = Decoder::new(&call.body);
            let _gfid: [u8; 16] = body.fixed().unwrap();
            told.send((body.i64().unwrap(), body.u64().unwrap()))
                .unwrap();
        }
        peer.drain();
    })
    .unwrap();
    let fd = crate::gluster::fops::RemoteFd {
        gfid: FILE,
        number: 5,
    };
    let sent = brick.start_writes(fd, &[(0, b"data"), (4096, b"more")]);
    let outcomes: Vec<_> = sent
        .unwrap()
        .into_iter()
        .map(|write| write.wait())
        .collect();
    assert!(outcomes[0].is_ok());
    assert!(matches!(outcomes[1], Err(BrickError::Protocol { .. })));
    assert_eq!(
        asked.iter().take(2).collect::<Vec<_>>(),
        [(5, 0), (5, 4096)]
    );
}

#[test]
fn a_read_takes_the_bytes_after_the_answer_and_no_more() {
    let answer = |size: u32| {
        let mut bytes = results(4, 0, |to| {
            iatt(FILE, 0).encode(to);
            to.u32(size);
            no_dict(to);
        });
        bytes.extend(b"data");
        bytes
    };
    let brick = brick([answer(4), answer(3), answer(5), answer(4)]);
    assert_eq!(brick.read(FILE, 0, 10).unwrap(), b"data");
    assert_eq!(brick.read(FILE, 0, 10).unwrap(), b"dat");
    for length in [10, 3] {
        let lying = brick.read(FILE, 0, length);
        assert!(matches!(lying, Err(BrickError::Protocol { .. })));
    }
}

#[test]
fn more_than_one_call_carries_is_not_sent() {
    let brick = brick([]);
    let too_long = |result: Result<(), BrickError>| {
        assert!(matches!(result, Err(BrickError::TooLong { .. })));
    };
    too_long(brick.write(FILE, 0, &vec![0; MAX_IO + 1]));
    too_long(brick.read(FILE, 0, MAX_IO + 1).map(drop));
    too_long(brick.rchecksum(FILE, 0, MAX_IO + 1).map(drop));
    assert!(brick.is_connected());
}

#[test]
fn the_algorithm_of_a_checksum_is_the_bricks_word() {
    let answer = |xdata: &Dict| {
        results(0, 0, |to| {
            xdata.encode(to);
            to.u32(0).u32(5).opaque(&[9; 32]);
        })
    };
    let mut fips = Dict::new();
    fips.set("fips-mode-rchecksum", Value::Int(1));
    let brick = brick([answer(&fips), answer(&Dict::new())]);
    let sum = |strong| Checksum { weak: 5, strong };
    assert_eq!(
        brick.rchecksum(FILE, 0, 1).unwrap(),
        sum(StrongChecksum::Sha256([9; 32]))
    );
    assert_eq!(
        brick.rchecksum(FILE, 0, 1).unwrap(),
        sum(StrongChecksum::Md5([9; 16]))
    );
}

#[test]
fn seeking_beyond_the_last_data_finds_nothing() {
    let brick = brick([refusal(Errno::NXIO)]);
    assert_eq!(brick.seek(FILE, 0, SeekTo::Data).unwrap(), None);
}

#[test]
fn only_a_try_would_block() {
    let brick = brick([
        results(0, 0, no_dict),
        refusal(Errno::AGAIN),
        refusal(Errno::AGAIN),
        refusal(Errno::STALE),
    ]);
    let lock = |op| brick.inodelk(FILE, "domain", op, LockKind::Write, LockRange::WHOLE);
    assert_eq!(lock(LockOp::Try).unwrap(), Locked::Granted);
    assert_eq!(lock(LockOp::Try).unwrap(), Locked::WouldBlock);
    assert!(lock(LockOp::Wait).is_err());
    assert!(lock(LockOp::Try).is_err());
}

#[test]
fn a_lock_that_nobody_waits_for_any_more_is_given_back_when_it_is_granted() {
    let (go, may_answer) = std::sync::mpsc::channel();
    let (told, asked) = std::sync::mpsc::channel();
    let brick = attach(move |mut peer| {
        welcome(&mut peer);
        let lock = peer.receive().unwrap();
        may_answer.recv().unwrap();
        peer.reply(lock.xid, &results(0, 0, no_dict));
        for call in [lock, peer.receive().unwrap()] {
            let mut body = Decoder::new(&call.body);
            let _gfid: [u8; 16] = body.fixed().unwrap();
            let _command = body.u32().unwrap();
            let kind = body.u32().unwrap();
            let _flock = (body.u32().unwrap(), body.u32().unwrap());
            let range = (body.u64().unwrap(), body.u64().unwrap());
            told.send((kind, range)).unwrap();
        }
    })
    .unwrap();
    let range = LockRange {
        start: 4096,
        len: 512,
    };
    let stopped = || true;
    let queued = brick.queue_inodelk(FILE, "domain", LockKind::Write, range, stopped);
    assert!(!queued.unwrap());
    go.send(()).unwrap();
    let (write, unlock) = (1, 2);
    let asked: Vec<_> = asked.iter().collect();
    assert_eq!(asked, [(write, (4096, 512)), (unlock, (4096, 512))]);
}

#[test]
fn a_lost_connection_is_not_mistaken_for_a_refusal() {
    let brick = attach(|mut peer| {
        welcome(&mut peer);
        peer.receive();
    })
    .unwrap();
    let lost = brick.fsync(FILE, true).unwrap_err();
    assert!(matches!(lost, BrickError::Disconnected { .. }), "{lost}");
    assert_eq!(lost.errno(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn garbage_answers_never_panic(
        answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 9),
        op_ret in 0i32..100,
    ) {
        let answers = answers.into_iter().map(|bytes| {
            let mut answer = results(op_ret, 0, |_| ());
            answer.extend(bytes);
            answer
        });
        let brick = brick(answers);
        let _ = brick.lookup_gfid(FILE, &["a"]);
        let _ = brick.xattrop_add(FILE, &[("a", Pending::data(1))]);
        let _ = brick.getxattr(FILE, "a");
        let _ = brick.read(FILE, 0, 100);
        let _ = brick.rchecksum(FILE, 0, 100);
        let _ = brick.seek(FILE, 0, SeekTo::Hole);
        let _ = brick.statfs();
        let _ = brick.inodelk(FILE, "a", LockOp::Wait, LockKind::Read, LockRange::WHOLE);
        if let Ok(fd) = brick.open(FILE, crate::gluster::fops::OpenMode::Read) {
            prop_assert_eq!(fd.gfid, FILE);
        }
        prop_assert!(brick.is_connected());
    }
}
