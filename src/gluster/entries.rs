//! Operations on the names in a brick's directories: looking many up at one time, making
//! files and directories, and the lock under which that is done.
//!
//! Requests and answers are those of GlusterFS `rpc/xdr/src/glusterfs4-xdr.x`. Which names are
//! to be made, and what must be marked before, is not known here.

use uuid::Uuid;

use super::brick::{Brick, Operation};
use super::dict::{Dict, Value};
use super::error::{BrickError, Errno, ProtocolError};
use super::fops::{Entry, InFlight, operation};
use super::inode::Gfid;
use super::locks::Locked;
use super::xdr::{Decoder, Encoder};

// enum gf_fop_procnum of rpc/rpc-lib/src/protocol-common.h
const MKNOD: Operation = operation(3, "MKNOD");
const MKDIR: Operation = operation(4, "MKDIR");
const ENTRYLK: Operation = operation(31, "ENTRYLK");

/// `ENTRYLK_UNLOCK` and `ENTRYLK_LOCK_NB` (`entrylk_cmd`, glusterfs-fops.x).
const UNLOCK: u32 = 1;
const TRY: u32 = 2;
/// `ENTRYLK_WRLCK` (`entrylk_type`).
const EXCLUSIVE: u32 = 1;

/// The most lookups that are on their way at one time.
const MOST_LOOKUPS: usize = 256;
/// The most files that are being made at one time.
const MOST_MADE: usize = 64;

/// The key under which a new file's gfid is given (`gfid-req`, glusterfs.h).
const WANTED_GFID: &str = "gfid-req";
/// Tells a brick that a client of Gluster's own makes the directory
/// (`GLUSTERFS_INTERNAL_FOP_KEY`, glusterfs.h): `.shard` is made by no other.
const INTERNAL: &str = "glusterfs-internal-fop";

impl Brick {
    /// Looks every name up in the directory `parent`, many at one time; `None` for those that
    /// are not there. `want` names extended attributes to return.
    ///
    /// # Errors
    /// The first that failed in another way.
    pub fn lookup_all(
        &self,
        parent: Gfid,
        names: &[String],
        want: &[&str],
    ) -> Result<Vec<Option<Entry>>, BrickError> {
        let start = |name: &String| self.start_lookup(Gfid::NONE, parent, name, want);
        all(names, MOST_LOOKUPS, start, there)
    }

    /// Looks every gfid up, many at one time; `None` for those that are not there.
    ///
    /// # Errors
    /// The first that failed in another way.
    pub fn lookup_gfids(
        &self,
        gfids: &[Gfid],
        want: &[&str],
    ) -> Result<Vec<Option<Entry>>, BrickError> {
        let start = |gfid: &Gfid| self.start_lookup_gfid(*gfid, want);
        all(gfids, MOST_LOOKUPS, start, there)
    }

    /// Begins a [`Brick::lookup_gfid`].
    ///
    /// # Errors
    /// The connection's.
    pub fn start_lookup_gfid(
        &self,
        gfid: Gfid,
        want: &[&str],
    ) -> Result<InFlight<Entry>, BrickError> {
        self.start_lookup(gfid, Gfid::NONE, "", want)
    }

    fn start_lookup(
        &self,
        gfid: Gfid,
        parent: Gfid,
        name: &str,
        want: &[&str],
    ) -> Result<InFlight<Entry>, BrickError> {
        self.start_look_up(gfid, parent, name, want, |values, iatt| Entry {
            iatt,
            xattrs: values.into_attributes(),
        })
    }

    /// Makes empty regular files of these names and gfids in the directory `parent`, many at
    /// one time; `false` for a name that is there already.
    ///
    /// # Errors
    /// The first that failed in another way; others may have been made.
    pub fn make_files(
        &self,
        parent: Gfid,
        files: &[(String, Uuid)],
        mode: u32,
    ) -> Result<Vec<bool>, BrickError> {
        let start = |(name, gfid): &(String, Uuid)| {
            let mut arguments = Encoder::new();
            // No device, no umask.
            arguments
                .fixed(parent.as_bytes())
                .u64(0)
                .u32(libc::S_IFREG | mode)
                .u32(0)
                .string(name);
            let mut xdata = Dict::new();
            xdata.set(WANTED_GFID, Value::Uuid(*gfid));
            xdata.encode(&mut arguments);
            self.begin(MKNOD, arguments, &[], |_, _| Ok(()))
        };
        all(files, MOST_MADE, start, made)
    }

