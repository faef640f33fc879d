//! What a map's file says about itself, and whether to believe it.
//!
//! A fixed number of bytes, integers little-endian, at the start of the file. The
//! bytes are untrusted: reading them ends in a [`Header`] or in the reason why
//! they are not one. No I/O here.

use super::terms::{Distrust, VERSION};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zerocopy::little_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::extent::Peers;
use super::geometry::{ExtentSize, Geometry};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"bypassDM";

/// Length of the header in bytes.
pub const LEN: usize = size_of::<Raw>();

/// What a map is a map of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The image's gfid.
    pub gfid: Uuid,
    /// The image's size in bytes.
    pub size: u64,
    /// How finely the map counts.
    pub extent_size: ExtentSize,
    /// The brick whose file the session writes (`host:/path`).
    pub local: String,
    /// The other bricks that hold data, in the order of the volfile: the position
    /// is the index of a [`super::Peer`].
    pub peers: Vec<String>,
}

/// What the map's session knows about the marks on the bricks, kept so that the next
/// session can tell whether the map explains them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The value of the counters that this session stores; 0: none yet.
    pub stamp: i32,
    /// The value that was stored before it, which a brick may still have.
    pub previous: i32,
    /// Peers that are dirty because nobody knows better: what they miss is found
    /// by comparing.
    pub suspect: Peers,
    /// Every brick was lost while the guest wrote, and marks are not known to stand since.
    /// Gluster may have healed and unmarked before the last writes landed: that nobody is
    /// marked says nothing then.
    pub unguarded: bool,
    /// A sync of the local copy, or of this file, failed: the copies may differ anywhere.
    pub unsynced: bool,
}

impl Record {
    /// Was a counter of this value stored by a session that had this map?
    pub fn explains(&self, counter: i32) -> bool {
        counter != 0 && (counter == self.stamp || counter == self.previous)
    }
}

/// The contents of a header that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The image's gfid.
    pub gfid: Uuid,
    /// The image and its extents.
    pub geometry: Geometry,
    /// How many sessions have opened this map.
    pub epoch: u64,
    /// The boot (`/proc/sys/kernel/random/boot_id`) in which it was last opened.
    pub boot_id: Uuid,
    /// Closed after the last open, all its words on the disk.
    pub clean: bool,
    /// About the marks.
    pub record: Record,
    local: [u8; 32],
    peers: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    extent_size: U32,
    size: U64,
    epoch: U64,
    gfid: [u8; 16],
    boot_id: [u8; 16],
    local: [u8; 32],
    peers: [u8; 32],
    peer_count: u8,
    clean: u8,
    suspect: u8,
    unguarded: u8,
    unsynced: u8,
    reserved: [u8; 3],
    stamp: I32,
    previous: I32,
    checksum: [u8; 32],
}

impl Raw {
    /// SHA-256 over everything before the checksum.
    fn sum(&self) -> [u8; 32] {
        let (covered, _) = self.as_bytes().split_at(LEN - size_of_val(&self.checksum));
        Sha256::digest(covered).into()
    }
}

impl Header {
    /// Of a new map, opened once.
    pub fn new(identity: &Identity, geometry: Geometry, boot_id: Uuid) -> Self {
        Self {
            gfid: identity.gfid,
            geometry,
            epoch: 1,
            boot_id,
            clean: false,
            record: Record::default(),
            local: digest([&identity.local]),
            peers: digest(&identity.peers),
        }
    }

    /// The bytes for the file.
    pub fn encode(&self) -> [u8; LEN] {
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            extent_size: (self.geometry.extent_size().bytes() as u32).into(),
            size: self.geometry.size().into(),
            epoch: self.epoch.into(),
            gfid: self.gfid.into_bytes(),
            boot_id: self.boot_id.into_bytes(),
            local: self.local,
            peers: self.peers,
            peer_count: self.geometry.all_peers().iter().count() as u8,
            clean: self.clean.into(),
            suspect: self.record.suspect.bits(),
            unguarded: self.record.unguarded.into(),
            unsynced: self.record.unsynced.into(),
            reserved: [0; 3],
            stamp: self.record.stamp.into(),
            previous: self.record.previous.into(),
            checksum: [0; 32],
        };
        raw.checksum = raw.sum();
        zerocopy::transmute!(raw)
    }

    /// Reads the first bytes of a file that is `file_len` bytes long.
    ///
    /// # Errors
    ///
    /// Why they are not the header of a usable map.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, Distrust> {
        let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| Distrust::Truncated)?;
        if raw.magic != MAGIC {
            return Err(Distrust::Magic);
        }
        let found = raw.version.get();
        if found != VERSION {
            return Err(Distrust::Version { found });
        }
        if raw.checksum != raw.sum() {
            return Err(Distrust::Checksum);
        }
        let geometry = ExtentSize::new(raw.extent_size.get())
            .and_then(|extent| Geometry::new(raw.size.get(), extent, raw.peer_count.into()))
            .map_err(|_| Distrust::Impossible)?;
        if file_len < geometry.file_len() {
            return Err(Distrust::Truncated);
        }
        Ok(Self {
            gfid: Uuid::from_bytes(raw.gfid),
            geometry,
            epoch: raw.epoch.get(),
            boot_id: Uuid::from_bytes(raw.boot_id),
            clean: raw.clean == 1,
            record: Record {
                stamp: raw.stamp.get(),
                previous: raw.previous.get(),
                suspect: Peers::from_bits(raw.suspect).and(geometry.all_peers()),
                unguarded: raw.unguarded != 0,
                unsynced: raw.unsynced != 0,
            },
            local: raw.local,
            peers: raw.peers,
        })
    }

    /// Is this the map of `identity`?
    ///
    /// # Errors
    ///
    /// The first thing that differs.
    pub fn check_identity(&self, identity: &Identity) -> Result<(), Distrust> {
        let found = self.geometry.size();
        let extent_size = self.geometry.extent_size();
        if self.gfid != identity.gfid {
            Err(Distrust::Gfid { found: self.gfid })
        } else if found != identity.size {
            Err(Distrust::Size { found })
        } else if extent_size != identity.extent_size {
            let found = extent_size.bytes();
            Err(Distrust::ExtentSize { found })
        } else if self.local != digest([&identity.local]) {
            Err(Distrust::Local)
        } else if self.peers != digest(&identity.peers) {
            Err(Distrust::Peers)
        } else {
            Ok(())
        }
    }

    /// Are the words all there? What a killed process left in memory is lost only
    /// with the host.
    ///
    /// # Errors
    ///
    /// [`Distrust::HostRestarted`].
    pub fn check_boot(&self, boot_id: Uuid) -> Result<(), Distrust> {
        if self.clean || self.boot_id == boot_id {
            Ok(())
        } else {
            Err(Distrust::HostRestarted)
        }
    }
}

/// SHA-256 over names, each behind its length, so that no two lists are alike.
fn digest<'a>(names: impl IntoIterator<Item = &'a String>) -> [u8; 32] {
    let mut sum = Sha256::new();
    for name in names {
        sum.update((name.len() as u64).to_le_bytes());
        sum.update(name);
    }
    sum.finalize().into()
}

#[cfg(test)]
#[path = "header/tests.rs"]
mod tests;
