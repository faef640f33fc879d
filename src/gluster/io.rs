//! The bytes of a brick's files: read, written, compared, punched; their times, and what else is counted.
//!
//! By gfid alone, through the anonymous file descriptor, so nothing is opened or
//! left open; except many writes, for which the brick would open and close its file
//! again and again. What moves bytes also comes as `start_…`, so that many can be on
//! their way at one time.

use std::time::Duration;

use super::brick::{Brick, Operation};
use super::dict::{Dict, Value};
use super::error::{BrickError, Errno, ProtocolError};
use super::fops::{InFlight, RemoteFd, XATTROP, by_fd, by_gfid, operation};
use super::inode::{Gfid, Iatt};
use super::xdr::{Decoder, Encoder};

pub use super::connection::MAX_BATCH;

/// The most bytes of one read, write or checksum.
pub const MAX_IO: usize = 1 << 20;

/// The longest strong checksum in bytes (SHA-256's).
const MAX_CHECKSUM: usize = 32;

const READ: Operation = operation(12, "READ");
const WRITE: Operation = operation(13, "WRITE");
const RCHECKSUM: Operation = operation(37, "RCHECKSUM");
const DISCARD: Operation = operation(45, "DISCARD");
const ZEROFILL: Operation = operation(46, "ZEROFILL");
const SEEK: Operation = operation(48, "SEEK");
const FTRUNCATE: Operation = operation(24, "FTRUNCATE");
const SETATTR: Operation = operation(38, "SETATTR");

/// What of the attributes SETATTR sets: `GF_SET_ATTR_ATIME` and `GF_SET_ATTR_MTIME` of
/// `libglusterfs/src/glusterfs/xlator.h`.
const ACCESS_AND_MODIFICATION: u32 = 0x10 | 0x20;

/// A brick's checksum of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The rolling checksum.
    pub weak: u32,
    /// The strong one: of the range, or of the part of it before the file's end.
    pub strong: StrongChecksum,
}

/// A strong checksum, by the algorithm of the volume's option
/// `storage.fips-mode-rchecksum`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StrongChecksum {
    /// The option is on, as by default: SHA-256.
    Sha256([u8; 32]),
    /// The option is off: MD5.
    Md5([u8; 16]),
}

/// What [`Brick::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that is allocated.
    Data,
    /// The next hole; the file's end is one.
    Hole,
}

impl Brick {
    /// Reads up to `length` bytes (at most [`MAX_IO`]) at byte `offset`; fewer at
    /// the file's end.
    pub fn read(&self, gfid: Gfid, offset: u64, length: usize) -> Result<Vec<u8>, BrickError> {
        self.start_read(gfid, offset, length)?.wait()
    }

    /// Begins a [`Brick::read`].
    pub fn start_read(
        &self,
        gfid: Gfid,
        offset: u64,
        length: usize,
    ) -> Result<InFlight<Vec<u8>>, BrickError> {
        let length = self.io_length(READ, length)?;
        let mut arguments = by_gfid(gfid);
        arguments.u64(offset).u32(length).u32(0);
        Dict::new().encode(&mut arguments);
        self.begin(READ, arguments, &[], move |_, results| {
            let _iatt = Iatt::decode(results)?;
            let size = results.u32()?;
            if size > length {
                return Err(ProtocolError::LongRead { size, length });
            }
            let _xdata = Dict::decode(results)?;
            match results.rest().get(..size as usize) {
                Some(bytes) => Ok(bytes.to_vec()),
                None => Err(ProtocolError::Missing(format!("{size} bytes of data"))),
            }
        })
    }

    /// Writes `data` (at most [`MAX_IO`] bytes) at byte `offset`, all of it.
    pub fn write(&self, gfid: Gfid, offset: u64, data: &[u8]) -> Result<(), BrickError> {
        let length = self.io_length(WRITE, data.len())?;
        let arguments = write_arguments(by_gfid(gfid), offset, length);
        self.begin(WRITE, arguments, data, written(length))?.wait()
    }

    /// Begins writes of an open file, each of at most [`MAX_IO`] bytes at a byte
    /// offset, at most [`MAX_BATCH`] of them; the brick carries them out in any order.
    /// They are sent before this returns, together, and all or none.
    pub fn start_writes(
        &self,
        fd: RemoteFd,
        writes: &[(u64, &[u8])],
    ) -> Result<Vec<InFlight<()>>, BrickError> {
        let mut each = Vec::with_capacity(writes.len());
        for (offset, data) in writes {
            let length = self.io_length(WRITE, data.len())?;
            let arguments = write_arguments(by_fd(fd), *offset, length);
            each.push((arguments.into_bytes(), *data));
        }
        let deadline = self.deadline();
        let pending = self.start_all(WRITE, &each, deadline)?.into_iter();
        let lengths = each.iter().map(|(_, data)| data.len() as u32);
        Ok(pending
            .zip(lengths)
            .map(|(call, length)| self.in_flight(WRITE, call, deadline, written(length)))
            .collect())
    }

    /// The brick's checksum of `length` bytes (at most [`MAX_IO`]) at `offset`.
    pub fn rchecksum(
        &self,
        gfid: Gfid,
        offset: u64,
        length: usize,
    ) -> Result<Checksum, BrickError> {
        self.start_rchecksum(gfid, offset, length)?.wait()
    }

