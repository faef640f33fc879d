//! The vhost-user-blk device over one local file.
pub mod gate;
