//! What can go wrong in setting up or serving the device.
//!
//! A guest's bad request is not among these: it is answered in its status byte
//! and counted in the [statistics](super::Stats).

use std::io;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::limits::{
    MAX_ALIGNMENT, MAX_BODY, MAX_FDS, MAX_FILES, MAX_QUEUE_SIZE, MAX_QUEUES, MIN_QUEUE_SIZE,
    SECTOR, SERIAL_LEN,
};
use super::shared_memory::dirty_log::LogError;
use super::shared_memory::inflight::InflightError;
use super::shared_memory::mapping::MapError;

/// Why the device could not be made, or why serving a front-end ended badly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The opened file could not be examined.
    #[error("cannot examine the disk's file")]
    Examine(#[source] io::Error),
    /// Only regular files are served.
    #[error("the disk is not a regular file; give the path of an image file")]
    NotRegular,
    /// The size cannot be offered in whole blocks.
    #[error(
        "the disk's size of {size} bytes is not a positive multiple of its block size of {block} \
         bytes; grow the image to the next multiple"
    )]
    Size {
        /// Size of the file in bytes.
        size: u64,
        /// Bytes per block as the file needs them for direct I/O.
        block: u32,
    },
    /// A disk cannot be cut so.
    #[error("pieces of {piece} bytes are no positive multiple of the block size of {block} bytes")]
    Piece {
        /// Bytes of the disk in each file.
        piece: u64,
        /// Bytes per block as the files need them for direct I/O.
        block: u32,
    },
    /// A disk over several files has too few of them, or too many.
    #[error(
        "the disk takes {wanted} files, at most {MAX_FILES} are possible, and {files} were opened"
    )]
    Files {
        /// Files that were given.
        files: usize,
        /// Files that its size takes.
        wanted: u64,
    },
    /// The files of one disk are opened and stored alike.
    #[error(
        "file {index} of the disk is on another file system than file 0, or only one of them is \
         open for writing"
    )]
    Unlike {
        /// Which one, from 0 on.
        index: usize,
    },
    /// Direct I/O does not work, or needs what the device cannot give.
    #[error(
        "the file system does not take direct I/O in blocks of {SECTOR} to {MAX_ALIGNMENT} bytes \
         on this file; put the image on a file system that does (ext4, xfs)"
    )]
    NoDirectIo,
    /// virtio gives the serial a fixed field.
    #[error("the serial is {len} bytes long, at most {SERIAL_LEN} fit; shorten it")]
    Serial {
        /// Length of the refused serial in bytes.
        len: usize,
    },
    /// Number of queues out of range.
    #[error("{asked} queues asked for; 1 to {MAX_QUEUES} are possible")]
    Queues {
        /// The refused number.
        asked: u16,
    },
    /// Queue size out of range, or not a power of two.
    #[error(
        "queue size {asked} asked for; a power of two from {MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE} \
         is possible"
    )]
    QueueSize {
        /// The refused size.
        asked: u16,
    },
    /// io_uring or an event fd could not be had.
    #[error("cannot set up the I/O engine of a queue (is io_uring allowed on this host?)")]
    Engine(#[source] io::Error),
    /// The private socket between the relay and the protocol handler.
    #[error("cannot make the private socket of the vhost-user handler in the temporary folder")]
    Channel(#[source] io::Error),
    /// The protocol handler could not be started.
    #[error("cannot start the vhost-user handler")]
    Start(#[source] HandlerError),
    /// The connection itself failed.
    #[error("the connection to the front-end failed")]
    Connection(#[source] io::Error),
    /// The front-end closed the connection inside a message.
    #[error("the front-end closed the connection in the middle of a message")]
    HalfMessage,
    /// A message was begun, and its rest did not come.
    #[error(
        "the front-end sent part of a message and not the rest within {limit:?}, so its connection was closed for the next \
         one; a QEMU that stood still for so long connects again if its chardev has reconnect=1, from QEMU 9.2 on \
         reconnect-ms=1000"
    )]
    Stalled {
        /// How long it may take.
        limit: Duration,
    },
    /// Whoever is connected has not said anything complete.
    #[error(
        "whoever connected sent no message within {limit:?}, so the connection was closed for the next one. If that comes again \
         and again, it is no QEMU (`ss -xp` names it), or one before 9.1 that lost its daemon before its guest's driver had \
         begun: end that QEMU (docs/reconnect.md)"
    )]
    Silent {
        /// How long it may take.
        limit: Duration,
    },
    /// A message that no vhost-user front-end sends.
    #[error("the front-end announced a message of {len} bytes, at most {MAX_BODY} are allowed")]
    Oversized {
        /// Announced length of the message's body in bytes.
        len: u32,
    },
    /// More file descriptors with a message than any has, or than can be had.
    #[error(
        "the front-end sent a message with more than {MAX_FDS} file descriptors, or with more than \
         this process may open (its limit of open files)"
    )]
    TooManyFds,
    /// The payload or the files of a message are not what its kind has.
    #[error("the front-end's message {code} has the wrong payload or number of file descriptors")]
    Malformed {
        /// Number of the request.
        code: u32,
    },
    /// A message of a feature that the front-end did not accept before.
    #[error(
        "the front-end's message {code} needs the protocol feature {feature:?}, which it did not accept"
    )]
    NotNegotiated {
        /// Number of the request.
        code: u32,
        /// What it needs.
        feature: VhostUserProtocolFeatures,
    },
    /// The guest's driver uses more than this device offers.
    #[error(
        "the guest's driver uses features that this disk does not offer (bits {missing:#x}). A running guest needs a daemon \
         with the options and the version that it began with (--read-only is the usual difference): start that one, or \
         shut the guest down and start it again"
    )]
    Features {
        /// The bits that are not offered.
        missing: u64,
    },
    /// More queues are used than there are.
    #[error(
        "the front-end uses queue {asked}, and this disk has queues 0 to {}: give serve the --num-queues that QEMU has",
        .queues - 1
    )]
    NoSuchQueue {
        /// Index of the queue.
        asked: u32,
        /// Number of queues.
        queues: u16,
    },
    /// A ring is longer than allowed.
    #[error(
        "the front-end uses rings of {asked} entries, and this disk has at most {queue_size}: give serve a --queue-size of \
         at least {asked}, which the guest began with"
    )]
    RingSize {
        /// Entries of the ring.
        asked: u32,
        /// The limit.
        queue_size: u16,
    },
    /// A region of the guest's memory does not fit its file.
    #[error("the guest's memory cannot be mapped as the front-end describes it")]
    Memory(#[source] MapError),
    /// Memory for the record of requests in flight was refused.
    #[error("the front-end's record of requests in flight cannot be used")]
    Inflight(#[source] InflightError),
    /// A log of dirty pages was refused.
    #[error("the front-end's log of dirty pages cannot be used")]
    Log(#[source] LogError),
    /// The front-end broke the protocol.
    #[error("the front-end broke the vhost-user protocol")]
    Protocol(#[source] HandlerError),
    /// The protocol handler ended the connection without saying why.
    #[error("the vhost-user handler ended the connection; see the log for the reason")]
    HandlerGone,
}

/// An error of the protocol handler, whose own type is no [`std::error::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(vhost_user_backend::Error);

impl From<vhost_user_backend::Error> for HandlerError {
    fn from(error: vhost_user_backend::Error) -> Self {
        Self(error)
    }
}
