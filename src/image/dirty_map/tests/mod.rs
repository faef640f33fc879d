//! Tests of the whole map, over real files.

mod grow;
mod life;
mod operations;

use std::path::PathBuf;

use uuid::Uuid;

use super::*;

const KIB: u64 = 1024;

/// 10 extents of 4 KiB and half a one, two peers.
fn identity() -> Identity {
    Identity {
        gfid: Uuid::from_u128(7),
        size: 42 * KIB,
        extent_size: ExtentSize::new(4096).unwrap(),
        local: "a:/brick".into(),
        peers: vec!["b:/brick".into(), "c:/brick".into()],
    }
}

const EXTENTS: u64 = 11;

fn peer(index: usize) -> Peer {
    Peer::new(index).unwrap()
}

fn both() -> Peers {
    Peers::first(2)
}

/// A state directory and the map's place in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::Builder::new()
        .prefix("bypass-dirty-")
        .tempdir()
        .unwrap();
    let path = directory.path().join("image.map");
    (directory, path)
}

/// A map with nothing dirty.
fn clean_map() -> (tempfile::TempDir, DirtyMap) {
    let (directory, path) = place();
    let (map, trust) = DirtyMap::open(&path, &identity()).unwrap();
    assert_eq!(trust, Trust::Fresh);
    map.declare_clean(both());
    (directory, map)
}

/// The extents that a peer misses, as the healer finds them.
fn dirty(map: &DirtyMap, peer: Peer) -> Vec<u64> {
    let first = map.next_dirty(peer, 0);
    std::iter::successors(first, |&last| map.next_dirty(peer, last + 1)).collect()
}
