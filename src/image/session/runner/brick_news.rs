//! What the bricks' workers report to the session's thread: bricks that were lost, are back, or
//! are somebody else's.

use std::collections::BTreeSet;

use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::CopyState;
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::brick_worker::BrickReport;
use crate::image::session::state_machine::{Event, Phase};

use super::Runner;

impl Runner {
    pub(super) fn heard(&mut self, brick: usize, report: BrickReport) {
        let name = self.names.one(brick);
        match report {
            BrickReport::Lost(why) => {
                log::warn!("brick {name} lost: {why}");
                self.note(brick, |copy| {
                    copy.locked = false;
                    copy.why_away = Some(why);
                });
                self.lost(brick);
                if let Some(worker) = self.workers.get(brick) {
                    worker.loss_heard();
                }
            }
            BrickReport::Waiting(why) => {
                log::info!("brick {name} not joined yet: {why}");
                self.note(brick, |copy| copy.why_away = Some(why));
            }
            BrickReport::HealInTheWay => self.turn_heals_away(),
            BrickReport::Contended => self.contended = true,
            BrickReport::TakenByOther { holder, accuses } => {
                log::warn!("brick {name} is back, but locked by another session: {holder}");
                self.note(brick, |copy| {
                    copy.why_away = Some(format!("locked by {holder}"))
                });
                let accused = accuses.is_some_and(|accuses| accuses.contains(self.shape.local));
                if accused || !self.keeps_others_out() {
                    self.take_all(Event::TakenByOther { brick, accused });
                }
            }
            BrickReport::Rejoined { copies, .. } if copies.len() < self.files.len() => {
                if let Some(worker) = self.workers.get(brick) {
                    worker.drop_connection("the image has grown meanwhile".to_owned());
                }
            }
            BrickReport::Rejoined { copies, guarded } => self.rejoined(brick, copies, &guarded),
        }
    }

    /// Marks of one of several files are enough for nobody else to open the image, whatever is
    /// known of the files that are unmarked. (Of an image that is one file its machine knows.)
    fn keeps_others_out(&self) -> bool {
        let marked = |file: FileIndex| {
            let phase = self.phase(file);
            matches!(phase, Phase::Dirty | Phase::Unmarking { was_dirty: true })
        };
        !self.layout.is_whole() && self.layout.files().any(marked)
    }

    /// Every lock there is gone.
    pub(super) fn lost(&mut self, brick: usize) {
        for file in &mut self.files {
            file.guarded.remove(brick);
        }
        self.take_all(Event::Lost(brick));
    }

    fn rejoined(&mut self, brick: usize, copies: Vec<CopyState>, guarded: &BTreeSet<FileIndex>) {
        log::info!("brick {} is back and locked", self.names.one(brick));
        (self.on_return)();
        self.reached.insert(brick);
        self.note(brick, |known| {
            known.locked = true;
            known.why_away = None;
        });
        for file in guarded {
            self.file_mut(*file).guarded.insert(brick);
        }
        let files: Vec<_> = self.layout.files().zip(copies).collect();
        for (file, copy) in files {
            // To mark one file may have shown that the brick is gone again.
            if file != FileIndex::BASE && !self.held().contains(brick) {
                break;
            }
            self.file_rejoined(file, brick, copy);
        }
        self.show(brick);
        self.accuse_newcomers(BrickSet::only(brick));
        self.mark_debt();
        // It locked what was guarded when it was away.
        for file in guarded {
            if !self.file(*file).wants_guard {
                self.unguard(*file);
            }
        }
    }

    fn file_rejoined(&mut self, file: FileIndex, brick: usize, copy: CopyState) {
        let accused = copy.accuses().contains(self.shape.local);
        let marks_stand = self.debt.as_ref().is_none_or(|debt| debt.stands_on(&copy));
        self.check_size(brick, &copy);
        self.know(file, brick, Some(copy.pending));
        // Another brick's word counts more: it was not away. (Of a file that was never marked
        // they are asked before it is.)
        let asked = file == FileIndex::BASE || accused || self.file(file).is_hot();
        let accuser = asked.then(|| self.accuser_among_held(file)).flatten();
        let local_accused_by = accuser.or(accused.then_some(brick));
        let local_untouched = self.file(file).local.is_untouched();
        self.take(
            file,
            Event::Rejoined {
                brick,
                marks_stand,
                local_accused_by,
                local_untouched,
            },
        );
    }

    /// Marks can change on a brick that never went away, while another one did.
    pub(super) fn accuser_among_held(&mut self, file: FileIndex) -> Option<usize> {
        let copies = self.read_held(file).into_iter();
        let mut accusers = copies.filter(|(_, copy)| copy.accuses().contains(self.shape.local));
        accusers.next().map(|(brick, _)| brick)
    }
}
