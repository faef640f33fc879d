//! [`BrickPort`] over Gluster's brick protocol.
//!
//! Turns what a session wants of a brick into file operations and locks. It
//! keeps the connection and the open file that posix locks need, nothing else.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::gluster::fops::{OpenMode, RemoteFd};
use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Errno, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind, LockOp,
    LockRange, Locked, Timeouts,
};
use crate::image::error_chain::chain;
use crate::image::layout::found::SizeSeen;
use crate::image::layout::{FileIndex, Layout};
use crate::image::locate::Located;
use crate::image::replica::brick_port::{
    BrickPort, CopyState, Counter, Fence, KeptBrick, Lock, PortError, Publication,
};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::copy_lock;
use crate::image::replica::holder::Holder;
use crate::image::replica::promotion::Promotion;

use super::failure::port_error;
use super::session_record::{SESSION_DOMAIN, holder_of};

mod alert;
mod counters;
mod disk_size;
mod files;
mod publishing;

use alert::Alert;
use files::FileLocks;

/// The attribute by which a file is fenced where the volume allows it
/// (`GF_ENFORCE_MANDATORY_LOCK`, `libglusterfs/src/glusterfs/glusterfs.h`).
const FENCE_XATTR: &str = "trusted.glusterfs.enforce-mandatory-lock";

/// What a session holds from its beginning to its end.
const LASTING: [Lock; 4] = [
    Lock::Session { shared: false },
    Lock::Session { shared: true },
    Lock::Heal,
    Lock::Rebalance,
];
/// What it holds of another file than the first as long as that has marks.
const GUARD: [Lock; 2] = [Lock::Heal, Lock::Rebalance];
/// How long a brick may take to answer before its connection is kept.
const HOLD_LIMIT: Duration = Duration::from_millis(500);

/// One brick's port.
pub struct GlusterPort {
    /// The files of the image.
    layout: Layout,
    /// The one that is asked about.
    file: FileIndex,
    /// Its child index.
    child: usize,
    spec: BrickSpec,
    located: Located,
    identity: Identity,
    timeouts: Timeouts,
    overruled: Option<Overruled>,
    next: Next,
    alert: Option<Arc<Alert>>,
    live: Option<Live>,
}

/// What the next connection is.
enum Next {
    /// The first one, by which the image is opened: it is known by its name.
    Opening,
    /// A later one: the image is known by its gfid, whatever it is called now.
    Later,
    /// That of the process before.
    Kept(KeptBrick),
    /// None: the process before had none, and the guest does not wait for one.
    Away,
}

/// Accusations of the local copy that were given up when it was promoted.
#[derive(Clone, Debug)]
pub struct Overruled {
    /// Which ones.
    pub promotion: Promotion,
    /// Child index of the promoted copy.
    pub local: usize,
}

/// What exists only while connected.
struct Live {
    brick: Brick,
    /// The first file, as this brick knows it.
    base: Gfid,
    /// That file, open.
    fd: Option<RemoteFd>,
    /// What stands of the record and the fence.
    published: Option<Fence>,
    /// In the layout's order.
    files: Vec<FileLocks>,
}

impl GlusterPort {
    /// The ports of all bricks of the image's replica set, in child order, not
    /// connected yet. `owner` goes with every lock. What is `overruled` is taken off a
    /// brick when it is read, so only with the locks of a writer.
    pub fn for_set(
        located: &Located,
        owner: &LkOwner,
        timeouts: Timeouts,
        overruled: Option<&Overruled>,
    ) -> Vec<Box<dyn BrickPort>> {
        Self::for_set_from(located, owner, timeouts, overruled, None)
    }

    /// As [`Self::for_set`]. With `kept`, per brick, the first connections are those of
    /// the process before, which had the same `owner`.
    pub fn for_set_from(
        located: &Located,
        owner: &LkOwner,
        timeouts: Timeouts,
        overruled: Option<&Overruled>,
        kept: Option<Vec<Option<KeptBrick>>>,
    ) -> Vec<Box<dyn BrickPort>> {
        let mut kept = kept.map(Vec::into_iter);
        let port = |(child, spec): (usize, &BrickSpec)| -> Box<dyn BrickPort> {
            let next = match kept.as_mut().map(|kept| kept.next().flatten()) {
                None => Next::Opening,
                Some(Some(kept)) => Next::Kept(kept),
                Some(None) => Next::Away,
            };
            Box::new(Self {
                layout: located.layout(),
                file: FileIndex::BASE,
                child,
                spec: spec.clone(),
                located: located.clone(),
                identity: identity(owner.clone()),
                timeouts,
                overruled: overruled.cloned(),
                next,
                alert: None,
                live: None,
            })
        };
        located.set.bricks.iter().enumerate().map(port).collect()
    }

    fn live(&self) -> Result<&Live, PortError> {
        self.live
            .as_ref()
            .ok_or_else(|| PortError::Away("not connected".to_owned()))
    }

