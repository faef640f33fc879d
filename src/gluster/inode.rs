//! What Gluster calls a file by, and what it tells about one.

use std::fmt;

use uuid::Uuid;

use super::xdr::{Decoder, Encoder, XdrError};

/// A file's identity in its volume, the same on every brick (the attribute
/// `trusted.gfid`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gfid(pub Uuid);

impl Gfid {
    /// The volume's root directory.
    pub const ROOT: Self = Self(Uuid::from_u128(1));
    /// No file; what a request carries where it names one in another way.
    pub const NONE: Self = Self(Uuid::nil());

    /// Its 16 bytes, as on the wire and in `trusted.gfid`.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link, which a lookup does not follow.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A file's attributes, as a brick tells them (`gfx_iattx` of GlusterFS
/// `rpc/xdr/src/glusterfs4-xdr.x`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iatt {
    /// The file's identity.
    pub gfid: Gfid,
    /// Which fields the brick filled in (`IATT_*` bits).
    pub flags: u64,
    /// Inode number as clients see it, made from the gfid.
    pub ino: u64,
    /// Device number on the brick.
    pub dev: u64,
    /// Device number, of a device.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// `statx` attributes.
    pub attributes: u64,
    /// `statx` attributes the file system knows.
    pub attributes_mask: u64,
    /// Last access, modification and status change, and creation: seconds and
    /// nanoseconds since the epoch.
    pub times: [(i64, u32); 4],
    /// Hard links, counting Gluster's own under `.glusterfs`.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
}

impl Iatt {
    /// The kind of file, from `mode`.
    pub fn file_type(&self) -> FileType {
        match self.mode & libc::S_IFMT {
            libc::S_IFREG => FileType::Regular,
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFLNK => FileType::Symlink,
            _ => FileType::Other,
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self, XdrError> {
        let gfid = Gfid(Uuid::from_bytes(from.fixed()?));
        let flags = from.u64()?;
        let ino = from.u64()?;
        let dev = from.u64()?;
        let rdev = from.u64()?;
        let size = from.u64()?;
        let blocks = from.u64()?;
        let attributes = from.u64()?;
        let attributes_mask = from.u64()?;
        let mut times = [(0, 0); 4];
        for (seconds, _) in &mut times {
            *seconds = from.i64()?;
        }
        for (_, nanoseconds) in &mut times {
            *nanoseconds = from.u32()?;
        }
        Ok(Self {
            gfid,
            flags,
            ino,
            dev,
            rdev,
            size,
            blocks,
            attributes,
            attributes_mask,
            times,
            nlink: from.u32()?,
            uid: from.u32()?,
            gid: from.u32()?,
            blksize: from.u32()?,
            mode: from.u32()?,
        })
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.fixed(self.gfid.as_bytes());
        for value in [
            self.flags,
            self.ino,
            self.dev,
            self.rdev,
            self.size,
            self.blocks,
            self.attributes,
            self.attributes_mask,
        ] {
            to.u64(value);
        }
        for (seconds, _) in self.times {
            to.i64(seconds);
        }
        for (_, nanoseconds) in self.times {
            to.u32(nanoseconds);
        }
        for value in [self.nlink, self.uid, self.gid, self.blksize, self.mode] {
            to.u32(value);
        }
    }
}
