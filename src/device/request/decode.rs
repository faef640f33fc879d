//! What a request asks for: from the bytes of its header and ranges to a checked
//! [`Request`].
//!
//! Pure functions. Layout and status of each type: virtio 1.2, section 5.2.6.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::device::io::disk::Disk;
use crate::device::limits::SECTOR;

/// Bytes of a request's header: type, reserved, sector.
pub const HEADER_LEN: usize = 16;
/// Ranges that one discard or write-zeroes may name, as offered to the guest.
pub const MAX_RANGES: u32 = 16;
/// Bytes of one range: sector, number of sectors, flags.
pub const RANGE_LEN: usize = 16;
/// Largest range of a discard, in sectors: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Largest range of a write-zeroes, in sectors: 64 MiB, as it may have to be written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Failed, or must not be done.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The device does not know how.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What requests are checked against, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Size of the disk.
    pub size: u64,
    /// Block size; offsets and lengths are multiples of it.
    pub block: u32,
    /// Whether changes are refused.
    pub read_only: bool,
}

impl From<&Disk> for Geometry {
    fn from(disk: &Disk) -> Self {
        Self {
            size: disk.size(),
            block: disk.block_size(),
            read_only: disk.read_only(),
        }
    }
}

/// Part of the disk, in bytes; within it, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// What a range operation does with its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// The contents are of no interest any more.
    Discard,
    /// They become zeros.
    WriteZeroes {
        /// Space may be given back.
        unmap: bool,
    },
}

/// A request that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the device-writable data from the extent.
    Read(Extent),
    /// Put the device-readable data into the extent.
    Write(Extent),
    /// Make all completed writes durable.
    Flush,
    /// Put the serial into the device-writable data.
    GetId,
    /// The device-readable data holds this many bytes of ranges of a discard.
    Discard(usize),
    /// The same for a write-zeroes.
    WriteZeroes(usize),
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A type that is not offered.
    #[error("request type {0} is not offered")]
    Type(u32),
    /// A flag that is unknown, or not for this type.
    #[error("range flags {0:#x} are not offered")]
    Flags(u32),
    /// The extent is not of whole blocks, or is empty.
    #[error("sector {sector}, {len} bytes: not a positive number of whole blocks")]
    Block {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// The extent ends behind the disk.
    #[error("sector {sector}, {len} bytes: behind the end of the disk")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The data is no number of ranges up to the limit.
    #[error("{0} bytes of ranges")]
    Ranges(u64),
    /// A range longer than offered.
    #[error("a range of {0} sectors")]
    RangeLength(u32),
}

impl RequestError {
    /// The status that tells the guest.
    pub fn status(self) -> Status {
        match self {
            Self::Type(_) | Self::Flags(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U32,
    _reserved: U32,
    sector: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// Decides what the request with this header asks for. `readable` and
/// `writable` are the bytes of its data, header and status not counted.
///
/// # Errors
/// Why it is not done; [`RequestError::status`] is the answer to the guest.
pub fn parse(
    header: &[u8; HEADER_LEN],
    readable: u64,
    writable: u64,
    geometry: &Geometry,
) -> Result<Request, RequestError> {
    let header: &Header = zerocopy::transmute_ref!(header);
    let sector = header.sector.get();
    match header.kind.get() {
        VIRTIO_BLK_T_IN => extent(sector, writable, geometry).map(Request::Read),
        VIRTIO_BLK_T_OUT => {
            changes(geometry)?;
            extent(sector, readable, geometry).map(Request::Write)
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
        VIRTIO_BLK_T_DISCARD => {
            changes(geometry)?;
            ranges_len(readable).map(Request::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            changes(geometry)?;
            ranges_len(readable).map(Request::WriteZeroes)
        }
        other => Err(RequestError::Type(other)),
    }
}

/// Reads the ranges of a discard into `extents`; empty ranges are left out.
///
/// # Errors
/// The first range that must not be done: then none is.
pub fn parse_discard(
    bytes: &[u8],
    geometry: &Geometry,
    extents: &mut Vec<Extent>,
) -> Result<RangeKind, RequestError> {
    parse_ranges(bytes, geometry, extents, MAX_DISCARD_SECTORS, 0)?;
    Ok(RangeKind::Discard)
}

/// Reads the ranges of a write-zeroes into `extents`; empty ranges are left
/// out. Space is given back only if every range allows it.
///
/// # Errors
/// The first range that must not be done: then none is.
pub fn parse_write_zeroes(
    bytes: &[u8],
    geometry: &Geometry,
    extents: &mut Vec<Extent>,
) -> Result<RangeKind, RequestError> {
    let unmap_flag = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let common = parse_ranges(
        bytes,
        geometry,
        extents,
        MAX_WRITE_ZEROES_SECTORS,
        unmap_flag,
    )?;
    Ok(RangeKind::WriteZeroes {
        unmap: common & unmap_flag != 0,
    })
}

/// Returns the flags that all ranges have.
fn parse_ranges(
    bytes: &[u8],
    geometry: &Geometry,
    extents: &mut Vec<Extent>,
    max_sectors: u32,
    allowed_flags: u32,
) -> Result<u32, RequestError> {
    extents.clear();
    let mut common = allowed_flags;
    let (ranges, rest) = bytes.as_chunks::<RANGE_LEN>();
    if !rest.is_empty() {
        return Err(RequestError::Ranges(bytes.len() as u64));
    }
    for raw in ranges {
        let raw: &RawRange = zerocopy::transmute_ref!(raw);
        let flags = raw.flags.get();
        if flags & !allowed_flags != 0 {
            return Err(RequestError::Flags(flags));
        }
        common &= flags;
        let sectors = raw.sectors.get();
        if sectors > max_sectors {
            return Err(RequestError::RangeLength(sectors));
        }
        if sectors > 0 {
            let len = u64::from(sectors) * u64::from(SECTOR);
            extents.push(extent(raw.sector.get(), len, geometry)?);
        }
    }
    Ok(common)
}

fn changes(geometry: &Geometry) -> Result<(), RequestError> {
    if geometry.read_only {
        return Err(RequestError::ReadOnly);
    }
    Ok(())
}

fn ranges_len(bytes: u64) -> Result<usize, RequestError> {
    let limit = RANGE_LEN * MAX_RANGES as usize;
    usize::try_from(bytes)
        .ok()
        .filter(|&len| len > 0 && len <= limit && len.is_multiple_of(RANGE_LEN))
        .ok_or(RequestError::Ranges(bytes))
}

fn extent(sector: u64, len: u64, geometry: &Geometry) -> Result<Extent, RequestError> {
    let out_of_range = RequestError::OutOfRange { sector, len };
    let offset = sector.checked_mul(SECTOR.into()).ok_or(out_of_range)?;
    let block = u64::from(geometry.block);
    if len == 0 || !len.is_multiple_of(block) || !offset.is_multiple_of(block) {
        return Err(RequestError::Block { sector, len });
    }
    match offset.checked_add(len) {
        Some(end) if end <= geometry.size => Ok(Extent { offset, len }),
        _ => Err(out_of_range),
    }
}

#[cfg(test)]
mod tests;
