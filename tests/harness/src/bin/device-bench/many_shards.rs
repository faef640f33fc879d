//! An image of many shards: how long it takes to open, and what it holds in memory.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use bypass_harness::{Cluster, VolumeKind};
use serde::Serialize;

use crate::idle::memory;
use crate::program::{Daemon, Program};
use crate::table::{Goal, Table};
use crate::{BRICK, MIB, QUEUES};

const NODES: usize = 3;
const IMAGE: &str = "/many.img";

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct ManyShards {
    /// How many.
    pub shards: u64,
    /// The image's bytes.
    pub image: u64,
    /// Until the first daemon listened, which made all but one of them.
    pub made: Duration,
    /// Until the second one did.
    pub opened: Duration,
    /// Bytes in memory (PSS), without the dirty map.
    pub memory: u64,
}

/// On a cluster of its own: an image of `shards` sparse shards of `shard` MiB each.
pub fn measure(program: &Program, shards: u64, shard: u64) -> Result<ManyShards, Box<dyn Error>> {
    let cluster = Cluster::start(NODES)?;
    let block_size = format!("{shard}MB");
    let options = [
        ("features.shard", "on"),
        ("features.shard-block-size", block_size.as_str()),
    ];
    let volume = cluster.create_volume("many", VolumeKind::Replica(NODES), &options)?;
    volume.start()?;
    let image = shards * shard * MIB;
    let mount = volume.mount(BRICK)?;
    let file = File::create(mount.path().join(IMAGE.trim_start_matches('/')))?;
    file.set_len(image)?;
    file.sync_all()?;
    drop((file, mount));
    let serve = || -> Result<(Duration, Daemon<'_>), Box<dyn Error>> {
        let begun = Instant::now();
        let daemon = program.serve_with(&volume, IMAGE, &[format!("--num-queues={QUEUES}")])?;
        Ok((begun.elapsed(), daemon))
    };
    let (made, daemon) = serve()?;
    daemon.stop()?;
    let (opened, daemon) = serve()?;
    let maps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid()))?;
    let map = volume.brick_node(BRICK).place().dir().join("blk-state");
    let [_, memory] = memory(&maps, |path| !Path::new(path).starts_with(&map));
    daemon.stop()?;
    Ok(ManyShards {
        shards,
        image,
        made,
        opened,
        memory,
    })
}

impl ManyShards {
    /// Adds a row for each goal.
    pub fn judge(&self, table: &mut Table) {
        let of = format!("{} shards, {} GiB", self.shards, self.image / MIB / 1024);
        let figures = format!(
            "{of}; the first opening, which made them, {:.2?}",
            self.made
        );
        table.add(
            "to open an image in shards, seconds",
            &figures,
            self.opened.as_secs_f64(),
            Goal::AtMost(2.0),
        );
        let mib = |bytes: f64| bytes / MIB as f64;
        let figures = format!("{of}; of a whole image at most 12, and 4 KiB for each shard");
        table.add(
            "memory without the map, MiB (PSS)",
            &figures,
            mib(self.memory as f64),
            Goal::AtMost(12.0 + mib(4096.0 * self.shards as f64)),
        );
    }
}
