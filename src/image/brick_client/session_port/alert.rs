//! A brick's word that somebody wants a lock of the session's, handed on at most once between
//! two looks at that brick, however often it says so.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::gluster::notice::Contention;

/// See the module.
pub(super) struct Alert {
    raised: AtomicBool,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl Alert {
    pub(super) fn new(tell: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            raised: AtomicBool::new(false),
            tell,
        }
    }

    pub(super) fn raise(&self, brick: &str, contention: &Contention) {
        if !self.raised.swap(true, Ordering::SeqCst) {
            let domain = &contention.domain;
            log::debug!("brick {brick}: somebody else wants the lock {domain:?} of this session");
            (self.tell)();
        }
    }

    /// The brick is being looked at.
    pub(super) fn looked(&self) {
        self.raised.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::Gfid;
    use std::sync::mpsc::channel;

    #[test]
    fn a_brick_that_repeats_itself_is_heard_once_until_it_was_looked_at() {
        let (told, heard) = channel();
        let alert = Alert::new(Box::new(move || told.send(()).unwrap()));
        let contention = Contention {
            gfid: Gfid::ROOT,
            domain: "d".into(),
        };
        for _ in 0..3 {
            alert.raise("a:/b", &contention);
        }
        assert_eq!(heard.try_iter().count(), 1);
        alert.looked();
        alert.raise("a:/b", &contention);
        assert_eq!(heard.try_iter().count(), 1);
    }
}
