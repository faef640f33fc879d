//! The session's thread when it panics, and a session that ends in any other way than it
//! should: the image is given back all the same.
//!
//! What the guest has begun may still land, so the locks stay until the session's owner has
//! drained the device and closes it. Nothing is asked of the machine any more, whose state
//! may be half of a step. And the dirty map is not closed clean: whoever opens it next
//! finds it as after a kill, with everything in it that was begun.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::image::session::ending::Ending;
use crate::image::session::input::Input;
use crate::image::session::state_machine::{GateState, Phase, StopReason};

use super::Runner;

impl Runner {
    /// Runs until the session is closed, whatever comes.
    pub fn run(mut self, events: &Receiver<Input>) -> Ending {
        // Nothing that may be half done is looked at afterwards.
        let run = catch_unwind(AssertUnwindSafe(|| self.run_until_closed(events)));
        run.unwrap_or_else(|_| {
            self.wait_for_close(events);
            Ending::Behind
        })
    }

    /// Writes wait meanwhile. Whoever asks for something hears that nobody is there.
    fn wait_for_close(&mut self, events: &Receiver<Input>) {
        self.gate.load().set(GateState::Hold);
        self.note_broken();
        let mut told = false;
        loop {
            // It may be closed already: then nobody need be told.
            let limit = (!told).then_some(Duration::ZERO);
            match self.threads.receive(events, limit) {
                Ok(Input::Close) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    log::error!("the session's thread panicked: the daemon must end");
                    (self.on_stop)(StopReason::Panicked);
                    told = true;
                }
            }
        }
    }

    fn note_broken(&self) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        snapshot.phase = Phase::Stopped(StopReason::Panicked);
        drop(snapshot);
        self.bell.ring();
    }
}

impl Drop for Runner {
    /// If the image is not given back yet, the session never began to run, or its thread
    /// panicked.
    fn drop(&mut self) {
        self.bell.end();
        if self.given_back {
            return;
        }
        if let Some(debt) = &self.debt {
            debt.map().release();
        }
        self.let_go("the session is over");
    }
}
