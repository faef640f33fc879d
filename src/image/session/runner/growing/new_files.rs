//! The pieces that an image has when it has grown: they are empty, and the session marks them
//! as any other when the guest writes there.

use crate::image::layout::{FileIndex, Layout};
use crate::image::replica::brick_port::{BrickPort, CopyState, FileCopies, PortError};
use crate::image::replica::data_lock::wait;
use crate::image::session::extension::Extension;
use crate::image::session::resize::ResizeError;
use crate::image::session::state_machine::Machine;

use crate::image::session::runner::{FileReplica, Runner};

/// See the module.
pub(super) struct NewFiles {
    /// All files, those of before among them.
    pub(super) layout: Layout,
    /// The new ones, in the layout's order.
    pub(super) files: Vec<FileReplica>,
    /// What the bricks say of them.
    pub(super) copies: Vec<FileCopies>,
}

impl Runner {
    /// Looks at new files, and at the last one of before, which is to become longer, on all
    /// bricks. One that lacks a file is given up: it was away when that was made.
    pub(super) fn look_at_new(&mut self, extension: Extension) -> Result<NewFiles, ResizeError> {
        let Extension { layout, watches } = extension;
        let before = self.layout.len();
        let mut new = NewFiles {
            layout,
            files: Vec::new(),
            copies: vec![vec![None; self.shape.bricks]; watches.len()],
        };
        if self.layout.is_whole() {
            return Ok(new);
        }
        for (brick, answer) in self.look_on_each(&new.layout, before) {
            match answer {
                Ok(copies) => {
                    self.refuse_what_is_there(brick, before, &copies)?;
                    let copies = copies.into_iter().skip(1);
                    for (file, copy) in new.copies.iter_mut().zip(copies) {
                        file[brick] = Some(copy);
                    }
                }
                Err(error) => self.give_up(brick, "looking at new shards", &error),
            }
        }
        for (watch, copies) in watches.into_iter().zip(&new.copies) {
            let machine = Machine::new(self.shape, self.held());
            new.files
                .push(FileReplica::new(machine, watch, copies, false));
        }
        Ok(new)
    }

    fn look_on_each(
        &self,
        layout: &Layout,
        before: usize,
    ) -> Vec<(usize, Result<Vec<CopyState>, PortError>)> {
        let files = before.saturating_sub(1) as u32..layout.len() as u32;
        let ask = |brick: usize| {
            let (worker, layout, files) = (self.workers.get(brick)?, layout.clone(), files.clone());
            let look = move |port: &mut dyn BrickPort| {
                port.extend(&layout);
                let look = |file| {
                    port.select(FileIndex(file));
                    port.look()
                };
                files.map(look).collect::<Result<Vec<_>, _>>()
            };
            Some((brick, worker.ask(look)))
        };
        let asked: Vec<_> = self.held().iter().filter_map(ask).collect();
        let answers = asked
            .into_iter()
            .map(|(brick, answer)| (brick, wait(answer)));
        answers.collect()
    }

    /// What is new reads as zeros. Something may be left there of a larger image that was
    /// made smaller through a mount.
    fn refuse_what_is_there(
        &self,
        brick: usize,
        before: usize,
        copies: &[CopyState],
    ) -> Result<(), ResizeError> {
        let files = (before.saturating_sub(1) as u32..).map(FileIndex);
        for (file, copy) in files.zip(copies) {
            let range = self.layout.range(file);
            if copy.size > range.end - range.start {
                return Err(ResizeError::Leftover {
                    file: file.0,
                    brick: self.names.one(brick),
                });
            }
            if copy.accuses().contains(self.shape.local) {
                let (file, brick) = (file.0, self.names.one(brick));
                let why = format!("{brick} says that shard {file} misses data here");
                return Err(ResizeError::NotNow(why));
            }
        }
        Ok(())
    }
}
