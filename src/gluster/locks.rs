//! Locks on a brick: INODELK, which Gluster's translators use among themselves,
//! and posix locks, which `fcntl` on a mount sees.
//!
//! The owner of a lock is the connection and the lock owner of its identity
//! together. The brick drops a connection's locks when the connection ends.

use super::brick::{Brick, Operation};
use super::connection::Weight;
use super::dict::{Dict, Value};
use super::error::{BrickError, Errno, ProtocolError};
use super::fops::{Entry, RemoteFd};
use super::inode::Gfid;
use super::rpc::Credentials;
use super::xdr::{Decoder, Encoder, XdrError};

const LK: Operation = Operation {
    number: 26,
    name: "LK",
};
const INODELK: Operation = Operation {
    number: 29,
    name: "INODELK",
};

/// `GLUSTERFS_MULTIPLE_DOM_LK_CNT_REQUESTS`: counts of locks are asked for.
const COUNT_LOCKS: &str = "glusterfs.multi-dom-lk-cnt-req";
/// `GLUSTERFS_INODELK_DOM_PREFIX`: in this domain.
const COUNT_PREFIX: &str = "glusterfs.inodelk-dom-prefix";
/// `GLUSTERFS_POSIXLK_COUNT`: the count of posix locks is asked for.
const COUNT_POSIX: &str = "glusterfs.posixlk-count";
/// `GF_XATTR_CLRLK_CMD` with type inode, kind blocked.
const CLEAR_WAITING: &str = "glusterfs.clrlk.tinode.kblocked";

/// Lock domains that GlusterFS itself uses.
pub mod domain {
    use crate::gluster::volume::ReplicaSet;

    /// AFR's data writes and the unmarking of its heal: while it is held, writes
    /// of other clients in the range hang.
    pub fn data(set: &ReplicaSet) -> String {
        set.name.clone()
    }

    /// AFR's heal as a whole: while it is held, the self-heal daemon leaves the
    /// file alone.
    pub fn self_heal(set: &ReplicaSet) -> String {
        format!("{}:self-heal", set.name)
    }

    /// Moving a file to another replica set (`DHT_FILE_MIGRATE_DOMAIN`).
    pub const MIGRATE: &str = "dht.file.migrate";
}

/// What to do about a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOp {
    /// Take it if it is free.
    Try,
    /// Take it, waiting for it as long as the call may take. Granted later than
    /// that, it is given back.
    Wait,
    /// Give it back; [`Errno::INVAL`] if an INODELK is not held.
    Unlock,
}

/// The kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

/// The bytes that a lock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// Their number; 0 is everything from `start` on.
    pub len: u64,
}

impl LockRange {
    /// Every byte.
    pub const WHOLE: Self = Self { start: 0, len: 0 };
}

/// The outcome of [`LockOp::Try`] and the other operations.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// Done.
    Granted,
    /// Somebody else holds a conflicting lock (only of [`LockOp::Try`]).
    WouldBlock,
}

/// A lock of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignLock {
    /// Its kind.
    pub kind: LockKind,
    /// Its bytes.
    pub range: LockRange,
    /// Process id on the holder's host.
    pub pid: u32,
    /// The holder's lock owner: of a client such as this one, what its
    /// [`super::Identity`] says; of a mount, 8 meaningless bytes.
    pub lk_owner: Vec<u8>,
}

/// Longest lock owner in an answer (`GF_MAX_LOCK_OWNER_LEN`).
const MAX_ANSWERED_OWNER: usize = 1024;

// enum gf_lk_cmds_t and gf_lk_types_t of
// libglusterfs/src/glusterfs/glusterfs-fops.h
const GETLK: u32 = 0;
const SETLK: u32 = 1;
const SETLKW: u32 = 2;
const RDLCK: u32 = 0;
const WRLCK: u32 = 1;
const UNLCK: u32 = 2;

/// Key and value in LK's xdata that make the lock a mandatory one
/// (`GF_LOCK_MODE`, `GF_LK_MANDATORY`).
const LOCK_MODE: (&str, Value) = ("glusterfs.lk.lkmode", Value::Uint(1));

impl LockOp {
    fn command(self) -> u32 {
        match self {
            Self::Try | Self::Unlock => SETLK,
            Self::Wait => SETLKW,
        }
    }

    fn wire_type(self, kind: LockKind) -> u32 {
        match self {
            Self::Unlock => UNLCK,
            Self::Try | Self::Wait => kind.wire_type(),
        }
    }
}

impl LockKind {
    fn wire_type(self) -> u32 {
        match self {
            Self::Read => RDLCK,
            Self::Write => WRLCK,
        }
    }
}

/// How many locks of a file are held or waited for, by anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockCounts {
    /// INODELKs, per domain that was asked for.
    pub inodelks: Vec<u32>,
    /// Posix locks.
    pub posix: u32,
}

