//! What healing sends for what was written: of an image in shards beside one that is whole.

use std::error::Error;

use serde::Serialize;

use crate::load::{self, Job};
use crate::rig::Rig;
use crate::table::{Goal, Table};
use crate::way::Way;

/// Of each image, whole and in shards.
#[derive(Debug, Clone, Serialize)]
pub struct Healing {
    whole: Sent,
    sharded: Sent,
}

/// Bytes, of all peers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sent {
    /// That they missed when the healer began.
    behind: u64,
    /// That the healer sent them.
    sent: u64,
}

impl Sent {
    fn ratio(self) -> f64 {
        self.sent as f64 / self.behind.max(1) as f64
    }
}

/// Each is written to as `job` says, without a healer, and healed then.
pub fn measure(rig: &Rig<'_>, job: Job) -> Result<Healing, Box<dyn Error>> {
    let of = |way| -> Result<Sent, Box<dyn Error>> {
        let socket = rig.begin_dirty(way)?;
        load::run(&socket, job, || {})?;
        let behind = rig.behind(way)?;
        let sent = rig.heal(way)?;
        Ok(Sent { behind, sent })
    };
    Ok(Healing {
        whole: of(Way::Bypass)?,
        sharded: of(Way::Sharded)?,
    })
}

impl Healing {
    /// Adds a row.
    pub fn judge(&self, table: &mut Table) {
        let (whole, sharded) = (self.whole.ratio(), self.sharded.ratio());
        let figures = format!(
            "{} for {} / {} for {}",
            self.sharded.sent, self.sharded.behind, self.whole.sent, self.whole.behind
        );
        table.add(
            "bytes sent per byte that peers missed: shards / whole",
            &figures,
            sharded / whole,
            Goal::AtMost(1.05),
        );
    }
}
