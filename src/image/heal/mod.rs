//! Healing one peer's copy of an image: the extents that the dirty map says it
//! misses are copied from the local file.
//!
//! A [`Follower`] heals one image for as long as its session lasts: one [`Engine`] a
//! peer, each on a thread of its own, so that a peer that is away or slow holds up
//! no other. The engine follows the protocol of [`super::dirty_map`] and AFR's locking.
//! Nothing here removes marks or opens images; that is the session's, which is only
//! spoken to ([`link`]).
//!
//! * [`follow`]: healing as long as a session lasts. [`copies`]: where the copies are.
//! * [`link`]: what a healer and its session tell each other.
//! * [`peer`]: what is asked of a peer. [`crate::image::brick_client::heal_peer`]: a brick as such a peer.
//! * [`engine`]: passes over the map; [`pass`]: what one is told and tells;
//!   `under_lock`: what keeps others from the peer's copy meanwhile.
//! * [`plan`]: which bytes go together; `copy`: one stretch of them; `holes`: what is
//!   equal without a look at it.
//! * [`local`]: the files of the local copy, read and summed. `ring`: many reads at one time.
//! * [`throttle`]: the bandwidth limit. [`backoff`]: a lower one for the guest's sake.
//! * [`progress`]: what a status shows.

pub mod backoff;
pub mod copies;
mod copy;
pub mod engine;
pub mod error;
pub mod follow;
mod holes;
pub mod link;
pub mod local;
pub mod pass;
pub mod peer;
pub mod plan;
pub mod progress;
mod ring;
pub mod throttle;
mod under_lock;

#[cfg(test)]
mod tests;

pub use copies::Copies;
pub use engine::Engine;
pub use error::HealError;
pub use follow::{FollowEnd, FollowError, FollowOptions, FollowSnapshot, Follower, Stopper};
pub use link::{
    HealReport, HealState, Hint, Job, LinkError, Obstacle, PeerReport, SessionLink, Unmarked, Wait,
};
pub use local::LocalFiles;
pub use pass::{Pass, PassEnd, PassOptions};
pub use peer::{Answer, HealPeer, PeerError};
pub use progress::{Figures, Progress};
pub use throttle::Throttle;
