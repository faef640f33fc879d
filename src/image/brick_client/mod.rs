//! The image's three users of a brick over Gluster's protocol, each by connections of its own:
//! the session ([`session_port`]), a healer ([`heal_peer`], [`heal_copies`]) and a comparison
//! ([`verify_brick`]).
//!
//! Here file operations of [`crate::gluster`] become what the image asks for; the traits are
//! the users' own, where tests put simulated bricks. What an error of a brick means for each of
//! them is said once ([`failure`]). No decision is taken here. Before any of them, the pieces of
//! an image in shards are looked up, and made where they are missing ([`shards`]).

mod brick_copy;
mod failure;
pub mod heal_copies;
pub mod heal_peer;
pub mod session_port;
pub mod session_record;
pub mod shards;
pub mod verify_brick;
