//! AFR's counters on one brick's copy: those that the session changes, and those that it
//! leaves alone, which may be of bricks that it does not know.

use crate::gluster::fops::Entry;
use crate::gluster::pending::PENDING_PREFIX;
use crate::gluster::{Gfid, Pending};
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{BrickPort, CopyState, Counter, Lock, PortError};

use super::{FENCE_XATTR, GlusterPort, Overruled, sync_error};
use crate::image::brick_client::failure::port_error;

/// AFR's counter of writes under way (`AFR_DIRTY`, `xlators/cluster/afr/src/afr.h`).
const DIRTY_XATTR: &str = "trusted.afr.dirty";
/// Every counter of AFR's on a file, known by name or not: a brick takes a pattern for a
/// name (`_posix_xattr_get_set`, posix-helpers.c).
const ALL_COUNTERS: &str = "trusted.afr.*";
/// What is read of a file that is not there.
const NO_FILE: CopyState = CopyState {
    gfid: uuid::Uuid::nil(),
    size: 0,
    pending: Vec::new(),
    dirty: 0,
    fenced: false,
};
/// What names a counter without a change.
const ADD_NOTHING: Pending = Pending {
    data: 0,
    metadata: 0,
    entry: 0,
};

impl GlusterPort {
    /// Accusations that a promotion has given up, durably.
    pub(super) fn take_off_overruled(&mut self, copy: &mut CopyState) -> Result<(), PortError> {
        if let Some(Overruled { promotion, local }) = self.overruled.clone()
            && let Some(counter) = copy.pending.get_mut(local)
            && promotion.overrules(self.child, *counter)
        {
            log::warn!(
                "{}: its accusation of the promoted copy is taken off",
                self.spec
            );
            let accused = -*counter;
            *counter = 0;
            let change = |child| {
                (
                    Counter::Pending(child),
                    if child == local { accused } else { 0 },
                )
            };
            let changes: Vec<_> = (0..copy.pending.len()).map(change).collect();
            self.xattrop(&changes)?;
            self.fsync()?;
        }
        Ok(())
    }

    /// Identity, size and marks of the copy.
    pub(super) fn look_up(&mut self) -> Result<CopyState, PortError> {
        let live = self.live()?;
        let entry = live.brick.lookup_gfid(self.gfid(), &self.wanted());
        self.noted(&entry.map_err(port_error)?)
    }

    /// As [`Self::look_up`], and are all locks there that were taken? In a domain where
    /// nobody has a lock, ours is gone. Where another client took its place, and heals or
    /// writes, its work shows in the counters, or it keeps us from the next lock there.
    pub(super) fn look_up_locked(&mut self) -> Result<CopyState, PortError> {
        let live = self.live()?;
        let held = self.locks()?;
        let locks: Vec<Lock> = held.standing.iter().chain(&held.taken).copied().collect();
        let domains: Vec<String> = locks.iter().map(|lock| self.domain(*lock).0).collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let found = live
            .brick
            .lookup_and_count(self.gfid(), &self.wanted(), &domains);
        let (entry, counts) = found.map_err(port_error)?;
        let mut held = locks.iter().zip(&counts.inodelks);
        if let Some((lock, _)) = held.find(|(_, count)| **count == 0) {
            return Err(PortError::LockGone(format!("{lock} lock")));
        }
        let is_base = self.file == FileIndex::BASE;
        if is_base && live.published.is_some() && counts.posix == 0 {
            return Err(PortError::LockGone("record of this session".to_owned()));
        }
        self.noted(&entry)
    }

    /// The attributes that a copy is judged by.
    fn wanted(&self) -> Vec<&str> {
        let names = self.located.set.pending_names.iter().map(String::as_str);
        names
            .chain([DIRTY_XATTR, ALL_COUNTERS, FENCE_XATTR])
            .collect()
    }

    /// Of the first `count` files, in order. One without an identity is none (that of an
    /// image that is only read), and misses nothing.
    pub(super) fn look_up_all(&mut self, count: u32) -> Result<Vec<CopyState>, PortError> {
        let files: Vec<_> = self.layout.files().take(count as usize).collect();
        let (asked, gfids) = self.first_files(count)?;
        let found = self.live()?.brick.lookup_gfids(&gfids, &self.wanted());
        let mut found = asked.into_iter().zip(found.map_err(port_error)?);
        let mut next = found.next();
        let mut copies = Vec::with_capacity(files.len());
        for file in files {
            self.file = file;
            copies.push(match next.take_if(|(asked, _)| *asked == file) {
                None => NO_FILE,
                Some((_, None)) if file == FileIndex::BASE => return Err(PortError::NoImage),
                Some((_, None)) => return Err(PortError::NoPiece(file.0)),
                Some((_, Some(entry))) => {
                    next = found.next();
                    self.noted(&entry)?
                }
            });
        }
        self.file = FileIndex::BASE;
        Ok(copies)
    }

    /// Which of the first `count` files are there.
    pub(super) fn first_files(&self, count: u32) -> Result<(Vec<FileIndex>, Vec<Gfid>), PortError> {
        let base = self.live()?.base;
        let files = self.layout.files().take(count as usize);
        let gfids = files.map(|file| match file {
            FileIndex::BASE => (file, base),
            _ => (file, Gfid(self.layout.gfid(file))),
        });
        Ok(gfids.filter(|(_, gfid)| *gfid != Gfid::NONE).unzip())
    }

