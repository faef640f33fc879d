//! A connection to a simulated brick, as the healer calls it. Others act before each call, and
//! the fault that is due comes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::super::peer::{Answer, HealPeer, PeerError};
use super::super::KILLED;
use super::{Brick, Call, Fault, HEALER, State, away, data_from};
use crate::gluster::StrongChecksum;
use crate::image::layout::FileIndex;

/// Calls of others that a healer waits for a lock.
const PATIENCE: usize = 100;

pub struct SimPeer(Link);

/// What a connection and the answers it waits for have in common.
#[derive(Clone)]
struct Link {
    brick: Brick,
    connection: u64,
}

impl SimPeer {
    pub(super) fn new(brick: Brick, connection: u64) -> Box<Self> {
        Box::new(Self(Link { brick, connection }))
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link {
    /// Lets others act, then begins a call, unless a fault comes in between.
    fn call(&self, kind: Call) -> Result<MutexGuard<'_, State>, PeerError> {
        let hook = self.brick.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            *self.brick.hook.lock().unwrap() = Some(hook);
        }
        let mut state = self.brick.state();
        state.calls += 1;
        state.carry_out_some();
        if let Some((wanted, left, fault)) = state.fault
            && (wanted == Call::Any || wanted == kind)
        {
            state.fault = (left > 0).then(|| (wanted, left - 1, fault));
            if left == 0 {
                match fault {
                    Fault::PowerCut => state.power_cut(),
                    Fault::LostLink => state.break_off(),
                    Fault::Refuse => return Err(refused()),
                    Fault::HealerDies => {
                        state.break_off();
                        drop(state);
                        panic!("{}", KILLED);
                    }
                }
            }
        }
        match state.connection == self.connection {
            true if state.full && kind == Call::Write => {
                state.refusals += 1;
                Err(refused())
            }
            true => Ok(state),
            false => Err(away()),
        }
    }

    fn start_write(&self, offset: u64, data: &[u8]) -> Result<Answer<()>, PeerError> {
        let mut state = self.call(Call::Write)?;
        state.check_copy_lock("write");
        let number = state.next_write;
        let length = data.len() as u64;
        state.check_border(&(offset..offset + length), "write");
        state.next_write += 1;
        state.unanswered += length;
        state.most_unanswered = state.most_unanswered.max(state.unanswered);
        state.late.push((number, offset, data.to_vec()));
        state.written.push(offset..offset + length);
        let link = self.clone();
        Ok(Answer::new(move || {
            let mut state = link.answer(length)?;
            if let Some(index) = state.late.iter().position(|late| late.0 == number) {
                state.carry_out(index);
            }
            Ok(())
        }))
    }

    /// An answer about that many bytes; also one that says no answers them.
    fn answer(&self, length: u64) -> Result<MutexGuard<'_, State>, PeerError> {
        let refused = match self.call(Call::Any) {
            Ok(mut state) => {
                state.unanswered -= length;
                return Ok(state);
            }
            Err(error) => error,
        };
        let mut state = self.brick.state();
        if state.connection == self.connection {
            state.unanswered -= length;
        }
        Err(refused)
    }
}

fn refused() -> PeerError {
    PeerError::Refused {
        peer: "b:/brick".into(),
        source: "no space".into(),
    }
}

/// All of them are answered, whatever the outcome.
fn wait_all(sent: Vec<Answer<()>>) -> Result<(), PeerError> {
    let mut outcome = Ok(());
    for answer in sent {
        outcome = outcome.and(answer.wait());
    }
    outcome
}

impl HealPeer for SimPeer {
    fn name(&self) -> &str {
        "b:/brick"
    }

    fn is_connected(&self) -> bool {
        self.0.brick.state().connection == self.0.connection
    }

    fn close(&self) {
        let mut state = self.0.brick.state();
        if state.connection == self.0.connection {
            if state.unanswered > 0 {
                let left = format!("closed with {} bytes unanswered", state.unanswered);
                state.violations.push(left);
            }
            state.break_off();
        }
    }

    fn size(&self) -> Result<u64, PeerError> {
        Ok(self.0.call(Call::Any)?.cache.len() as u64)
    }

    fn own_mark(&self, at: u64) -> Result<i32, PeerError> {
        let state = self.0.call(Call::Any)?;
        let file = state.layout.as_ref().map(|layout| layout.place(at).0);
        let other = file.and_then(|file| state.own_marks.get(&file));
        Ok(other.copied().unwrap_or(state.own_mark))
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let mut state = self.0.call(Call::Any)?;
        state.check_copy_lock("truncate");
        if state.layout.is_some() {
            state
                .violations
                .push("truncate of one file of several".into());
        }
        state.cache.resize(size as usize, 0);
        Ok(())
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        self.0.brick.state().batches += 1;
        let mut sent = Vec::new();
        for (offset, data) in writes {
            match self.0.start_write(*offset, data) {
                Ok(answer) => sent.push(answer),
                Err(error) => {
                    wait_all(sent)?;
                    return Err(error);
                }
            }
        }
        Ok(Answer::new(|| wait_all(sent)))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        let mut state = self.0.call(Call::Write)?;
        state.check_copy_lock("zero");
        state.check_border(&range, "zero");
        state.cache[range.start as usize..range.end as usize].fill(0);
        state.zeroed.push(range);
        Ok(Answer::new(|| Ok(())))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let state = self.0.call(Call::Any)?;
        let data = data_from(&state.cache, offset);
        let border = state.layout.as_ref().map(|layout| layout.border(offset));
        Ok(data.filter(|data| border.is_none_or(|border| *data < border)))
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let mut state = self.0.call(Call::Any)?;
        state.compared += range.end - range.start;
        state.check_border(&range, "checksum");
        let bytes = &state.cache[range.start as usize..range.end as usize];
        let sum = StrongChecksum::Sha256(Sha256::digest(bytes).into());
        Ok(Answer::new(|| Ok(sum)))
    }

    fn fsync(&self, files: &BTreeSet<FileIndex>) -> Result<(), PeerError> {
        let mut state = self.0.call(Call::Fsync)?;
        state.fsyncs += 1;
        state.fsync(files);
        Ok(())
    }

    fn lock(
        &self,
        range: Range<u64>,
        _limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        self.0.brick.state().check_border(&range, "lock");
        for _ in 0..PATIENCE {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let mut state = self.0.call(Call::Any)?;
            state.queued = None;
            drop(state);
            if self.0.brick.lock(HEALER, &range) {
                return Ok(true);
            }
            self.0.brick.state().queued = Some(range.clone());
        }
        self.0.brick.state().queued = None;
        Ok(false)
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        drop(self.0.call(Call::Any)?);
        self.0.brick.unlock(HEALER, &range);
        Ok(())
    }
}