impl Brick {
    /// Takes or gives back a lock of the file in `domain`. An unlock needs the
    /// same range as the lock. A lock taken twice is held twice and must be given
    /// back as often.
    ///
    /// While a client with a process id of 0 or more holds one, removing the file
    /// waits; if that client then disconnects without an unlock, the removal hangs
    /// for ever (`pl_inodelk_client_cleanup` of GlusterFS 10.3 wakes nobody). Use
    /// [`super::brick::INTERNAL_PID`].
    pub fn inodelk(
        &self,
        gfid: Gfid,
        domain: &str,
        op: LockOp,
        kind: LockKind,
        range: LockRange,
    ) -> Result<Locked, BrickError> {
        let arguments = |op| self.inodelk_arguments(gfid, domain, op, kind, range);
        self.set_lock(INODELK, op, arguments, || false)
    }

    /// Queues for a lock as [`LockOp::Wait`] does, for the call's time limit at most
    /// and until `given_up`, which is asked now and then. `false`: it was not granted by
    /// then; granted later, it is given back at once.
    pub fn queue_inodelk(
        &self,
        gfid: Gfid,
        domain: &str,
        kind: LockKind,
        range: LockRange,
        given_up: impl Fn() -> bool,
    ) -> Result<bool, BrickError> {
        let arguments = |op| self.inodelk_arguments(gfid, domain, op, kind, range);
        match self.set_lock(INODELK, LockOp::Wait, arguments, given_up) {
            Ok(locked) => Ok(locked == Locked::Granted),
            Err(BrickError::Timeout { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many locks of the file in `domain` are held or waited for, by anybody
    /// (`pl_inodelk_xattr_fill_multiple` of GlusterFS 10.3).
    ///
    /// # Errors
    /// As of [`Brick::lookup_gfid`]; an answer without the number is a protocol error.
    pub fn inodelk_count(&self, gfid: Gfid, domain: &str) -> Result<u32, BrickError> {
        let (_, counts) = self.lookup_and_count(gfid, &[], &[domain])?;
        Ok(counts.inodelks.first().copied().unwrap_or_default())
    }

    /// [`Brick::lookup_gfid`], and how many locks of the file there are at that moment.
    ///
    /// # Errors
    /// As of [`Brick::lookup_gfid`]; an answer without the numbers is a protocol error.
    pub fn lookup_and_count(
        &self,
        gfid: Gfid,
        want: &[&str],
        domains: &[&str],
    ) -> Result<(Entry, LockCounts), BrickError> {
        let key = |domain: &&str| format!("{COUNT_PREFIX}:{domain}");
        let keys: Vec<String> = domains.iter().map(key).collect();
        let mut asked = want.to_vec();
        asked.extend([COUNT_LOCKS, COUNT_POSIX]);
        asked.extend(keys.iter().map(String::as_str));
        let (answer, iatt) = self.look_up_with(gfid, Gfid::NONE, "", &asked)?;
        let count = |key: &str| match answer.get(key) {
            Some(Value::Int(count)) => Ok(u32::try_from(*count).unwrap_or(0)),
            _ => Err(self.protocol("LOOKUP", ProtocolError::Missing(key.to_owned()))),
        };
        let counts = LockCounts {
            inodelks: keys
                .iter()
                .map(|key| count(key))
                .collect::<Result<_, _>>()?,
            posix: count(COUNT_POSIX)?,
        };
        let xattrs = answer.into_attributes();
        Ok((Entry { iatt, xattrs }, counts))
    }

    /// Makes every request for an INODELK of the file that waits fail with
    /// [`Errno::AGAIN`], in all domains, whoever sent it; what is held stays
    /// (`clrlk_clear_inodelk`, what `gluster volume clear-locks … kind blocked inode` does).
    ///
    /// # Errors
    /// As of [`Brick::getxattr`].
    pub fn fail_waiting_inodelks(&self, gfid: Gfid) -> Result<(), BrickError> {
        self.getxattr(gfid, CLEAR_WAITING).map(drop)
    }

    fn inodelk_arguments(
        &self,
        gfid: Gfid,
        domain: &str,
        op: LockOp,
        kind: LockKind,
        range: LockRange,
    ) -> Encoder {
        let mut arguments = Encoder::new();
        arguments
            .fixed(gfid.as_bytes())
            .u32(op.command())
            .u32(op.wire_type(kind));
        self.flock(&mut arguments, op.wire_type(kind), range);
        arguments.string(domain);
        Dict::new().encode(&mut arguments);
        arguments
    }

    /// Takes or gives back a posix lock through an open file. A mandatory one
    /// keeps other clients from the bytes where the volume enforces that.
    ///
    /// Where `locks.mandatory-locking` is `optimal` or `forced`, a mandatory write
    /// lock makes reads and writes of all other clients wait, except internal ones
    /// ([`super::brick::INTERNAL_PID`]), and their locks and truncations fail.
    ///
    /// Beware: on a file with `trusted.glusterfs.enforce-mandatory-lock` the brick
    /// grants *every* lock, and takes conflicting ones away from their holders
    /// without a word (`pl_lock_preempt`, xlators/features/locks/src/posix.c).
    pub fn lk(
        &self,
        fd: RemoteFd,
        op: LockOp,
        kind: LockKind,
        range: LockRange,
        mandatory: bool,
    ) -> Result<Locked, BrickError> {
        let arguments =
            |op: LockOp| self.lk_arguments(fd, op.command(), op.wire_type(kind), range, mandatory);
        self.set_lock(LK, op, arguments, || false)
    }

    /// The first posix lock of somebody else in the way of a lock of this kind,
    /// if any.
    pub fn lk_conflict(
        &self,
        fd: RemoteFd,
        kind: LockKind,
        range: LockRange,
    ) -> Result<Option<ForeignLock>, BrickError> {
        let arguments = self.lk_arguments(fd, GETLK, kind.wire_type(), range, false);
        let deadline = self.deadline();
        let reply = self
            .start(LK, arguments, &[], Weight::Uncounted, deadline)?
            .wait(deadline)
            .map_err(|error| self.call_failed(LK.name, error))?;
        self.results(LK, reply.results(), |_, results| {
            let _xdata = Dict::decode(results)?;
            Ok(decode_flock(results)?)
        })
    }

    fn set_lock(
        &self,
        operation: Operation,
        op: LockOp,
        arguments: impl Fn(LockOp) -> Encoder,
        given_up: impl Fn() -> bool,
    ) -> Result<Locked, BrickError> {
        let deadline = self.deadline();
        let pending = self.start(operation, arguments(op), &[], Weight::Uncounted, deadline)?;
        let answer = match op {
            LockOp::Unlock => pending.wait(deadline),
            LockOp::Try | LockOp::Wait => {
                let unlock = self.undo(operation, arguments(LockOp::Unlock), was_granted);
                pending.wait_or_undo(deadline, given_up, unlock)
            }
        };
        let reply = answer.map_err(|error| self.call_failed(operation.name, error))?;
        match self.results(operation, reply.results(), |_, _| Ok(())) {
            Ok(()) => Ok(Locked::Granted),
            Err(error) if op == LockOp::Try && error.errno() == Some(Errno::AGAIN) => {
                Ok(Locked::WouldBlock)
            }
            Err(error) => Err(error),
        }
    }

    fn lk_arguments(
        &self,
        fd: RemoteFd,
        command: u32,
        wire_type: u32,
        range: LockRange,
        mandatory: bool,
    ) -> Encoder {
        let mut xdata = Dict::new();
        if mandatory {
            let (key, value) = LOCK_MODE;
            xdata.set(key, value);
        }
        let mut arguments = Encoder::new();
        arguments
            .fixed(fd.gfid.as_bytes())
            .i64(fd.number)
            .u32(command)
            .u32(wire_type);
        self.flock(&mut arguments, wire_type, range);
        xdata.encode(&mut arguments);
        arguments
    }

    /// Appends a `gf_proto_flock`. The brick takes the owner from the credentials;
    /// the one in here must only not be too long. The process id is what others
    /// are told about the holder, so it is the real one.
    fn flock(&self, to: &mut Encoder, wire_type: u32, range: LockRange) {
        const SEEK_SET: u32 = 0;
        let owner = match self.credentials() {
            Credentials::Client { lk_owner, .. } => lk_owner.as_bytes(),
            Credentials::None => &[],
        };
        to.u32(wire_type)
            .u32(SEEK_SET)
            .u64(range.start)
            .u64(range.len)
            .u32(std::process::id())
            .opaque(owner);
    }
}

fn was_granted(results: &[u8]) -> bool {
    Decoder::new(results).i32().is_ok_and(|op_ret| op_ret >= 0)
}

fn decode_flock(from: &mut Decoder<'_>) -> Result<Option<ForeignLock>, XdrError> {
    let kind = match from.u32()? {
        RDLCK => LockKind::Read,
        WRLCK => LockKind::Write,
        UNLCK => return Ok(None),
        other => {
            return Err(XdrError::UnknownValue {
                what: "lock type",
                value: other.into(),
            });
        }
    };
    let _whence = from.u32()?;
    let range = LockRange {
        start: from.u64()?,
        len: from.u64()?,
    };
    let pid = from.u32()?;
    let lk_owner = from.opaque(MAX_ANSWERED_OWNER)?.to_vec();
    Ok(Some(ForeignLock {
        kind,
        range,
        pid,
        lk_owner,
    }))
}
