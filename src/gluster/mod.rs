//! A client of glusterd and of Gluster's brick processes.
//!
//! It owns the wire: ONC RPC over TCP, Gluster's handshake and the file
//! operations of the brick protocol. The image session calls it to learn the
//! volume's layout, to lock, to mark and to copy. It knows nothing of virtual
//! machines, sessions or images, takes no decision about copies, and never
//! reconnects by itself: a [`Brick`] is one connection, and when that is gone
//! the caller makes a new one.
//!
//! From the wire upwards:
//!
//! * [`xdr`], [`record`], [`rpc`], [`notice`], [`dict`] — pure codecs, every length bounded;
//! * [`tls`] — certificates: what this host shows, and whom it believes;
//! * [`connection`] — one TCP connection with many calls in flight;
//! * [`glusterd`], [`volfile`], [`volume`] — what the volume looks like;
//! * [`brick`], [`fops`], [`entries`], [`io`], [`locks`], [`pending`] — what a brick can do.

pub mod brick;
pub mod connection;
pub mod dict;
pub mod entries;
pub mod error;
#[cfg(test)]
pub(crate) mod fake_peer;
pub mod fops;
pub mod glusterd;
pub mod inode;
pub mod io;
pub mod locks;
pub mod notice;
pub mod pending;
pub mod record;
pub mod rpc;
pub mod tls;
pub mod volfile;
pub mod volume;
pub mod xdr;

pub use brick::{Brick, INTERNAL_PID, Identity, KeptConnection};
pub use connection::{Disconnect, Timeouts};
pub use error::{BrickError, Errno, GlusterdError, ProtocolError};
pub use fops::{Entry, InFlight, OpenMode, RemoteFd, Space};
pub use glusterd::{Glusterd, VolumeInfo, VolumeState};
pub use inode::{FileType, Gfid, Iatt};
pub use io::{Checksum, MAX_BATCH, MAX_IO, SeekTo, StrongChecksum};
pub use locks::{ForeignLock, LockKind, LockOp, LockRange, Locked};
pub use pending::Pending;
pub use rpc::LkOwner;
pub use tls::{TlsError, TlsFiles};
pub use volume::{BrickFeatures, BrickSpec, ReplicaSet, VolfileError, Volume};
