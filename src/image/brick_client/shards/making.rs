//! Making the pieces that no brick has, on all bricks that are reached, as AFR makes files.
//!
//! Cut short, it leaves `.shard` marked as a folder whose names may differ, and stock heal
//! makes them the same. A brick that is away is accused: of the names in `.shard`, and of each
//! new piece. The marks of the folder say that all of it is to be looked through, and not a
//! list of names: one change for all pieces instead of two for each.

use std::time::Duration;

use uuid::Uuid;

use crate::gluster::locks::domain;
use crate::gluster::{Brick, BrickError, Errno, Gfid, Locked, Pending};
use crate::image::layout::error::{LOCK_LIMIT, ShardsError};
use crate::image::layout::shards;

use super::{PieceSearch, Row};

/// How often others' locks on the folder are tried, up to [`LOCK_LIMIT`].
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The permissions of a piece; its image's count.
const MODE: u32 = 0o644;
/// Those of the folder.
const FOLDER_MODE: u32 = 0o755;
/// AFR's counter of changes under way (`AFR_DIRTY`, `xlators/cluster/afr/src/afr.h`).
const DIRTY_XATTR: &str = "trusted.afr.dirty";
/// A folder whose names differ; that all of them do, not those that an index lists, is said
/// by the first counter (`afr_selfheal_entry`, afr-self-heal-entry.c).
const ALL_NAMES: Pending = Pending {
    data: 1,
    metadata: 0,
    entry: 1,
};
/// A new file that a brick lacks.
const NEW_FILE: Pending = Pending {
    data: 1,
    metadata: 1,
    entry: 0,
};

impl PieceSearch<'_> {
    /// Makes the pieces that no brick has; all of them afterwards.
    pub(super) fn make(&self) -> Result<Row, ShardsError> {
        self.make_folder()?;
        let folder = Gfid(shards::FOLDER_GFID);
        let locked = self.lock(folder, None);
        let made = locked.and_then(|()| self.make_under_lock(folder));
        self.unlock(folder, None);
        made
    }

    fn make_under_lock(&self, folder: Gfid) -> Result<Row, ShardsError> {
        // A mount may have made them meanwhile.
        let mut found = self.settle(self.look()?)?;
        let mut wanted = Vec::new();
        for (name, gfid) in self.pieces.iter().zip(&mut found) {
            if gfid.is_none() {
                wanted.push((name.clone(), *gfid.insert(Uuid::new_v4())));
            }
        }
        if wanted.is_empty() {
            return Ok(found);
        }
        log::info!(
            "{} shards of {} that no brick has yet are made",
            wanted.len(),
            self.located.image
        );
        let failed = |source| self.failed(source);
        let mut before = vec![(DIRTY_XATTR, ALL_NAMES)];
        let accused: Vec<&str> = self.accused().collect();
        before.extend(accused.iter().map(|name| (*name, ALL_NAMES)));
        for (_, brick) in self.reached() {
            brick.xattrop_add(folder, &before).map_err(failed)?;
        }
        self.on_each(|brick| self.make_on(brick, folder, &wanted, &accused))?;
        for (_, brick) in self.reached() {
            let after = [(DIRTY_XATTR, ALL_NAMES.negated())];
            let named = accused.iter().map(|name| (*name, Pending::default()));
            let after: Vec<_> = after.into_iter().chain(named).collect();
            brick.xattrop_add(folder, &after).map_err(failed)?;
        }
        Ok(found)
    }

    /// The pending attributes of the bricks that are away.
    fn accused(&self) -> impl Iterator<Item = &str> {
        let names = self.located.set.pending_names.iter().enumerate();
        let away = self.away();
        names.filter_map(move |(child, name)| away.contains(child).then_some(name.as_str()))
    }

    fn on_each(
        &self,
        work: impl Fn(&Brick) -> Result<(), BrickError> + Sync,
    ) -> Result<(), ShardsError> {
        let mut done = self.ask_each(work).into_iter().flatten();
        done.try_for_each(|done| done.map_err(|source| self.failed(source)))
    }

    /// A brick makes nothing durable by itself, and an fsync of a folder does nothing there
    /// (`posix_fsyncdir`): that of the new files commits their names.
    fn make_on(
        &self,
        brick: &Brick,
        folder: Gfid,
        wanted: &[(String, Uuid)],
        accused: &[&str],
    ) -> Result<(), BrickError> {
        brick.make_files(folder, wanted, MODE)?;
        let gfids: Vec<_> = wanted.iter().map(|(_, gfid)| Gfid(*gfid)).collect();
        if !accused.is_empty() {
            let marks: Vec<_> = accused.iter().map(|name| (*name, NEW_FILE)).collect();
            for gfid in &gfids {
                brick.xattrop_add(*gfid, &marks)?;
            }
        }
        brick.fsync_all(&gfids)
    }

    fn make_folder(&self) -> Result<(), ShardsError> {
        let failed = |source| self.failed(source);
        let mut missing = false;
        for (_, brick) in self.reached() {
            match brick.lookup(Gfid::ROOT, shards::FOLDER, &[]) {
                Ok(_) => {}
                Err(error) if error.errno() == Some(Errno::NOENT) => missing = true,
                Err(error) => return Err(failed(error)),
            }
        }
        if !missing {
            return Ok(());
        }
        let away = self.away();
        if !away.is_empty() {
            return Err(ShardsError::NoFolder {
                volume: self.located.volume.clone(),
                away: self.names.list(away),
            });
        }
        let (root, name) = (Gfid::ROOT, Some(shards::FOLDER));
        let make = |brick: &Brick| {
            let gfid = shards::FOLDER_GFID;
            let made = brick.make_directory(root, shards::FOLDER, gfid, FOLDER_MODE);
            made.map(|_| ())
        };
        let locked = self.lock(root, name);
        let made = locked.and_then(|()| self.on_each(make));
        self.unlock(root, name);
        made
    }

    /// Brick after brick, as AFR's own blocking locks.
    fn lock(&self, folder: Gfid, name: Option<&str>) -> Result<(), ShardsError> {
        let domain = domain::data(&self.located.set);
        for (child, brick) in self.reached() {
            let begin = std::time::Instant::now();
            loop {
                let locked = brick.try_entrylk(folder, &domain, name);
                match locked.map_err(|source| self.failed(source))? {
                    Locked::Granted => break,
                    Locked::WouldBlock if begin.elapsed() < LOCK_LIMIT => {
                        std::thread::sleep(LOCK_PAUSE);
                    }
                    Locked::WouldBlock => {
                        let brick = self.names.one(child);
                        return Err(ShardsError::Busy { brick });
                    }
                }
            }
        }
        Ok(())
    }

    /// What was not granted is refused here; what cannot be given back goes with the
    /// connection.
    fn unlock(&self, folder: Gfid, name: Option<&str>) {
        let domain = domain::data(&self.located.set);
        for (_, brick) in self.reached() {
            let _ = brick.entry_unlock(folder, &domain, name);
        }
    }
}
