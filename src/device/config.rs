//! How the operator wants the device to look, checked once at the start.

use super::error::DeviceError;
use super::limits::{MAX_QUEUE_SIZE, MAX_QUEUES, MIN_QUEUE_SIZE};

/// Largest offered number of data segments per request: what a ring of 128
/// entries, QEMU's default, carries beside the header and the status.
const MAX_SEGMENTS: u16 = 126;

/// The shape of the device, fixed for the life of a [`Server`](super::Server).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Request queues, each with a thread and an io_uring of its own; 1 to 64.
    pub num_queues: u16,
    /// Entries of the largest ring a front-end may set up; a power of two from 4 to 1024.
    pub queue_size: u16,
}

/// Where a queue's thread waits while none of its requests is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Where it is woken soonest on this kernel.
    #[default]
    Soonest,
    /// In its event loop, as on kernels before 6.15 (for tests).
    EventLoop,
}

impl Default for Config {
    /// Four queues, of any size: QEMU's is its `queue-size`, 128, or up to 11.0 whatever
    /// the driver likes, which is 1024 for Linux.
    fn default() -> Self {
        Self {
            num_queues: 4,
            queue_size: MAX_QUEUE_SIZE,
        }
    }
}

impl Config {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`DeviceError::Queues`] and [`DeviceError::QueueSize`], which name them.
    pub fn validate(&self) -> Result<(), DeviceError> {
        if !(1..=MAX_QUEUES).contains(&self.num_queues) {
            return Err(DeviceError::Queues {
                asked: self.num_queues,
            });
        }
        let sizes = MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE;
        if !sizes.contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            return Err(DeviceError::QueueSize {
                asked: self.queue_size,
            });
        }
        Ok(())
    }

    /// Data segments that one request may have, as offered to the guest. A ring
    /// without indirect descriptors must hold them and the header and the status.
    pub(super) fn seg_max(&self) -> u16 {
        self.queue_size.saturating_sub(2).min(MAX_SEGMENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_no_power_of_two_or_out_of_range_are_refused() {
        for queue_size in [0, 1, 2, 3, 100, 2048, u16::MAX] {
            let config = Config {
                queue_size,
                ..Config::default()
            };
            assert!(config.validate().is_err(), "{queue_size}");
        }
        for num_queues in [0, 65] {
            let config = Config {
                num_queues,
                ..Config::default()
            };
            assert!(config.validate().is_err(), "{num_queues}");
        }
    }

    #[test]
    fn a_request_with_all_segments_fits_the_smallest_ring() {
        for queue_size in [4, 64, 128, 1024] {
            let config = Config {
                num_queues: 1,
                queue_size,
            };
            config.validate().unwrap();
            assert!(config.seg_max() >= 1 && config.seg_max() + 2 <= queue_size);
        }
    }
}
