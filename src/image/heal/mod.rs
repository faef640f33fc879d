//! Healing one peer's copy of an image: the extents that the dirty map says it
//! misses are copied from the local file.
//!
//! The healer ([`Engine`]) is called by whoever claimed [`super::dirty::Healer`],
//! one engine a peer, each on a thread of its own, so that a peer that is away or
//! slow holds up no other. It follows the protocol of [`super::dirty`] and AFR's
//! locking. It removes no marks, opens no image and reconnects to nobody: after a
//! lost connection the caller makes a new peer and a new engine.
//!
//! * [`peer`]: what is asked of a peer. [`gluster_peer`]: a brick as such a peer.
//! * [`engine`]: passes over the map; [`pass`]: what one is told and tells.
//! * [`plan`]: which bytes go together; `copy`: one stretch of them.
//! * [`local`]: reading and summing the local copy.
//! * [`link`]: what a healer and its session tell each other.
//! * [`throttle`]: the bandwidth limit. [`progress`]: what a status shows.

pub mod clock;
mod copy;
pub mod engine;
pub mod error;
pub mod gluster_peer;
pub mod link;
pub mod local;
pub mod pass;
pub mod peer;
pub mod plan;
pub mod progress;
pub mod throttle;

#[cfg(test)]
mod tests;

pub use clock::{Clock, SystemClock};
pub use engine::Engine;
pub use error::HealError;
pub use gluster_peer::GlusterPeer;
pub use link::{HealReport, HealState, Hint, Job, LinkError, PeerReport, SessionLink, Unmarked};
pub use pass::{Options, Pass, PassEnd, Settled};
pub use peer::{Answer, HealPeer, PeerError};
pub use progress::{Figures, Progress};
pub use throttle::Throttle;
