//! The files behind the device: one, or several that each hold a piece of the disk.
//!
//! The caller opens them; this module asks the kernel for their access mode and
//! alignments, refuses what cannot be served, and knows which file has which byte. It does
//! no guest I/O.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::examine::{Alignment, Examined, Nature};
use super::table::Table;
use crate::device::error::DeviceError;
use crate::device::limits::{MAX_FILES, SERIAL_LEN};

/// The piece of a disk that is one whole file.
const WHOLE: u64 = u64::MAX;

/// Local files, offered as a disk.
#[derive(Debug)]
pub struct Disk {
    table: Arc<Table>,
    /// Bytes of the disk in each file but the last; [`WHOLE`]: there is one file, which
    /// has all of them.
    piece: u64,
    size: AtomicU64,
    read_only: bool,
    serial: [u8; SERIAL_LEN],
    alignment: Alignment,
    cluster: u32,
}

/// Where a byte of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSpot {
    /// The file's index.
    pub file: u32,
    /// The byte in it.
    pub offset: u64,
    /// Bytes from there to the end of its piece.
    pub left: u64,
}

impl Disk {
    /// Examines `file`, which must be open with `O_DIRECT`, for reading and
    /// writing or for reading only. Opened for reading only, the disk is
    /// offered as read-only. `serial` is what the guest sees, at most 20 bytes.
    ///
    /// # Errors
    /// Not a regular file; a size that is not a positive multiple of the block
    /// size; no direct I/O in blocks of 512 to 4096 bytes; a serial too long.
    pub fn new(file: File, serial: &str) -> Result<Self, DeviceError> {
        let examined = regular(&file)?;
        let alignment = examined.alignment(&file)?;
        let size = examined.size;
        Self::made(vec![file], WHOLE, size, serial, &examined, alignment)
    }

    /// A disk of `size` bytes whose byte *n* is byte *n* % `piece` of file *n* / `piece`. The
    /// files must be open with `O_DIRECT`, all for reading and writing or all for
    /// reading only, and on one file system.
    ///
    /// A file may be shorter than its piece, empty too: what is beyond its end reads as zeros, and
    /// a write makes it longer. Its size is not looked at again, so nobody else may make it
    /// shorter. In a read-only disk `/dev/null` (opened as it is, without `O_DIRECT`)
    /// stands for a file that is not there, but for the first one.
    ///
    /// Nothing is known of what was written to the files before, so the first flush makes all of
    /// them durable; see [`Self::all_synced`].
    ///
    /// # Errors
    /// As [`Self::new`]; a `piece` that is not a positive multiple of the block size; not as many
    /// files as `size` takes; files that differ in access mode or file system.
    pub fn over_files(
        files: Vec<File>,
        piece: u64,
        size: u64,
        serial: &str,
    ) -> Result<Self, DeviceError> {
        let first = files.first().ok_or(DeviceError::Files {
            files: 0,
            wanted: size.div_ceil(piece.max(1)),
        })?;
        let examined = regular(first)?;
        let mut longest = (examined, first);
        for (index, file) in files.iter().enumerate().skip(1) {
            let other = checked(index, file, &examined)?;
            if other.size > longest.0.size {
                longest = (other, file);
            }
        }
        // A kernel that has to be asked by reading answers where there is something to read.
        let alignment = longest.0.alignment(longest.1)?;
        if piece == 0 || piece == WHOLE || !piece.is_multiple_of(alignment.offset.into()) {
            return Err(DeviceError::Piece {
                piece,
                block: alignment.offset,
            });
        }
        fits(files.len(), piece, size)?;
        Self::made(files, piece, size, serial, &examined, alignment)
    }

    fn made(
        files: Vec<File>,
        piece: u64,
        size: u64,
        serial: &str,
        first: &Examined,
        alignment: Alignment,
    ) -> Result<Self, DeviceError> {
        whole_blocks(size, alignment.offset)?;
        Ok(Self {
            table: Arc::new(Table::new(files, !first.read_only)),
            piece,
            size: AtomicU64::new(size),
            read_only: first.read_only,
            serial: serial_field(serial)?,
            alignment,
            cluster: first.cluster(alignment.offset),
        })
    }

    /// For the caller who has had all the files synced since anybody else could write to them,
    /// the process before included: what was written before is durable, and the first flush need
    /// not see to it.
    #[must_use]
    pub fn all_synced(self) -> Self {
        let mut from = 0;
        while let Some((file, covered)) = self.table.unsynced(from) {
            self.table.synced(file, covered);
            from = file + 1;
        }
        self
    }

