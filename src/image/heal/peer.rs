//! What the healer asks of one peer.
//!
//! The seam to Gluster: [`crate::image::brick_client::heal_peer`] implements it over the brick
//! protocol, tests put simulated bricks here. It decides nothing.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::gluster::StrongChecksum;
use crate::image::dirty_map::Distrust;
use crate::image::layout::FileIndex;
use crate::image::replica::holder::Holder;

use super::link::Obstacle;

/// One connection to one peer, for one image. Every call has a time limit of its
/// own. It is never renewed: once it broke, every call fails. So an answer to
/// [`HealPeer::fsync`] covers every write that was answered before, by the same
/// life of the brick's process.
///
/// Offsets are those of the disk. What one call is about lies in one file of the image's
/// layout.
///
/// With it comes the copy lock ([`crate::image::replica::copy_lock`]): taken before the first
/// call, given back by [`HealPeer::close`] or a drop at the latest. Whoever ends the
/// connection sees to it that every change was answered before, or that the
/// connection was broken anyway.
pub trait HealPeer: Send {
    /// `host:path`, for messages.
    fn name(&self) -> &str;

    /// Is the connection up, as far as known?
    fn is_connected(&self) -> bool;

    /// Ends the connection; locks held through it go.
    fn close(&self);

    /// The size in bytes of an image that is one file.
    ///
    /// # Errors
    /// See [`PeerError`], here and below.
    fn size(&self) -> Result<u64, PeerError>;

    /// The counter with which its brick accuses this very copy of the file that byte `at`
    /// lies in. The session stores its stamp there; another value says that somebody else has
    /// healed or marked it since.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn own_mark(&self, at: u64) -> Result<i32, PeerError>;

    /// Makes an image that is one file `size` bytes long; what is new reads as zeros.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn truncate(&self, size: u64) -> Result<(), PeerError>;

    /// Sends bytes for byte offsets, at most [`crate::gluster::MAX_BATCH`] pieces of at
    /// most [`crate::gluster::MAX_IO`] each. They are taken over before this returns, and
    /// all written when the answer is there. After an error nothing of it is under way
    /// that an answer can still be had for.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError>;

    /// Makes a range read as zeros, as a hole where the file system can.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError>;

    /// Where data may begin at or after a byte; what is before it reads as zeros. `None`:
    /// nowhere up to the end of the file that the byte lies in.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError>;

    /// The strong checksum of a range of at most [`crate::gluster::MAX_IO`] bytes. Behind
    /// the end of a file of several there are zeros.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError>;

    /// Makes everything durable in these files that was answered.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn fsync(&self, files: &BTreeSet<FileIndex>) -> Result<(), PeerError>;

    /// Queues for AFR's data lock on a range, for at most `limit` and until `stop` is
    /// set. `false`: somebody else has had it for that long, though the brick asked them
    /// to give way. Whatever is granted later is given back at once.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError>;

    /// Gives the lock on exactly that range back.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError>;
}

/// Something that was sent to a peer and is not answered yet.
#[must_use]
pub struct Answer<T>(Box<dyn FnOnce() -> Result<T, PeerError> + Send>);

impl<T> Answer<T> {
    /// An answer that `wait` waits for, for a limited time.
    pub fn new(wait: impl FnOnce() -> Result<T, PeerError> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits for it.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn wait(self) -> Result<T, PeerError> {
        (self.0)()
    }
}

/// Why a peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, a lost one, or no answer in time: whether the peer did it,
    /// or will do it yet, is unknown.
    #[error("{peer} is out of reach. Its brick process must run and the network to it be up")]
    Away {
        /// `host:path`.
        peer: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No connection, and none to be had before somebody changes something: its brick does
    /// not let this host in, or does not speak the protocol.
    #[error("{peer} cannot be used from this host. Waiting does not help, see the reason")]
    Unusable {
        /// `host:path`.
        peer: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It answered that it did not.
    #[error("{peer} refused. Look at the disk below that brick and at the brick's log")]
    Refused {
        /// `host:path`.
        peer: String,
        /// Its reason.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Where the peers are could not be learned.
    #[error("the layout of the volume {volume} could not be learned")]
    Layout {
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The bricks are not those that the session counts for.
    #[error("the volume's layout is not that of the dirty map {}: {reason}. Open the image anew", .map.display())]
    OtherMap {
        /// The map's file.
        map: PathBuf,
        /// What differs.
        reason: Distrust,
    },
    /// There is no such brick.
    #[error(
        "the replica set in volume {volume} has no brick with child index {child}. Open the image anew"
    )]
    NoBrick {
        /// The volume's name.
        volume: String,
        /// The child index.
        child: usize,
    },
    /// The session does not hold this peer now: what it may copy there, others may.
    #[error("{peer} is not held by this session now, but by {}. Copying begins when the session is back there", holder_name(.holder))]
    NotHeld {
        /// `host:path`.
        peer: String,
        /// Whose record is there, if a session's is.
        holder: Option<Holder>,
    },
    /// The copy lock is not free: the brick has not given up an earlier connection
    /// of the healer yet, or another session tries whether it may begin.
    #[error("{peer} still keeps the copy lock for an earlier connection. It goes with that")]
    CopyLocked {
        /// `host:path`.
        peer: String,
    },
    /// It has no such file, as after a replaced brick.
    #[error("{peer} has no file for the image. Let `gluster volume heal VOLUME` make it")]
    NoImage {
        /// `host:path`.
        peer: String,
    },
    /// It lacks a file of the image in shards.
    #[error(
        "{peer} has no file for shard {shard} of the image. Let `gluster volume heal VOLUME` make it"
    )]
    NoShard {
        /// `host:path`.
        peer: String,
        /// Which, as the last part of its name.
        shard: u32,
    },
    /// It was replaced or removed while the session had the image.
    #[error(
        "{peer} is no brick of the volume {volume} any more. Start the daemon anew, its guest may run on: then what came in its place is healed"
    )]
    Replaced {
        /// `host:path`.
        peer: String,
        /// The volume.
        volume: String,
    },
}

impl PeerError {
    /// What has to change before it is worth another attempt.
    pub fn obstacle(&self) -> Obstacle {
        match self {
            Self::NotHeld { .. } | Self::CopyLocked { .. } => Obstacle::Session,
            Self::Away { .. }
            | Self::Unusable { .. }
            | Self::Refused { .. }
            | Self::Layout { .. }
            | Self::OtherMap { .. }
            | Self::NoBrick { .. }
            | Self::NoImage { .. }
            | Self::NoShard { .. }
            | Self::Replaced { .. } => Obstacle::Peer,
        }
    }
}

fn holder_name(holder: &Option<Holder>) -> String {
    match holder {
        Some(holder) => format!("another one ({holder})"),
        None => "nobody".to_owned(),
    }
}
