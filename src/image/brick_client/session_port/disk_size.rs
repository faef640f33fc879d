//! The size of an image in pieces: an attribute of its first file, and AFR's counters of
//! attributes that others missed.

use crate::gluster::Pending;
use crate::image::brick_client::failure::port_error;
use crate::image::brick_client::shards;
use crate::image::layout::found::SizeSeen;
use crate::image::layout::shards::FILE_SIZE;
use crate::image::replica::brick_port::PortError;
use crate::image::replica::brick_set::BrickSet;

use super::GlusterPort;

impl GlusterPort {
    pub(super) fn ask_disk_size(&self) -> Result<SizeSeen, PortError> {
        let live = self.live()?;
        let seen = shards::size_on(&live.brick, &self.located, self.gfid());
        let refused =
            |why: crate::image::layout::shards::BadCut| PortError::Refused(why.to_string());
        seen.map_err(port_error)?.map_err(refused)
    }

    /// The size is the first of four numbers; the others are the shard translator's count of
    /// blocks, and stay.
    pub(super) fn change_disk_size(&self, size: u64) -> Result<(), PortError> {
        let live = self.data_locked()?;
        let found = live.brick.getxattr(self.gfid(), FILE_SIZE);
        let mut value = found.map_err(port_error)?.unwrap_or_default();
        match value.first_chunk_mut() {
            Some(number) => *number = size.to_be_bytes(),
            None => return Err(PortError::Refused(format!("it has no {FILE_SIZE}"))),
        }
        let set = live.brick.setxattr(self.gfid(), FILE_SIZE, &value);
        set.map_err(port_error)
    }

    /// The shard translator's count of blocks is the third number. What is added to it may come
    /// late, from a daemon that is dead by then: it says nothing of the size.
    pub(super) fn note_blocks_used(&self, blocks: u64) -> Result<(), PortError> {
        let live = self.data_locked()?;
        let found = live.brick.getxattr(self.gfid(), FILE_SIZE);
        let found = found.map_err(port_error)?.unwrap_or_default();
        let counted = found.get(16..24).and_then(|number| number.try_into().ok());
        let Some(counted) = counted.map(i64::from_be_bytes) else {
            return Err(PortError::Refused(format!("it has no {FILE_SIZE}")));
        };
        let blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
        let more = blocks.saturating_sub(counted);
        if more == 0 {
            return Ok(());
        }
        let add = [0, 0, more, 0];
        let added = live.brick.xattrop_add_64(self.gfid(), FILE_SIZE, add);
        added.map_err(port_error)
    }

    /// All counters that may not be zero are named: see
    /// [`crate::image::replica::brick_port::BrickPort::add_to_counters`].
    pub(super) fn add_to_attribute_counters(
        &self,
        children: BrickSet,
        change: i32,
    ) -> Result<(), PortError> {
        let live = self.data_locked()?;
        let names = self.located.set.pending_names.iter().enumerate();
        let mut named: Vec<_> = names
            .map(|(child, name)| {
                let metadata = if children.contains(child) { change } else { 0 };
                let pending = Pending {
                    metadata,
                    ..Pending::default()
                };
                (name.as_str(), pending)
            })
            .collect();
        for name in &self.locks()?.accusing {
            if !named.iter().any(|(known, _)| known == name) {
                named.push((name, Pending::default()));
            }
        }
        let added = live.brick.xattrop_add(self.gfid(), &named);
        added.map(drop).map_err(port_error)
    }
}
