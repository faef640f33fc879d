//! What a session asks of one brick.
//!
//! The seam between the session and Gluster: [`crate::image::brick_client::session_port`] implements
//! it over the brick protocol, tests put simulated bricks here. A port is owned
//! by one worker thread and is blocking; every call has a time limit of its own.
//! It decides nothing.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::gluster::KeptConnection;

use crate::image::layout::found::SizeSeen;
use crate::image::layout::{FileIndex, Layout};

use super::brick_set::BrickSet;
use super::holder::Holder;

/// A lock that a session takes on a brick, each over the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lock {
    /// One writer per image: our own domain. Shared by read-only sessions.
    Session {
        /// Read-only sessions exclude writers, not each other.
        shared: bool,
    },
    /// AFR's self-heal domain: keeps heals away from the image.
    Heal,
    /// DHT's migration domain: keeps rebalance away from the image.
    Rebalance,
    /// AFR's data domain: stops every other client's writes. Only for moments.
    Data,
    /// The healers' domain: one still copies on behalf of a session that is over.
    /// Asked for through [`BrickPort::is_copied_to_for_others`] only.
    Copy,
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session { .. } => "session",
            Self::Heal => "heal",
            Self::Rebalance => "rebalance",
            Self::Data => "data",
            Self::Copy => "copy",
        })
    }
}

/// How other clients are kept from the image while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fence {
    /// The posix locks that QEMU's tools respect; others are not stopped.
    Advisory,
    /// The bricks themselves refuse every other client's reads and writes.
    Mandatory,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Advisory => "advisory",
            Self::Mandatory => "mandatory",
        })
    }
}

/// What a brick tells about its copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyState {
    /// Identity of the file.
    pub gfid: Uuid,
    /// Size in bytes.
    pub size: u64,
    /// The data counter of `trusted.afr.*` per child: non-zero says that this
    /// brick knows data which child `i` misses.
    pub pending: Vec<i32>,
    /// The data counter of `trusted.afr.dirty`: non-zero, a client's write through
    /// AFR is under way or was cut short, and the copies may differ by it.
    pub dirty: i32,
    /// The attribute of a mandatory fence is set on this copy.
    pub fenced: bool,
}

/// What each brick told about its copy of one file, in child order; absent for those that
/// were not reached.
pub type FileCopies = Vec<Option<CopyState>>;

impl CopyState {
    /// The children with a non-zero counter.
    pub fn accuses(&self) -> BrickSet {
        accused(&self.pending)
    }
}

/// The children whose counter in a brick's row is not zero.
pub fn accused(pending: &[i32]) -> BrickSet {
    let counters = pending.iter().enumerate();
    let accused = counters.filter(|(_, counter)| **counter != 0);
    accused.map(|(child, _)| child).collect()
}

/// What several files say of each child, as of one: a counter that is not zero counts.
pub fn merged<'a>(rows: impl Iterator<Item = &'a [i32]>) -> Vec<i32> {
    let mut merged: Vec<i32> = Vec::new();
    for row in rows {
        merged.resize(merged.len().max(row.len()), 0);
        for (counter, of_file) in merged.iter_mut().zip(row) {
            if *of_file != 0 {
                *counter = *of_file;
            }
        }
    }
    merged
}

/// One of AFR's counters of a file on one brick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Data that this child misses.
    Pending(usize),
    /// Writes under way.
    Dirty,
}

/// The answer of [`BrickPort::publish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Our record (and the fence, when asked for) stands.
    Done,
    /// The volume does not allow a mandatory fence.
    FenceUnavailable,
    /// Another client has the image open: QEMU on a mount, a bypass-blk session.
    InUse(Conflict),
}

/// Who stands in the way of our posix locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The record, when the other one is a bypass-blk session.
    pub holder: Option<Holder>,
    /// Process id that the other client gave, as seen on its own host.
    pub pid: i32,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => write!(f, "{holder}"),
            None => write!(
                f,
                "pid {} of a Gluster client (QEMU or a program on a mount)",
                self.pid
            ),
        }
    }
}

