//! What is shared with the front-end so that others can go on where we stop: the record of
//! requests in flight and the log of written pages of a migration.

pub mod dirty_log;
pub mod inflight;
pub mod log_switch;
pub mod mapping;
