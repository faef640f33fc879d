//! The session thread's part in keeping few files marked, of an image that is many: whatever
//! is marked when this host crashes has to be compared as a whole.
//!
//! A file cools down when nobody writes to it any more and its peers miss nothing: its marks
//! go, and with them the lock that keeps heals from it. The next write makes it hot again.
//! More than the operator's limit are hot only while they cannot be healed, or the guest writes
//! to more at one time: it is never made to wait for that.

use std::time::Duration;

use super::Runner;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_set::BrickSet;
use crate::image::session::state_machine::Phase;

/// How often it is looked whether a file is quiet; it is when it was so twice.
const PERIOD: Duration = Duration::from_secs(2);

impl Runner {
    /// When the next look is due, by the clock of the threads.
    pub(super) fn next_cooling(&self) -> Option<Duration> {
        let marked = self.marked_files().next().is_some();
        (!self.layout.is_whole() && !self.stopped && marked).then_some(self.cooled_at + PERIOD)
    }

    fn marked_files(&self) -> impl Iterator<Item = FileIndex> {
        let files = self.layout.files();
        files.filter(|file| self.phase(*file) == &Phase::Dirty)
    }

    /// Removes the marks of files that are quiet.
    pub(super) fn cool_down(&mut self) {
        self.cooled_at = self.threads.now();
        let marked: Vec<_> = self.marked_files().collect();
        let many = marked.len() > self.hot_files;
        let mut quiet = Vec::new();
        for file in marked {
            let clean = self.misses_nothing(file);
            let was_clean = std::mem::replace(&mut self.file_mut(file).quiet, clean);
            if clean && (was_clean || many) {
                quiet.push(file);
            }
        }
        if quiet.is_empty() {
            return;
        }
        self.renew_times();
        for file in quiet {
            self.unmark_file(file, BrickSet::EMPTY);
        }
    }

    /// No peer that is held misses anything of it.
    fn misses_nothing(&self, file: FileIndex) -> bool {
        let held = self.held();
        let behind = self.debt.as_ref().map(|debt| debt.behind_in(file));
        behind.is_some_and(|behind| !behind.iter().any(|peer| held.contains(peer)))
    }
}
