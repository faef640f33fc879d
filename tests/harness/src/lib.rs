//! Real Gluster clusters whose links can be cut, and real guests, on this one
//! machine.
//!
//! Called by the end-to-end tests of `bypass-blk` and by `qemu/demo`. It knows
//! nothing of `bypass-blk` itself: it only brings up what that program meets in
//! the field, and reads the results straight from the bricks.
//!
//! * [`Cluster`] is one network namespace per node, a `glusterd` in each, and a
//!   switch whose ports can be pulled; [`Volume`] is a volume on it, with its
//!   bricks, marks and copies.
//! * [`Guest`] is a QEMU guest (TCG) with a shell and fio, driven from outside.
//! * [`Run`] owns everything that must be gone afterwards, whatever happened.
//!
//! Everything needs root and Debian's packages; `tests/run` installs them.

mod agent;
pub mod bench;
mod cluster;
mod copies;
mod crash;
mod disk;
mod error;
mod fio;
mod guest;
mod guest_image;
mod heal;
mod marks;
mod mount;
mod network;
mod node;
mod place;
mod process;
pub mod progress;
mod qemu_version;
mod qmp;
mod run;
pub mod signals;
pub mod stats;
mod status;
mod volume;
mod wait;

pub use agent::{Agent, Job, Reply};
pub use cluster::Cluster;
pub use copies::Copies;
pub use disk::Disk;
pub use error::{Error, Result};
pub use fio::{FioJob, FioReport, FioStats, Pattern, Verify};
pub use guest::{Guest, GuestConfig};
pub use guest_image::{GuestImage, pack_program};
pub use heal::{HealBrick, HealInfo};
pub use marks::{Marks, Pending};
pub use mount::Mount;
pub use node::Node;
pub use place::Place;
pub use process::{Background, Output, finish, run_command};
pub use qmp::Qmp;
pub use run::Run;
pub use volume::{Brick, Fill, Volume, VolumeKind};
pub use wait::wait_until;