    /// Size in bytes; a multiple of the block size.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The disk has grown to `size` bytes, a multiple of the block size, in the files that it
    /// has: requests may go that far from now on. A disk never shrinks.
    pub(in crate::device) fn grow(&self, size: u64) {
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    /// The disk has grown to `size` bytes, for which it needs these `files` besides. The
    /// queues take them as they come; the first flush syncs them. One call at a time.
    ///
    /// # Errors
    /// As of [`Self::over_files`]; nothing has changed then.
    pub(in crate::device) fn grow_by(
        &self,
        files: Vec<File>,
        size: u64,
    ) -> Result<(), DeviceError> {
        let have = self.table.len();
        let first = self.table.with_file(0, Examined::new);
        let first = first.ok_or(DeviceError::NotRegular)??;
        for (index, file) in files.iter().enumerate() {
            checked(have + index, file, &first)?;
        }
        whole_blocks(size, self.alignment.offset)?;
        fits(have + files.len(), self.piece, size)?;
        if !files.is_empty() {
            self.table.append(files, !self.read_only);
        }
        // After the files: who sees the size finds them.
        self.grow(size);
        Ok(())
    }

    /// Whether the disk is one file, all of it. Where that ends the disk ends.
    pub(in crate::device) fn is_whole(&self) -> bool {
        self.piece == WHOLE
    }

    /// Where byte `offset` of the disk is.
    pub(in crate::device) fn spot(&self, offset: u64) -> FileSpot {
        if self.piece == WHOLE {
            return FileSpot {
                file: 0,
                offset,
                left: WHOLE,
            };
        }
        let within = offset % self.piece;
        FileSpot {
            // At most MAX_FILES for every byte of the disk.
            file: u32::try_from(offset / self.piece).unwrap_or(u32::MAX),
            offset: within,
            left: self.piece - within,
        }
    }

    /// Whether the guest may not write.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What direct I/O on the files needs.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Bytes of the guest's logical block.
    pub fn block_size(&self) -> u32 {
        self.alignment.offset
    }

    /// Bytes of the file system's block: the unit in which holes are punched
    /// and that is best written as a whole. At least the block size.
    pub(in crate::device) fn cluster(&self) -> u32 {
        self.cluster
    }

    /// The serial, padded with zeros.
    pub(in crate::device) fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    /// The open files.
    pub(in crate::device) fn files(&self) -> &Arc<Table> {
        &self.table
    }
}

/// Examines a file that must be a regular one.
fn regular(file: &File) -> Result<Examined, DeviceError> {
    let examined = Examined::new(file)?;
    match examined.nature {
        Nature::Regular => Ok(examined),
        Nature::Null | Nature::Other => Err(DeviceError::NotRegular),
    }
}

/// Examines the file of this `index`, which must go with the `first` one.
fn checked(index: usize, file: &File, first: &Examined) -> Result<Examined, DeviceError> {
    let examined = Examined::new(file)?;
    match examined.nature {
        Nature::Null if first.read_only => return Ok(examined),
        Nature::Null | Nature::Other => return Err(DeviceError::NotRegular),
        Nature::Regular => {}
    }
    let same = examined.read_only == first.read_only && examined.file_system == first.file_system;
    match same {
        true => Ok(examined),
        false => Err(DeviceError::Unlike { index }),
    }
}

fn whole_blocks(size: u64, block: u32) -> Result<(), DeviceError> {
    match size != 0 && size.is_multiple_of(block.into()) {
        true => Ok(()),
        false => Err(DeviceError::Size { size, block }),
    }
}

/// Whether so many `files` are what `size` takes.
fn fits(files: usize, piece: u64, size: u64) -> Result<(), DeviceError> {
    let wanted = size.div_ceil(piece);
    match files as u64 == wanted && files <= MAX_FILES {
        true => Ok(()),
        false => Err(DeviceError::Files { files, wanted }),
    }
}

fn serial_field(serial: &str) -> Result<[u8; SERIAL_LEN], DeviceError> {
    let mut field = [0; SERIAL_LEN];
    field
        .get_mut(..serial.len())
        .ok_or(DeviceError::Serial { len: serial.len() })?
        .copy_from_slice(serial.as_bytes());
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::super::examine::probe;
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(size).unwrap();
        image
    }

    fn direct(image: &tempfile::NamedTempFile, write: bool) -> File {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(image.path())
            .unwrap()
    }

    #[test]
    fn the_probe_finds_what_the_kernel_tells() {
        let image = image(1 << 20);
        let disk = Disk::new(direct(&image, true), "").unwrap();
        let probed = disk.files().with_file(0, probe).unwrap();
        assert_eq!(probed.unwrap().offset, disk.block_size());
    }

    #[test]
    fn a_file_opened_for_reading_is_a_read_only_disk() {
        let image = image(1 << 20);
        assert!(Disk::new(direct(&image, false), "").unwrap().read_only());
        assert!(!Disk::new(direct(&image, true), "").unwrap().read_only());
    }

    #[test]
    fn sizes_that_are_no_whole_blocks_are_refused() {
        for size in [0, 511, 1000] {
            let refused = Disk::new(direct(&image(size), true), "");
            assert!(matches!(refused, Err(DeviceError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = File::open("/var/tmp").unwrap();
        assert!(matches!(
            Disk::new(folder, ""),
            Err(DeviceError::NotRegular)
        ));
    }

    #[test]
    fn a_serial_longer_than_its_field_is_refused() {
        let image = image(4096);
        assert!(Disk::new(direct(&image, true), "12345678901234567890").is_ok());
        assert!(matches!(
            Disk::new(direct(&image, true), "123456789012345678901"),
            Err(DeviceError::Serial { len: 21 })
        ));
    }
}
