//! Comparing an image in shards on a real volume: nobody serves it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind, wait_until};
use serde_json::{Value, json};
use support::daemon::{BINARY, run_dir, state_dir};
use support::shards::{self, FILES, SHARD, sharded};
use support::{IMAGE, IMAGE_BYTES, PATIENCE};

/// Bytes of the parts that a difference is narrowed down to.
const PART: u64 = 64 << 10;

/// `bypass-blk verify --json` on the node of a brick: exit code and document.
fn verify(volume: &Volume, brick: usize) -> (Option<i32>, Value) {
    let node = volume.brick_node(brick);
    let mut command = node.command(BINARY);
    command
        .args(["verify", "--json", "--server", node.address(), "--run-dir"])
        .arg(run_dir(node))
        .arg("--state-dir")
        .arg(state_dir(node))
        .arg(format!("{}{IMAGE}", volume.name()))
        .stdin(Stdio::null());
    let output = bypass_harness::finish(&mut command, PATIENCE).unwrap();
    let document = serde_json::from_str(&output.stdout);
    let document = document.unwrap_or(Value::String(output.stderr));
    (output.status.code(), document)
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn differing(document: &Value, brick: usize) -> &Value {
    &document["copies"][brick]["differing"]["ranges"]
}

fn part_at(at: u64) -> Value {
    let start = at / PART * PART;
    json!([{ "start": start, "end": start + PART }])
}

#[test]
fn a_byte_that_differs_in_any_shard_is_found_where_it_is_on_the_disk() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let (code, document) = verify(&volume, 1);
    assert_eq!(code, Some(0), "{document:#}");
    assert_eq!(document["copies"][2]["verified"], IMAGE_BYTES);

    let (shard, at) = (FILES - 1, SHARD - 1);
    write(&shards::on_brick(&volume, 1, shard), at, &[0]);
    write(&shards::on_brick(&volume, 1, shard), at - 1, &[0, 1]);
    write(&shards::on_brick(&volume, 2, 0), 5, &[1, 2, 3, 4]);
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(71), "{document:#}");
    assert_eq!(*differing(&document, 1), part_at(shard * SHARD + at));
    assert_eq!(*differing(&document, 2), part_at(5));
    volume.kill_brick(2).unwrap();
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(71), "{document:#}");
    assert_eq!(document["copies"][2]["not_verified"], IMAGE_BYTES);
}

#[test]
fn shards_of_other_lengths_are_equal_where_zeros_follow_and_missing_ones_are_zeros() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &[]);
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(0), "no brick has a shard: {document:#}");
    {
        let mount = volume.mount(0).unwrap();
        let image = mount.path().join(IMAGE.trim_start_matches('/'));
        write(&image, 3 * SHARD + 100, &[7; 900]);
    }
    for number in [0, 3] {
        let file = shards::file(&volume, number);
        volume.wait_healed(&file, PATIENCE).unwrap();
    }
    // Where zeros follow, with and without bytes on the disk for them.
    let longer = shards::on_brick(&volume, 1, 3);
    write(&longer, SHARD - 4096, &[0; 4096]);
    let mut options = OpenOptions::new();
    let other = options.write(true).open(shards::on_brick(&volume, 2, 3));
    other.unwrap().set_len(2 << 20).unwrap();
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(0), "{document:#}");
    assert_eq!(document["copies"][1]["verified"], IMAGE_BYTES);
    // Behind the end of the reference's.
    write(&longer, SHARD - 10, &[1]);
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(71), "{document:#}");
    assert_eq!(*differing(&document, 1), part_at(4 * SHARD - 10));
    assert_eq!(document["copies"][2]["verified"], IMAGE_BYTES);
}

#[test]
fn a_mark_on_one_shard_makes_the_copy_stale_and_is_told_with_the_shard() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    volume.set_self_heal_daemon(false).unwrap();
    volume.kill_brick(2).unwrap();
    {
        let mount = volume.mount(0).unwrap();
        let image = mount.path().join(IMAGE.trim_start_matches('/'));
        write(&image, 5 * SHARD, &[7; 4096]);
        // A mount that ends earlier leaves it as a write that was cut short.
        wait_until("the mount has marked the shard", PATIENCE, || {
            let marks = shards::marks(&volume, 5);
            marks.accuses(0, 2).then_some(()).ok_or(marks.to_string())
        })
        .unwrap();
    }
    volume.start_force().unwrap();
    let (code, document) = verify(&volume, 0);
    assert_eq!(code, Some(72), "{document:#}");
    let copy = &document["copies"][2];
    assert_eq!(copy["state"], "stale", "{document:#}");
    assert!(
        copy["why"].as_str().unwrap().contains("(on shard 5)"),
        "{copy}"
    );
    assert_eq!(document["copies"][1]["verified"], IMAGE_BYTES);
}
