//! bypass-blk serves a virtual machine's disk image from the local brick of a
//! GlusterFS replica volume.
//!
//! * [`gluster`] speaks Gluster's wire protocol to glusterd and to bricks. It
//!   knows nothing of virtual machines.
//! * [`device`] is the vhost-user-blk device over one local file. It knows
//!   nothing of Gluster.
//! * [`image`] owns one image: which copy is fresh, who may write, what must be
//!   marked. It knows nothing of virtio.
//! * [`control`] is the control socket, the status report and the metrics.
//! * [`daemon`] puts them together: the processes that run for long.
//! * [`cli`] is the command line, one file per command.
//!
//! Each imports only from above it in this list, and of [`device`] the image needs one trait;
//! docs/ARCHITECTURE.md has the table, `tests/house.rs` holds it.

pub mod cli;
pub mod control;
pub mod daemon;
pub mod device;
pub mod gluster;
pub mod image;