/// Why a brick could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Not connected, or the connection broke: all our locks there are gone.
    #[error("{0}")]
    Away(String),
    /// The brick answers but has no such file (a replaced brick, say).
    #[error("the image is not on this brick")]
    NoImage,
    /// The brick answers, and has the image, but not this file of it.
    #[error(
        "shard {0} is not on this brick yet. Gluster's own heal makes it there: is its self-heal daemon on?"
    )]
    NoPiece(u32),
    /// The connection stands, but not all locks that were taken through it: somebody
    /// cleared them (`gluster volume clear-locks`), or the brick revoked them
    /// (`features.locks-revocation-secs`).
    #[error(
        "the {0} is not ours any more: cleared by hand (gluster volume clear-locks), or revoked by the brick"
    )]
    LockGone(String),
    /// The brick refused an operation.
    #[error("{0}")]
    Refused(String),
    /// The brick could not make the copy durable.
    #[error("{0}")]
    Unsynced(String),
}

/// What stands on a brick, for a process that goes on with it.
#[derive(Debug)]
pub struct KeptBrick {
    /// The connection.
    pub connection: KeptConnection,
    /// The number of the open file to which posix locks belong, if there is one.
    pub open: Option<i64>,
    /// What was published.
    pub published: Option<Fence>,
    /// The files after the first from which heals are kept.
    pub guarded: Vec<FileIndex>,
}

/// Of a question about pieces.
const WHOLE: &str = "the image is one file";

/// One brick, for one image. Blocking; called from one thread.
///
/// An image may be several files ([`crate::image::layout`]). What is asked is about the one
/// that was selected last; the session lock and the record are of the first.
pub trait BrickPort: Send {
    /// From now on what is asked is about this file of the image. At first, and after each
    /// [`BrickPort::connect`], it is the first one.
    fn select(&mut self, file: FileIndex) {
        debug_assert_eq!(file, FileIndex::BASE, "an image of one file");
    }

    /// Reads identity, size and marks of the first `count` files, many at one time. They need
    /// not be locked, and nothing is changed.
    ///
    /// # Errors
    /// As the connection fails; [`PortError::NoPiece`] for one that is not there.
    fn look_at_all(&mut self, count: u32) -> Result<Vec<CopyState>, PortError> {
        let look = |file| {
            self.select(file);
            self.look()
        };
        let copies = (0..count).map(FileIndex).map(look).collect();
        self.select(FileIndex::BASE);
        copies
    }

    /// Makes data and marks of the first `count` files durable, many at one time.
    ///
    /// # Errors
    /// As the connection fails. One that is not there is none.
    fn fsync_all(&mut self, count: u32) -> Result<(), PortError> {
        let sync = |file| {
            self.select(file);
            self.fsync()
        };
        let synced = (0..count).map(FileIndex).try_for_each(sync);
        self.select(FileIndex::BASE);
        synced
    }

    /// Of the first `count` files, accuses copies that the session does not know, by the names
    /// of AFR's counters against them: those that may have been healed already, for the counter
    /// is there and zero. Durable. One that is not there yet is accused by whoever makes it
    /// (`afr_selfheal_newentry_mark`). Not to be undone, and to be asked for only while heals are
    /// kept from these files.
    ///
    /// # Errors
    /// As the connection fails.
    fn accuse_newcomers(&mut self, _count: u32, _names: &[String]) -> Result<(), PortError> {
        Ok(())
    }

    /// Lets the connection rest, locks and all, for another process to go on with it or
    /// until [`BrickPort::go_on`].
    ///
    /// # Errors
    /// Why not; it goes on as before.
    fn keep(&mut self) -> Result<KeptBrick, PortError> {
        Err(PortError::Refused("this kind of brick stays".to_owned()))
    }

    /// Ends what [`BrickPort::keep`] began.
    fn go_on(&mut self) {}

    /// The files after the first from which the process before kept heals here, and still does.
    fn kept_files(&self) -> Vec<FileIndex> {
        Vec::new()
    }

    /// Have the session's locks stood here since the process before read this copy?
    fn stood(&self) -> bool {
        false
    }

    /// `tell` is called, from any thread, when a brick says that somebody wants a lock that is
    /// held here; not again before the next [`BrickPort::probe`]. Said before
    /// [`BrickPort::connect`]; a port that never hears of it says nothing.
    fn on_contention(&mut self, _tell: Box<dyn Fn() + Send + Sync>) {}

    /// Connects and resolves the image. `lost` is called at most once, from any
    /// thread, when the connection goes.
    ///
    /// # Errors
    /// [`PortError::Away`] or [`PortError::NoImage`].
    fn connect(&mut self, lost: Box<dyn FnOnce(String) + Send>) -> Result<(), PortError>;

    /// Tries to take a lock, without waiting. `false`: somebody else holds it.
    ///
    /// # Errors
    /// As the connection fails.
    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError>;

