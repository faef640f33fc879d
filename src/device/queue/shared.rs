//! What the queues share: over all connections, and for one.

use std::sync::Arc;

use crate::device::cache_mode::CacheMode;
use crate::device::config::{Config, Idle};
use crate::device::io::disk::Disk;
use crate::device::shared_memory::inflight::Inflight;
use crate::device::shared_memory::log_switch::Logging;
use crate::device::size_change::SizeChanges;
use crate::device::space::Space;
use crate::device::stats::Stats;

/// What all queues share.
pub struct Shared<G> {
    /// What is served.
    pub disk: Disk,
    /// Who is asked before a change.
    pub gate: Arc<G>,
    /// The device's shape.
    pub config: Config,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// How the front-end hears of a new size.
    pub size_changes: SizeChanges,
    /// What is known of a full disk.
    pub space: Arc<Space>,
    /// Whether changes must be durable when they are answered.
    pub cache: Arc<CacheMode>,
}

/// What one connection has for each of its queues.
pub struct Connection {
    /// The record of requests in flight.
    pub inflight: Arc<Inflight>,
    /// What is logged for a migration.
    pub logging: Arc<Logging>,
    /// Where the queues' threads wait while there is nothing to do.
    pub idle: Idle,
}
