//! The session thread's part in an upgrade: it rests, with its locks and marks as they
//! are, so that the process that comes after this one can go on with the connections.
//!
//! Nothing is changed on any brick or on the disk: if there is no next process after
//! all, the session goes on.

use std::sync::mpsc::{self, Sender};

use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::KeptBrick;
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::data_lock::wait;
use crate::image::session::ending::KeptSession;
use crate::image::session::state_machine::Phase;

use super::Runner;

impl Runner {
    /// Rests until whoever asked lets go of what it was given, which it may do never.
    pub(super) fn rest(&mut self, answer: &Sender<Result<KeptSession, String>>) {
        let held = self.held();
        let (resting, over) = mpsc::channel();
        let kept = self.keep(held).map(|bricks| KeptSession {
            bricks,
            fence: self.fence,
            _resting: resting,
        });
        let rests = kept.is_ok();
        if answer.send(kept).is_ok() && rests {
            // Nothing is sent: the other end is dropped.
            let _ = over.recv();
        }
        for worker in held.iter().filter_map(|brick| self.workers.get(brick)) {
            let _ = worker.ask(|port| port.go_on()).wait();
        }
    }

    /// Only what the next process can open again for sure: else it would end the session.
    fn keep(&mut self, held: BrickSet) -> Result<Vec<Option<KeptBrick>>, String> {
        for file in self.layout.files() {
            self.rests(file, held)?;
        }
        // The next process would not know.
        self.vouch()?;
        if !self.shape.is_quorum(held) || !held.contains(self.shape.local) {
            return Err("this host's brick and a quorum of all must be held".to_owned());
        }
        if let Some(file) = self.accused_file(held) {
            let file = self.names_file(file);
            return Err(format!(
                "a brick says that the local copy misses data of {file}"
            ));
        }
        let asked: Vec<_> = self
            .workers
            .iter()
            .enumerate()
            .map(|(brick, worker)| {
                let asked = held.contains(brick);
                asked.then(|| worker.ask(|port| port.keep()))
            })
            .collect();
        // All of them have answered before it is decided.
        let kept: Vec<_> = asked.into_iter().map(|asked| asked.map(wait)).collect();
        let kept = kept.into_iter().enumerate();
        kept.map(|(brick, kept)| {
            let named = |error| format!("brick {}: {error}", self.names.one(brick));
            kept.transpose().map_err(named)
        })
        .collect()
    }

    /// Is a file in a state that the next process finds again by what stands on the bricks?
    fn rests(&self, file: FileIndex, held: BrickSet) -> Result<(), String> {
        let replica = self.file(file);
        match replica.machine.phase() {
            Phase::Unmarked | Phase::Dirty => {}
            Phase::Stopped(_) => return Err("the session has stopped".to_owned()),
            _ => return Err("the guest's writes wait for a quorum of bricks".to_owned()),
        }
        match replica.wants_guard && !replica.guarded.covers(held) {
            true => Err(format!(
                "heals are not kept from {} on every brick",
                self.names_file(file)
            )),
            false => Ok(()),
        }
    }

    /// A file of which a brick says that the local copy misses something. All of them are asked
    /// about, as the next process does when it opens the image.
    fn accused_file(&mut self, held: BrickSet) -> Option<FileIndex> {
        let overruled = |file: &FileIndex| !self.file(*file).machine.overruled().is_empty();
        if let Some(file) = self.layout.files().find(overruled) {
            return Some(file);
        }
        if self.accuser_among_held(FileIndex::BASE).is_some() {
            return Some(FileIndex::BASE);
        }
        if self.layout.is_whole() {
            return None;
        }
        let (count, local) = (self.layout.len() as u32, self.shape.local);
        let ask = |brick: usize| {
            let worker = self.workers.get(brick)?;
            Some(worker.ask(move |port| port.look_at_all(count)))
        };
        let asked: Vec<_> = held.iter().filter_map(ask).collect();
        // A brick that does not answer is not kept.
        let told: Vec<_> = asked
            .into_iter()
            .filter_map(|asked| wait(asked).ok())
            .collect();
        let accused = |file: &FileIndex| {
            let copies = told.iter().filter_map(|copies| copies.get(file.at()));
            copies
                .into_iter()
                .any(|copy| copy.accuses().contains(local))
        };
        self.layout.files().find(accused)
    }
}