    /// Makes a directory of Gluster's own, with DHT's layout of one replica set; `false` if
    /// the name is there already.
    ///
    /// # Errors
    /// The brick's.
    pub fn make_directory(
        &self,
        parent: Gfid,
        name: &str,
        gfid: Uuid,
        mode: u32,
    ) -> Result<bool, BrickError> {
        /// Of the whole range of hashes (`dht_disk_layout_extract`, dht-layout.c).
        const LAYOUT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
        let mut arguments = Encoder::new();
        arguments
            .fixed(parent.as_bytes())
            .u32(mode)
            .u32(0)
            .string(name);
        let mut xdata = Dict::new();
        xdata
            .set(WANTED_GFID, Value::Uuid(gfid))
            .set(INTERNAL, Value::Int(1))
            .set("trusted.glusterfs.dht", Value::Bytes(LAYOUT.to_vec()));
        xdata.encode(&mut arguments);
        made(self.run(MKDIR, arguments, |_| Ok(())))
    }

    /// Makes several files durable on the brick, many at one time.
    ///
    /// # Errors
    /// The first that failed.
    pub fn fsync_all(&self, gfids: &[Gfid]) -> Result<(), BrickError> {
        let start = |gfid: &Gfid| self.start_fsync(*gfid, false);
        all(gfids, MOST_MADE, start, |done| done)?;
        Ok(())
    }

    /// The same, though some may not be there.
    ///
    /// # Errors
    /// The first that failed in another way.
    pub fn fsync_those_there(&self, gfids: &[Gfid]) -> Result<(), BrickError> {
        let start = |gfid: &Gfid| self.start_fsync(*gfid, false);
        all(gfids, MOST_MADE, start, there)?;
        Ok(())
    }

    /// Tries to take the lock of a name in a directory, or without a name that of all.
    ///
    /// # Errors
    /// The brick's.
    pub fn try_entrylk(
        &self,
        parent: Gfid,
        domain: &str,
        name: Option<&str>,
    ) -> Result<Locked, BrickError> {
        match self.entrylk(parent, domain, name, TRY) {
            Ok(()) => Ok(Locked::Granted),
            Err(error) if error.errno() == Some(Errno::AGAIN) => Ok(Locked::WouldBlock),
            Err(error) => Err(error),
        }
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The brick's.
    pub fn entry_unlock(
        &self,
        parent: Gfid,
        domain: &str,
        name: Option<&str>,
    ) -> Result<(), BrickError> {
        self.entrylk(parent, domain, name, UNLOCK)
    }

    fn entrylk(
        &self,
        parent: Gfid,
        domain: &str,
        name: Option<&str>,
        command: u32,
    ) -> Result<(), BrickError> {
        let mut arguments = Encoder::new();
        // The name's length says only whether there is one (`server4_0_entrylk`).
        arguments
            .fixed(parent.as_bytes())
            .u32(command)
            .u32(EXCLUSIVE)
            .u64(name.is_some().into())
            .string(name.unwrap_or_default())
            .string(domain);
        Dict::new().encode(&mut arguments);
        self.run(ENTRYLK, arguments, |_: &mut Decoder<'_>| {
            Ok::<(), ProtocolError>(())
        })
    }
}

/// Starts one operation for each of `items`, at most `most` at one time, and gives what
/// `read` makes of their answers. After an error those under way are still waited for.
fn all<I, T, R>(
    items: &[I],
    most: usize,
    start: impl Fn(&I) -> Result<InFlight<T>, BrickError>,
    read: impl Fn(Result<T, BrickError>) -> Result<R, BrickError>,
) -> Result<Vec<R>, BrickError> {
    let mut found = Vec::with_capacity(items.len());
    for group in items.chunks(most) {
        let started: Vec<_> = group.iter().map(&start).collect();
        let answers: Vec<_> = started
            .into_iter()
            .map(|started| read(started.and_then(InFlight::wait)))
            .collect();
        for answer in answers {
            found.push(answer?);
        }
    }
    Ok(found)
}

/// A file that is not there is no failure.
fn there<T>(found: Result<T, BrickError>) -> Result<Option<T>, BrickError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_no_file() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nor is one that was there before.
fn made(done: Result<(), BrickError>) -> Result<bool, BrickError> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno(libc::EEXIST)) => Ok(false),
        Err(error) => Err(error),
    }
}
