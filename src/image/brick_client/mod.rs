//! ROOM

pub mod heal_copies;
pub mod heal_peer;
pub mod session_port;
pub mod verify_brick;
