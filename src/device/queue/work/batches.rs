//! How many requests at once are handed to the kernel, or answered, in a round.

/// Requests that are handed to the kernel, or answered, in the first batch of a round.
const FIRST_BATCH: usize = 4;

/// When a batch is whole: the first is small, so that the disk, or the guest, has something
/// to do early; each is twice the one before, as every one of them costs a call.
pub struct Batches {
    size: usize,
    left: usize,
}

impl Batches {
    /// At the beginning of a round.
    pub fn new() -> Self {
        Self {
            size: FIRST_BATCH,
            left: FIRST_BATCH,
        }
    }

    /// One more; returns whether the batch is whole.
    pub fn add(&mut self) -> bool {
        self.left -= 1;
        let whole = self.left == 0;
        if whole {
            self.size *= 2;
            self.left = self.size;
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_begin_small_and_grow() {
        let mut batches = Batches::new();
        let whole: Vec<_> = (1..=60).filter(|_| batches.add()).collect();
        assert_eq!(whole, [4, 12, 28, 60]);
    }
}