    /// Gives a lock back.
    ///
    /// # Errors
    /// As the connection fails.
    fn unlock(&mut self, lock: Lock) -> Result<(), PortError>;

    /// Fails the requests of stock heals that wait here for [`Lock::Heal`], which is ours.
    /// Holding it on most bricks already, one waits for the rest without a limit
    /// (`afr_selfheal_tie_breaker_inodelk`), and so keeps us from joining those bricks.
    /// Returns whether there were any. Left alone while anybody uses [`Lock::Data`] here,
    /// for whoever waits for that fails, too.
    ///
    /// # Errors
    /// As the connection fails.
    fn turn_heals_away(&mut self) -> Result<bool, PortError>;

    /// The published record of another session, if there is one.
    ///
    /// # Errors
    /// As the connection fails.
    fn holder(&mut self) -> Result<Option<Holder>, PortError>;

    /// Publishes our record with the posix locks that QEMU respects or with the
    /// mandatory fence.
    ///
    /// # Errors
    /// As the connection fails.
    fn publish(&mut self, fence: Fence, read_only: bool) -> Result<Publication, PortError>;

    /// Lifts the mandatory fence's attribute.
    ///
    /// # Errors
    /// As the connection fails.
    fn lift_fence(&mut self) -> Result<(), PortError>;

    /// Reads identity, size and marks of a copy that is not ours to lock; changes nothing.
    ///
    /// # Errors
    /// As the connection fails.
    fn look(&mut self) -> Result<CopyState, PortError>;

    /// Reads identity, size and marks of a copy that is locked, and looks whether it
    /// still is.
    ///
    /// # Errors
    /// As the connection fails; [`PortError::LockGone`].
    fn probe(&mut self) -> Result<CopyState, PortError>;

    /// Is a healer at work on this copy for another session than `ours`? See
    /// [`super::copy_lock`].
    ///
    /// # Errors
    /// As the connection fails.
    fn is_copied_to_for_others(&mut self, ours: Uuid) -> Result<bool, PortError>;

    /// Adds to the data counters. Afterwards the file is in the brick's index of
    /// files to heal if one of those named is not zero, or one that the session does not
    /// know (of a brick that was added since), and out of it if all are zero: so all that
    /// matter have to be named, if only with a zero. Not yet durable.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it: what to add
    /// follows from what was read under that lock.
    fn add_to_counters(&mut self, changes: &[(Counter, i32)]) -> Result<(), PortError>;

    /// From now on the image has these files, the ones that it had and more.
    fn extend(&mut self, _layout: &Layout) {}

    /// The size of an image in pieces as this brick has it, and whose attributes it calls old.
    ///
    /// # Errors
    /// As the connection fails.
    fn disk_size(&mut self) -> Result<SizeSeen, PortError> {
        Err(PortError::Refused(WHOLE.to_owned()))
    }

    /// Changes that size, so that it is this. Not yet durable.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it.
    fn set_disk_size(&mut self, _size: u64) -> Result<(), PortError> {
        Err(PortError::Refused(WHOLE.to_owned()))
    }

    /// From now on mounts say that the image in pieces uses so many blocks of 512 bytes: what a
    /// guest writes the shard translator does not count. Not durable, as nothing depends on it.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it.
    fn note_blocks(&mut self, _blocks: u64) -> Result<(), PortError> {
        Ok(())
    }

    /// Adds `change` to the counters that say that the attributes of these children are old.
    /// Not yet durable.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it.
    fn accuse_attributes(&mut self, _children: BrickSet, _change: i32) -> Result<(), PortError> {
        Err(PortError::Refused(WHOLE.to_owned()))
    }

    /// Makes the file `size` bytes long; what is new reads as zeros. Not yet durable.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it.
    fn truncate(&mut self, size: u64) -> Result<(), PortError>;

    /// Sets the file's times, since the epoch: a mount that sees another time than before
    /// forgets what it has of the file in its cache. Not yet durable.
    ///
    /// # Errors
    /// As the connection fails, and without [`Lock::Data`] held through it.
    fn set_times(&mut self, time: Duration) -> Result<(), PortError>;

    /// Makes the file's data and marks on this brick durable.
    ///
    /// # Errors
    /// As the connection fails.
    fn fsync(&mut self) -> Result<(), PortError>;

    /// Drops the connection, and every lock with it.
    fn disconnect(&mut self);
}