    /// Begins a [`Brick::rchecksum`].
    pub fn start_rchecksum(
        &self,
        gfid: Gfid,
        offset: u64,
        length: usize,
    ) -> Result<InFlight<Checksum>, BrickError> {
        let length = self.io_length(RCHECKSUM, length)?;
        let mut arguments = by_gfid(gfid);
        arguments.u64(offset).u32(length).u32(0);
        Dict::new().encode(&mut arguments);
        self.begin(RCHECKSUM, arguments, &[], |_, results| {
            decode_checksum(results)
        })
    }

    /// Writes zeros; they stay allocated.
    pub fn zerofill(&self, gfid: Gfid, offset: u64, length: u64) -> Result<(), BrickError> {
        self.change_range(ZEROFILL, gfid, offset, length)
    }

    /// Punches a hole.
    pub fn discard(&self, gfid: Gfid, offset: u64, length: u64) -> Result<(), BrickError> {
        self.change_range(DISCARD, gfid, offset, length)
    }

    fn change_range(
        &self,
        operation: Operation,
        gfid: Gfid,
        offset: u64,
        length: u64,
    ) -> Result<(), BrickError> {
        let mut arguments = by_gfid(gfid);
        arguments.u64(offset).u64(length);
        Dict::new().encode(&mut arguments);
        self.run(operation, arguments, |_| Ok(()))
    }

    /// Makes the file `size` bytes long.
    pub fn ftruncate(&self, gfid: Gfid, size: u64) -> Result<(), BrickError> {
        let mut arguments = by_gfid(gfid);
        arguments.u64(size);
        Dict::new().encode(&mut arguments);
        self.run(FTRUNCATE, arguments, |_| Ok(()))
    }

    /// Sets the times of last access and modification, since the epoch, in
    /// `trusted.glusterfs.mdata` too, where the volume has that.
    pub fn set_times(&self, gfid: Gfid, time: Duration) -> Result<(), BrickError> {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let attributes = Iatt {
            times: [(seconds, time.subsec_nanos()); 4],
            ..Iatt::default()
        };
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes());
        attributes.encode(&mut arguments);
        arguments.u32(ACCESS_AND_MODIFICATION);
        Dict::new().encode(&mut arguments);
        self.run(SETATTR, arguments, |_| Ok(()))
    }

    /// Adds to the four 64-bit numbers of an attribute, in one step (`GF_XATTROP_ADD_ARRAY64`,
    /// `libglusterfs/src/glusterfs/glusterfs.h`).
    pub fn xattrop_add_64(&self, gfid: Gfid, key: &str, add: [i64; 4]) -> Result<(), BrickError> {
        const ADD_ARRAY_64: u32 = 1;
        let mut numbers = Dict::new();
        let bytes = add.iter().flat_map(|number| number.to_be_bytes());
        numbers.set(key, Value::Bytes(bytes.collect()));
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes()).u32(ADD_ARRAY_64);
        numbers.encode(&mut arguments);
        Dict::new().encode(&mut arguments);
        self.run(XATTROP, arguments, |_| Ok(()))
    }

    /// The next data or hole at or after byte `offset`, if there is one.
    pub fn seek(&self, gfid: Gfid, offset: u64, to: SeekTo) -> Result<Option<u64>, BrickError> {
        let mut arguments = by_gfid(gfid);
        arguments.u64(offset).i32(match to {
            SeekTo::Data => 0,
            SeekTo::Hole => 1,
        });
        Dict::new().encode(&mut arguments);
        let found = self.run(SEEK, arguments, |results| {
            let _xdata = Dict::decode(results)?;
            Ok(results.u64()?)
        });
        match found {
            Ok(offset) => Ok(Some(offset)),
            Err(error) if error.errno() == Some(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn io_length(&self, operation: Operation, length: usize) -> Result<u32, BrickError> {
        match u32::try_from(length) {
            Ok(short) if length <= MAX_IO => Ok(short),
            _ => Err(self.too_long(operation.name)),
        }
    }
}

fn write_arguments(mut arguments: Encoder, offset: u64, length: u32) -> Encoder {
    arguments.u64(offset).u32(length).u32(0);
    Dict::new().encode(&mut arguments);
    arguments
}

/// Were all `length` bytes written?
fn written(length: u32) -> impl FnOnce(u32, &mut Decoder<'_>) -> Result<(), ProtocolError> {
    move |written, _| match written == length {
        true => Ok(()),
        false => Err(ProtocolError::ShortWrite { written, length }),
    }
}

fn decode_checksum(results: &mut Decoder<'_>) -> Result<Checksum, ProtocolError> {
    let xdata = Dict::decode(results)?;
    let _flags = results.u32()?;
    let weak = results.u32()?;
    let strong = results.opaque(MAX_CHECKSUM)?;
    // The field has the longer length in both cases (posix_rchecksum).
    let sha256 = xdata.get("fips-mode-rchecksum").is_some();
    let strong = match (sha256, strong.first_chunk(), strong.first_chunk()) {
        (true, Some(sum), _) => StrongChecksum::Sha256(*sum),
        (false, _, Some(sum)) => StrongChecksum::Md5(*sum),
        _ => return Err(ProtocolError::Missing("the strong checksum".to_owned())),
    };
    Ok(Checksum { weak, strong })
}
