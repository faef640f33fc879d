//! What bricks are asked when shards are made, and in which order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::gluster::dict::{Dict, Value};
use crate::gluster::fake_peer::{self, Received, brick_that};
use crate::gluster::pending::PENDING_PREFIX;
use crate::gluster::xdr::{Decoder, Encoder};
use crate::gluster::{Errno, Pending, Volume};

const REPLICA3: &str = include_str!("../../../gluster/testdata/replica3.vol");
const IMAGE: Uuid = Uuid::from_u128(7);
const BLOCK: u64 = 1 << 20;
const CUT: Cut = Cut {
    block: BLOCK,
    size: 3 * BLOCK,
};

/// A brick's files in the folder of shards, by name, and what it was asked.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Uuid>,
    asked: Vec<String>,
    /// So often somebody else has the folder's lock.
    busy: u32,
    /// Somebody makes this file before the lock is granted.
    made_by_another: Option<(String, Uuid)>,
    /// It answers lookups in the folder with an error.
    fails: bool,
    /// The volume has no image in shards yet.
    no_folder: bool,
}

/// One that is asked, and tells afterwards.
#[derive(Clone, Default)]
struct ScriptedBrick(Arc<Mutex<State>>);

impl ScriptedBrick {
    fn attach(&self) -> Brick {
        let state = self.0.clone();
        brick_that(move |call| state.lock().unwrap().answer(call))
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().asked.clone()
    }
}

fn outcome(errno: i32, more: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut results = Encoder::new();
    results.i32(if errno == 0 { 0 } else { -1 }).i32(errno);
    more(&mut results);
    results.into_bytes()
}

fn nothing(to: &mut Encoder) {
    Dict::new().encode(to);
}

/// A counter's name without what all have, and what is added.
fn counters(values: BTreeMap<String, Vec<u8>>) -> String {
    let counter = |(name, value): (String, Vec<u8>)| {
        let Pending {
            data,
            metadata,
            entry,
        } = Pending::from_bytes(&value).unwrap();
        let name = name.trim_start_matches(PENDING_PREFIX).to_owned();
        format!(" {name} {data}/{metadata}/{entry}")
    };
    values.into_iter().map(counter).collect()
}

impl State {
    fn answer(&mut self, call: &Received) -> Vec<u8> {
        let mut body = Decoder::new(&call.body);
        let gfid = Uuid::from_bytes(body.fixed().unwrap());
        let (asked, answer) = match call.procedure {
            27 => self.look(&mut body),
            31 => self.lock(body.u32().unwrap()),
            33 => {
                let _add = body.u32();
                let added = Dict::decode(&mut body).unwrap();
                let what = match gfid {
                    shards::FOLDER_GFID => "folder",
                    _ => "file",
                };
                let answer = outcome(0, |to| {
                    nothing(to);
                    added.encode(to);
                });
                let added = counters(added.into_attributes());
                (format!("mark {what}{added}"), answer)
            }
            3 => {
                let (_device, _mode, _umask) = (body.u64(), body.u32(), body.u32());
                let name = body.string(255).unwrap().to_owned();
                let wanted = Dict::decode(&mut body).unwrap();
                let Some(Value::Uuid(gfid)) = wanted.get("gfid-req").cloned() else {
                    panic!("a file without an identity");
                };
                self.files.insert(name.clone(), gfid);
                (format!("make {}", number(&name)), outcome(0, nothing))
            }
            4 => {
                self.no_folder = false;
                ("make .shard".to_owned(), outcome(0, nothing))
            }
            16 => ("sync".to_owned(), outcome(0, nothing)),
            other => panic!("operation {other}"),
        };
        self.asked.push(asked);
        answer
    }

    fn look(&mut self, body: &mut Decoder<'_>) -> (String, Vec<u8>) {
        let parent = Uuid::from_bytes(body.fixed().unwrap());
        let _flags = body.u32();
        let name = body.string(255).unwrap().to_owned();
        let found = match name.as_str() {
            shards::FOLDER => (!self.no_folder).then_some(shards::FOLDER_GFID),
            _ if parent == shards::REMOVED_GFID => None,
            name => self.files.get(name).copied(),
        };
        let answer = match found {
            _ if self.fails && parent == shards::FOLDER_GFID => outcome(libc::EIO, nothing),
            None => outcome(libc::ENOENT, nothing),
            Some(gfid) => fake_peer::found(Gfid(gfid)),
        };
        (format!("look {}", number(&name)), answer)
    }

    fn lock(&mut self, command: u32) -> (String, Vec<u8>) {
        if command == 1 {
            return ("unlock".to_owned(), outcome(0, nothing));
        }
        if self.busy > 0 {
            self.busy -= 1;
            return ("lock refused".to_owned(), outcome(Errno::AGAIN.0, nothing));
        }
        self.files.extend(self.made_by_another.take());
        ("lock".to_owned(), outcome(0, nothing))
    }
}

/// A piece's number; another name as it is.
fn number(name: &str) -> &str {
    name.strip_prefix(&format!("{IMAGE}.")).unwrap_or(name)
}

