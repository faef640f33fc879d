//! The image's three users of a brick over Gluster's protocol, each by connections of its own:
//! the session ([`session_port`]), a healer ([`heal_peer`], [`heal_copies`]) and a comparison
//! ([`verify_brick`]).
//!
//! Here file operations of [`crate::gluster`] become what the image asks for; the traits are
//! the users' own, where tests put simulated bricks. No decision is taken here.

pub mod heal_copies;
pub mod heal_peer;
pub mod session_port;
pub mod verify_brick;
