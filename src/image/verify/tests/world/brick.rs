//! A brick as the verifier calls it. The others act before each call.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::super::super::brick::{CopyMarks, VerifyBrick};
use super::{EXTENT, Inner, VERIFIER};
use crate::gluster::StrongChecksum;
use crate::image::heal::{Answer, PeerError};

pub(super) struct SimBrick(pub(super) Arc<Mutex<Inner>>, pub(super) usize);

impl SimBrick {
    /// Lets the others act, then begins a call.
    fn call(&self) -> Result<MutexGuard<'_, Inner>, PeerError> {
        let mut inner = self.0.lock().unwrap();
        inner.step();
        let copy = &mut inner.copies[self.1];
        if let Some(left) = &mut copy.lives_for {
            copy.away |= *left == 0;
            *left = left.saturating_sub(1);
        }
        if copy.away {
            copy.locks.retain(|lock| lock.0 != VERIFIER);
            return Err(PeerError::Away {
                peer: format!("b{}", self.1),
                source: "gone".into(),
            });
        }
        Ok(inner)
    }
}

impl Inner {
    fn assert_in_one_file(&self, range: &Range<u64>) {
        let whole = self.layout.is_whole();
        let border = self.layout.border(range.start);
        assert!(whole || range.end <= border, "{range:?} is in two files");
    }
}

impl VerifyBrick for SimBrick {
    fn state(&self, part: &Range<u64>) -> Result<CopyMarks, PeerError> {
        let mut inner = self.call()?;
        let layout = inner.layout.clone();
        let copy = &mut inner.copies[self.1];
        let mut accused = BTreeMap::new();
        for file in layout.files() {
            let range = layout.range(file);
            if !layout.is_whole() && (range.end <= part.start || part.end <= range.start) {
                continue;
            }
            let marks = copy.marks_on(file).iter().enumerate();
            for (child, _) in marks.filter(|(_, count)| **count != 0) {
                accused.entry(child).or_insert(file);
            }
        }
        let size = match layout.is_whole() {
            true => copy.claims.unwrap_or(copy.bytes.len() as u64),
            false => layout.size(),
        };
        Ok(CopyMarks { size, accused })
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let inner = self.call()?;
        let bytes = &inner.copies[self.1].bytes;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let first = rest.iter().position(|byte| *byte != 0);
        let data = first.map(|first| offset.max((offset + first as u64) / EXTENT * EXTENT));
        let whole = inner.layout.is_whole();
        Ok(data.filter(|data| whole || *data < inner.layout.border(offset)))
    }

    /// The brick reads a part at once and the rest when the answer is waited for.
    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        assert!(range.end - range.start <= crate::gluster::MAX_IO as u64);
        let mut inner = self.call()?;
        inner.assert_in_one_file(&range);
        let split = match inner.strike {
            None => range.start + inner.rng.below(range.end - range.start + 1),
            Some(_) => range.start,
        };
        let first = inner.copies[self.1].read(range.start..split);
        let brick = SimBrick(Arc::clone(&self.0), self.1);
        Ok(Answer::new(move || {
            let mut inner = brick.call()?;
            if brick.1 == 0 {
                inner.strike(&range);
            }
            let copy = &mut inner.copies[brick.1];
            copy.summed += range.end - range.start;
            if copy.unreadable.start < range.end && range.start < copy.unreadable.end {
                return Err(PeerError::Refused {
                    peer: "b".into(),
                    source: "input/output error".into(),
                });
            }
            let mut hasher = DefaultHasher::new();
            hasher.write(&first);
            hasher.write(&copy.read(split..range.end));
            let (left, bytes) = &mut copy.flaky;
            if *left > 0 && bytes.start < range.end && range.start < bytes.end {
                *left -= 1;
                hasher.write(b"wrong");
            }
            let mut sum = [0; 32];
            sum[..8].copy_from_slice(&hasher.finish().to_le_bytes());
            Ok(StrongChecksum::Sha256(sum))
        }))
    }

    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError> {
        let mut inner = self.call()?;
        inner.assert_in_one_file(&range);
        Ok(inner.copies[self.1].lock(VERIFIER, &range, false))
    }

    /// Nobody may be kept waiting by locks on other bytes meanwhile.
    fn wait_lock(&self, range: Range<u64>, limit: Duration) -> Result<bool, PeerError> {
        let until = self.0.lock().unwrap().now + limit;
        loop {
            let mut inner = self.call()?;
            for (owner, held, _) in inner.copies.iter().flat_map(|copy| &copy.locks) {
                assert!(*owner != VERIFIER || *held == range);
            }
            if inner.copies[self.1].lock(VERIFIER, &range, false) {
                return Ok(true);
            }
            inner.now += Duration::from_millis(5);
            if inner.now > until {
                return Ok(false);
            }
        }
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        self.call()?.copies[self.1].unlock(VERIFIER, &range);
        Ok(())
    }

    fn close(&self) {
        let mut inner = self.0.lock().unwrap();
        let copy = &mut inner.copies[self.1];
        copy.locks.retain(|lock| lock.0 != VERIFIER);
    }
}