    fn domain(&self, lock: Lock) -> (String, LockKind) {
        let set = &self.located.set;
        match lock {
            Lock::Session { shared: true } => (SESSION_DOMAIN.to_owned(), LockKind::Read),
            Lock::Session { shared: false } => (SESSION_DOMAIN.to_owned(), LockKind::Write),
            Lock::Heal => (domain::self_heal(set), LockKind::Write),
            Lock::Rebalance => (domain::MIGRATE.to_owned(), LockKind::Write),
            Lock::Data => (domain::data(set), LockKind::Write),
            Lock::Copy => (copy_lock::DOMAIN.to_owned(), LockKind::Write),
        }
    }

    fn inodelk(&self, lock: Lock, op: LockOp, range: LockRange) -> Result<Locked, PortError> {
        let live = self.live()?;
        let (domain, kind) = self.domain(lock);
        live.brick
            .inodelk(self.gfid(), &domain, op, kind, range)
            .map_err(port_error)
    }
}

impl BrickPort for GlusterPort {
    fn on_contention(&mut self, tell: Box<dyn Fn() + Send + Sync>) {
        self.alert = Some(Arc::new(Alert::new(tell)));
    }

    fn select(&mut self, file: FileIndex) {
        self.file = file;
    }

    fn look_at_all(&mut self, count: u32) -> Result<Vec<CopyState>, PortError> {
        self.look_up_all(count)
    }

    fn fsync_all(&mut self, count: u32) -> Result<(), PortError> {
        let (_, gfids) = self.first_files(count)?;
        let synced = self.live()?.brick.fsync_those_there(&gfids);
        synced.map_err(sync_error)
    }

    fn accuse_newcomers(&mut self, count: u32, names: &[String]) -> Result<(), PortError> {
        self.accuse_all(count, names)
    }

    fn connect(&mut self, lost: Box<dyn FnOnce(String) + Send>) -> Result<(), PortError> {
        self.disconnect();
        self.file = FileIndex::BASE;
        let (mut open, mut published) = (None, None);
        let mut files = vec![FileLocks::default(); self.layout.len()];
        let next = std::mem::replace(&mut self.next, Next::Later);
        let by_name = matches!(next, Next::Opening);
        let connected = match next {
            Next::Opening | Next::Later => Brick::connect(
                &self.spec,
                self.located.volume_id,
                &self.identity,
                &self.timeouts,
            ),
            Next::Kept(kept) => {
                (open, published) = (kept.open, kept.published);
                files::stand(&mut files, FileIndex::BASE, &LASTING);
                for file in kept.guarded {
                    files::stand(&mut files, file, &GUARD);
                }
                Brick::adopt(&self.spec, kept.connection, &self.identity, &self.timeouts)
            }
            Next::Away => {
                return Err(PortError::Away("away since before the upgrade".to_owned()));
            }
        };
        let brick = connected.map_err(port_error)?;
        let found = match by_name {
            true => brick.resolve(&self.located.image, &[]),
            false => brick.lookup_gfid(Gfid(self.located.gfid), &[]),
        };
        let entry = match found {
            Ok(entry) => entry,
            Err(error) => {
                brick.close();
                return Err(match error.is_no_file() {
                    true => PortError::NoImage,
                    false => port_error(error),
                });
            }
        };
        brick.on_disconnect(move |why| lost(chain(&**why)));
        if let Some(alert) = self.alert.clone() {
            let name = self.spec.to_string();
            brick.on_contention(move |contention| alert.raise(&name, contention));
        }
        self.live = Some(Live {
            brick,
            base: entry.gfid(),
            fd: open.map(|number| RemoteFd::adopt(entry.gfid(), number)),
            published,
            files,
        });
        Ok(())
    }

    fn keep(&mut self) -> Result<KeptBrick, PortError> {
        let live = self.live()?;
        let connection = live.brick.hold(HOLD_LIMIT);
        let connection = connection.map_err(|error| PortError::Refused(chain(&error)))?;
        Ok(KeptBrick {
            connection,
            open: live.fd.map(RemoteFd::number),
            published: live.published,
            guarded: live.guarded(),
        })
    }

    fn go_on(&mut self) {
        if let Some(live) = &self.live {
            live.brick.go_on();
        }
    }

    fn kept_files(&self) -> Vec<FileIndex> {
        self.live().map(Live::guarded).unwrap_or_default()
    }

    fn stood(&self) -> bool {
        let stands = |locks: &FileLocks| GUARD.iter().all(|lock| locks.standing.contains(lock));
        self.locks().is_ok_and(stands)
    }

    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError> {
        // As long as the connection is the same, the brick keeps it.
        if self.locks()?.standing.contains(&lock) {
            return Ok(true);
        }
        let granted = self.inodelk(lock, LockOp::Try, LockRange::WHOLE)? == Locked::Granted;
        self.note_data_lock(lock, granted);
        if let Some(locks) = self.locks_mut().filter(|_| granted) {
            locks.taken.push(lock);
        }
        Ok(granted)
    }

