//! Verifying an image: are the copies equal where nothing says that they are not?
//!
//! Called by `bypass-blk verify`. [`verify`] asks every data brick's process for
//! checksums, the local one's too, and compares them with those of one copy, the
//! *reference*. It changes nothing: what differs is told to the caller, also for a
//! repair ([`Repair`]). It finds no image, opens no session and reads no local file.
//!
//! There are two situations ([`Situation`]). An image that a session of this host
//! serves is verified while the guest writes, with the session's dirty map telling
//! what each peer misses. One that nobody serves is verified under the shared session
//! lock, and the marks tell which copies are stale.
//!
//! # Why a difference is one
//!
//! Sums are read under AFR's data lock of their bytes on every brick compared. An
//! ordinary client takes that lock everywhere before it writes anywhere, and gives it
//! back when all have answered: none of its writes is half done meanwhile. The guest's
//! direct writes take no lock, but each makes its extents dirty before it is
//! submitted, and only a healer makes them clean again, after it wrote to the peer
//! under that same lock. So an extent that was clean before the sums were asked for
//! and is clean after the answers was not touched in between, nor was a write in
//! flight there. Where the marks are what tells, they are read again, under the lock,
//! before anything is called a difference: a client's failed write leaves its mark
//! before it gives its lock back.
//!
//! * [`brick`]: what is asked of a brick. [`crate::image::brick_client::verify_brick`]: a real one.
//! * [`situation`]: what is known of who misses what.
//! * [`engine`]: which ranges are asked for when; `begin`: the reference; `locks`: AFR's
//!   lock on a range; `compare`: one locked range; `tally`: the account of every byte.
//! * [`report`]: what comes out. [`options`]: how it is done, and how far it is.

mod begin;
pub mod brick;
pub mod engine;
pub mod error;
mod holes;
mod locks;
pub mod options;
pub mod report;
pub mod situation;
mod tally;

#[cfg(test)]
mod tests;

pub use brick::{CopyMarks, VerifyBrick};
pub use engine::{Subject, verify};
pub use error::VerifyError;
pub use options::{Repair, VerifyOptions, VerifyProgress};
pub use report::{CopyReport, CopyVerdict, Differences, Report, VerifyRecord};
pub use situation::{Served, Situation};
