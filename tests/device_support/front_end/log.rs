//! The log of dirty pages that a front-end hands over for a migration.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use super::FrontEnd;

/// The log of dirty pages of a migration.
pub struct Log {
    pub file: File,
    pub len: u64,
}

impl Log {
    /// A log for `pages` pages.
    pub fn new(pages: u64) -> Self {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages / 8).unwrap();
        let len = pages / 8;
        Self { file, len }
    }

    fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.len,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn has(&self, page: u64) -> bool {
        self.bytes()[page as usize / 8] & 1 << (page % 8) != 0
    }
}

impl FrontEnd {
    pub fn set_log(&self, log: &Log) -> vhost::Result<()> {
        self.vhost.set_log_base(0, Some(log.region()))
    }

    /// Switches the logging of data and of the used rings, at their addresses.
    pub fn set_logging(&mut self, on: bool) {
        self.set_logging_of_data(on);
        self.log_used_at = on.then_some(0);
        for queue in 0..self.queues.len() {
            self.set_vring_addr(queue);
        }
    }

    pub fn set_logging_of_data(&mut self, on: bool) {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        let features = self.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = features | if on { log_all } else { 0 };
        let offered = self.vhost.get_features().unwrap();
        self.vhost.set_features(offered & features).unwrap();
    }
}