/// Finds the pieces, and makes those that are not there, on these bricks.
fn find(bricks: &[Option<&ScriptedBrick>; 3]) -> Result<Pieces, ShardsError> {
    let volume = Volume::parse(REPLICA3).unwrap();
    let located = Located {
        volume: "gv0".to_owned(),
        volume_id: volume.volume_id,
        image: "/vm1.img".to_owned(),
        set: volume.replica_sets[0].clone(),
        gfid: IMAGE,
        size: CUT.size,
        pieces: None,
    };
    let shape = located.shape(0);
    let mut search = PieceSearch {
        located: &located,
        shape: &shape,
        names: located.names(),
        pieces: Vec::new(),
        bricks: bricks
            .iter()
            .map(|brick| Some(brick.as_ref()?.attach()))
            .collect(),
        away: Vec::new(),
    };
    let found = search.find(CUT, true);
    search.close();
    found
}

/// Before anything is made.
const LOOKED: [&str; 4] = [
    "look 00000000-0000-0000-0000-000000000007",
    "look 1",
    "look 2",
    "look .shard",
];

#[test]
fn shards_are_made_under_the_folder_s_lock_with_marks_for_a_brick_that_is_away_and_are_durable() {
    let (first, second) = <(ScriptedBrick, ScriptedBrick)>::default();
    let pieces = find(&[Some(&first), Some(&second), None]).unwrap();
    let making = [
        "lock",
        "look 1",
        "look 2",
        "mark folder dirty 1/0/1 gv0-client-2 1/0/1",
        "make 1",
        "make 2",
        "mark file gv0-client-2 1/1/0",
        "mark file gv0-client-2 1/1/0",
        "sync",
        "sync",
        "mark folder dirty -1/0/-1 gv0-client-2 0/0/0",
        "unlock",
    ];
    for brick in [&first, &second] {
        assert_eq!(brick.asked(), [&LOOKED[..], &making].concat());
        let files: Vec<_> = brick.0.lock().unwrap().files.values().copied().collect();
        assert_eq!(files, pieces.gfids, "the same files on all bricks");
    }
}

#[test]
fn with_all_bricks_there_nobody_is_accused_and_the_folder_is_as_before() {
    let bricks = <[ScriptedBrick; 3]>::default();
    find(&bricks.each_ref().map(Some)).unwrap();
    let marks = bricks.each_ref().map(|brick| {
        let asked = brick.asked().into_iter();
        asked
            .filter(|asked| asked.starts_with("mark"))
            .collect::<Vec<_>>()
    });
    let folder = ["mark folder dirty 1/0/1", "mark folder dirty -1/0/-1"];
    assert!(marks.iter().all(|marks| *marks == folder), "{marks:?}");
}

#[test]
fn nothing_is_made_while_another_client_changes_names_and_what_it_made_is_taken() {
    let bricks = <[ScriptedBrick; 3]>::default();
    let theirs = Uuid::from_u128(99);
    bricks[1].0.lock().unwrap().busy = 3;
    for brick in &bricks {
        let name = shards::name(IMAGE, 1);
        brick.0.lock().unwrap().made_by_another = Some((name, theirs));
    }
    let pieces = find(&bricks.each_ref().map(Some)).unwrap();
    assert_eq!(pieces.gfids[0], theirs);
    let asked = bricks[1].asked();
    let after = asked.iter().skip_while(|asked| *asked != "lock");
    let made = |asked: &&String| asked.starts_with("make");
    assert_eq!(
        asked
            .iter()
            .filter(|asked| *asked == "lock refused")
            .count(),
        3
    );
    assert_eq!(after.filter(made).collect::<Vec<_>>(), ["make 2"]);
    assert_eq!(asked.iter().filter(made).count(), 1);
}

#[test]
fn a_brick_that_answers_with_an_error_is_not_one_that_has_no_shards() {
    let bricks = <[ScriptedBrick; 3]>::default();
    bricks[2].0.lock().unwrap().fails = true;
    let refused = find(&bricks.each_ref().map(Some));
    assert!(
        matches!(refused, Err(ShardsError::Make { .. })),
        "{refused:?}"
    );
    for brick in &bricks {
        assert!(!brick.asked().iter().any(|asked| asked.starts_with("make")));
    }
}

#[test]
fn the_folder_is_made_once_and_only_when_every_brick_is_there_to_have_it() {
    let bricks = <[ScriptedBrick; 3]>::default();
    for brick in &bricks {
        brick.0.lock().unwrap().no_folder = true;
    }
    let [first, second, third] = bricks.each_ref().map(Some);
    let refused = find(&[first, second, None]);
    assert!(
        matches!(refused, Err(ShardsError::NoFolder { .. })),
        "{refused:?}"
    );
    assert_eq!(bricks[0].asked(), LOOKED, "nothing was changed");
    find(&[first, second, third]).unwrap();
    for brick in &bricks {
        let asked = brick.asked().into_iter();
        let asked: Vec<_> = asked.skip_while(|asked| *asked != "lock").collect();
        assert_eq!(asked[..4], ["lock", "make .shard", "unlock", "lock"]);
    }
}