    fn noted(&mut self, entry: &Entry) -> Result<CopyState, PortError> {
        if let Some(locks) = self.locks_mut() {
            locks.accusing = accusing(entry);
        }
        let data_counter = |name: &str| {
            let counter = entry.pending_data(name);
            counter.map_err(|error| PortError::Refused(format!("{name}: {error}")))
        };
        let names = self.located.set.pending_names.iter();
        Ok(CopyState {
            gfid: entry.iatt.gfid.0,
            size: entry.iatt.size,
            pending: names
                .map(|name| data_counter(name))
                .collect::<Result<_, _>>()?,
            dirty: data_counter(DIRTY_XATTR)?,
            fenced: entry.xattrs.contains_key(FENCE_XATTR),
        })
    }

    /// Adds to the counters; see [`crate::image::replica::brick_port::BrickPort::add_to_counters`].
    pub(super) fn xattrop(&self, changes: &[(Counter, i32)]) -> Result<(), PortError> {
        let live = self.live()?;
        let names = &self.located.set.pending_names;
        let changed = changes.iter().filter_map(|(counter, change)| {
            let name = match counter {
                Counter::Pending(child) => names.get(*child)?.as_str(),
                Counter::Dirty => DIRTY_XATTR,
            };
            Some((name, Pending::data(*change)))
        });
        let mut named: Vec<_> = changed.collect();
        for name in &self.locks()?.accusing {
            if !named.iter().any(|(known, _)| known == name) {
                named.push((name, ADD_NOTHING));
            }
        }
        let after = live
            .brick
            .xattrop_add(self.gfid(), &named)
            .map_err(port_error)?;
        let mut accusing = after.iter().filter(|(name, _)| *name != DIRTY_XATTR);
        match accusing.all(|(_, counter)| counter.is_zero()) {
            true => self.keep_in_index(),
            false => Ok(()),
        }
    }

    /// See [`crate::image::replica::brick_port::BrickPort::accuse_newcomers`]. An addition to a
    /// counter is one step at the brick: AFR's data lock would make no difference.
    pub(super) fn accuse_all(&mut self, count: u32, names: &[String]) -> Result<(), PortError> {
        let (_, gfids) = self.first_files(count)?;
        let brick = &self.live()?.brick;
        let found = brick.lookup_gfids(&gfids, &[ALL_COUNTERS]);
        let found = found.map_err(port_error)?;
        for (gfid, entry) in gfids.iter().zip(found) {
            let Some(entry) = entry else { continue };
            let accused = to_accuse(&entry, names).map(|name| (name, Pending::data(1)));
            let accused: Vec<_> = accused.collect();
            if !accused.is_empty() {
                brick.xattrop_add(*gfid, &accused).map_err(port_error)?;
                brick.fsync(*gfid, false).map_err(sync_error)?;
            }
        }
        Ok(())
    }

    /// The brick has just taken the file out of its index of files to heal, which sees only
    /// the counters that a request names (`_check_key_is_zero_filled`, index.c). Others mark
    /// without our locks, too: a heal that makes the file on a brick that was added does. What
    /// they marked meanwhile is named once more, and with it the file is back in the index.
    fn keep_in_index(&self) -> Result<(), PortError> {
        let live = self.live()?;
        let entry = live.brick.lookup_gfid(self.gfid(), &[ALL_COUNTERS]);
        let accusing = accusing(&entry.map_err(port_error)?);
        let named = accusing.iter().map(|name| (name.as_str(), ADD_NOTHING));
        let named: Vec<_> = named.collect();
        if named.is_empty() {
            return Ok(());
        }
        live.brick
            .xattrop_add(self.gfid(), &named)
            .map_err(port_error)?;
        Ok(())
    }
}

/// Those of `names` that are there, and not above zero for data.
fn to_accuse<'a>(entry: &Entry, names: &'a [String]) -> impl Iterator<Item = &'a str> {
    let is_zero = |name: &&String| {
        let value = entry.xattrs.get(*name);
        let counter = value.and_then(|value| Pending::from_bytes(value).ok());
        counter.is_some_and(|counter| counter.data == 0)
    };
    names.iter().filter(is_zero).map(String::as_str)
}

/// Names of the counters that are not zero, whosever they are: by any of them the file
/// belongs into the index of files to heal.
fn accusing(entry: &Entry) -> Vec<String> {
    let is_accusing = |name: &str, value: &[u8]| {
        let counter = name.starts_with(PENDING_PREFIX) && name != DIRTY_XATTR;
        counter && Pending::from_bytes(value).is_ok_and(|pending| !pending.is_zero())
    };
    let attributes = entry.xattrs.iter();
    let accusing = attributes.filter(|(name, value)| is_accusing(name, value));
    accusing.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::Iatt;

    #[test]
    fn a_copy_is_accused_whose_counter_was_set_and_is_zero_again() {
        let names = ["filled", "behind", "absent"].map(|copy| format!("trusted.afr.{copy}"));
        let counter = |data| {
            let pending = Pending {
                data,
                metadata: 1,
                entry: 0,
            };
            pending.to_bytes().to_vec()
        };
        let xattrs = [(&names[0], counter(0)), (&names[1], counter(3))];
        let entry = Entry {
            iatt: Iatt::default(),
            xattrs: xattrs.map(|(name, value)| (name.clone(), value)).into(),
        };
        let accused: Vec<_> = to_accuse(&entry, &names).collect();
        assert_eq!(accused, ["trusted.afr.filled"]);
    }
}