    fn unlock(&mut self, lock: Lock) -> Result<(), PortError> {
        self.note_data_lock(lock, false);
        if let Some(locks) = self.locks_mut() {
            locks.standing.retain(|standing| *standing != lock);
            locks.taken.retain(|taken| *taken != lock);
        }
        let _ = self.inodelk(lock, LockOp::Unlock, LockRange::WHOLE)?;
        Ok(())
    }

    fn turn_heals_away(&mut self) -> Result<bool, PortError> {
        let set = &self.located.set;
        let live = self.live()?;
        let count = |domain: String| {
            live.brick
                .inodelk_count(self.gfid(), &domain)
                .map_err(port_error)
        };
        let waiting = count(domain::self_heal(set))? > 1;
        if !waiting || count(domain::data(set))? > 0 {
            return Ok(false);
        }
        live.brick
            .fail_waiting_inodelks(self.gfid())
            .map_err(port_error)?;
        Ok(true)
    }

    fn holder(&mut self) -> Result<Option<Holder>, PortError> {
        let (brick, fd) = self.fd(OpenMode::ReadWrite)?;
        holder_of(&brick, fd).map_err(port_error)
    }

    fn publish(&mut self, fence: Fence, read_only: bool) -> Result<Publication, PortError> {
        if self.live()?.published == Some(fence) {
            return Ok(Publication::Done);
        }
        let answer = match fence {
            Fence::Advisory => self.publish_advisory(read_only),
            Fence::Mandatory => self.publish_mandatory(),
        }?;
        if let Some(live) = &mut self.live {
            live.published = (answer == Publication::Done).then_some(fence);
        }
        Ok(answer)
    }

    fn lift_fence(&mut self) -> Result<(), PortError> {
        if let Some(live) = &mut self.live {
            live.published = None;
        }
        let live = self.live()?;
        match live.brick.removexattr(self.gfid(), FENCE_XATTR) {
            Err(error) if error.errno() == Some(Errno::NODATA) => Ok(()),
            done => done.map_err(port_error),
        }
    }

    fn look(&mut self) -> Result<CopyState, PortError> {
        self.look_up()
    }

    fn probe(&mut self) -> Result<CopyState, PortError> {
        if let Some(alert) = &self.alert {
            alert.looked();
        }
        let mut copy = self.look_up_locked()?;
        self.take_off_overruled(&mut copy)?;
        Ok(copy)
    }

    fn is_copied_to_for_others(&mut self, ours: Uuid) -> Result<bool, PortError> {
        for range in copy_lock::others(ours) {
            if self.inodelk(Lock::Copy, LockOp::Try, range)? == Locked::WouldBlock {
                return Ok(true);
            }
            let _ = self.inodelk(Lock::Copy, LockOp::Unlock, range)?;
        }
        Ok(false)
    }

    fn add_to_counters(&mut self, changes: &[(Counter, i32)]) -> Result<(), PortError> {
        self.data_locked()?;
        self.xattrop(changes)
    }

    fn extend(&mut self, layout: &Layout) {
        self.layout = layout.clone();
        if let Some(live) = &mut self.live {
            live.files.resize(layout.len(), FileLocks::default());
        }
    }

    fn disk_size(&mut self) -> Result<SizeSeen, PortError> {
        self.ask_disk_size()
    }

    fn set_disk_size(&mut self, size: u64) -> Result<(), PortError> {
        self.change_disk_size(size)
    }

    fn note_blocks(&mut self, blocks: u64) -> Result<(), PortError> {
        self.note_blocks_used(blocks)
    }

    fn accuse_attributes(&mut self, children: BrickSet, change: i32) -> Result<(), PortError> {
        self.add_to_attribute_counters(children, change)
    }

    fn truncate(&mut self, size: u64) -> Result<(), PortError> {
        let live = self.data_locked()?;
        live.brick.ftruncate(self.gfid(), size).map_err(port_error)
    }

    fn set_times(&mut self, time: Duration) -> Result<(), PortError> {
        let live = self.data_locked()?;
        live.brick.set_times(self.gfid(), time).map_err(port_error)
    }

    fn fsync(&mut self) -> Result<(), PortError> {
        let synced = self.live()?.brick.fsync(self.gfid(), false);
        synced.map_err(sync_error)
    }

    fn disconnect(&mut self) {
        if let Some(live) = self.live.take() {
            live.brick.close();
        }
    }
}

fn sync_error(error: BrickError) -> PortError {
    match port_error(error) {
        PortError::Refused(why) => PortError::Unsynced(why),
        other => other,
    }
}

/// How this program presents itself to a brick.
pub fn identity(lk_owner: LkOwner) -> Identity {
    Identity {
        process_name: "bypass-blk".to_owned(),
        pid: INTERNAL_PID,
        lk_owner,
    }
}
