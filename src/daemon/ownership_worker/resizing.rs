//! The ownership worker's part in a growth: the session grows, then the gate, the files and the
//! device's size are those of the larger image.

use crate::image::error_chain::chain;
use crate::image::session::ownership::Ownership;
use crate::image::session::resize::{Insist, NewSize, ResizeError, Resized};

use super::super::growth::{self, Grown};
use super::super::served_image::Front;
use super::Worker;

impl Worker {
    /// The queues go on with their writes when they meet the gate of the larger image.
    pub(super) fn resize(
        &mut self,
        size: NewSize,
        insist: Insist,
    ) -> Result<(Resized, bool), ResizeError> {
        let why_not = match self.machine.ownership() {
            Ownership::Held => None,
            Ownership::Armed | Ownership::Leaving => {
                Some("it is about to be handed over: see handover --cancel")
            }
            Ownership::Vacant | Ownership::Opening => Some("this daemon does not hold it now"),
            Ownership::Ended => Some("its session has stopped"),
        };
        if let Some(why) = why_not {
            return Err(ResizeError::NotNow(why.to_owned()));
        }
        let served = self.served.clone();
        let front = served.front();
        let (Some((session, place)), Some(front)) = (&mut self.session, &*front) else {
            let why = "the daemon is not ready yet";
            return Err(ResizeError::NotNow(why.to_owned()));
        };
        let (extend, made) = growth::extension(place);
        let resized = session.grow(size, front.block, insist, extend)?;
        let made = made.take();
        made.note(place, resized.to);
        made.note(&mut self.terms.place, resized.to);
        self.served.locked().size = resized.to;
        self.gate.put(Some(session.gate()));
        let told = self.offer(front, &made, resized.to);
        self.gate.set(true);
        self.publish();
        Ok((
            resized,
            told.unwrap_or_else(|why| {
                // Every copy has its new size, and the guest its old disk.
                log::error!("the guest sees the new size when the daemon was started again: {why}");
                false
            }),
        ))
    }

    /// Offers the larger disk; was the front-end told?
    fn offer(&mut self, front: &Front, made: &Grown, size: u64) -> Result<bool, String> {
        self.local = self
            .local
            .grown(&made.files, size)
            .map_err(|error| chain(&error))?;
        let files = made.files.iter().map(|piece| piece.file.try_clone());
        let files = files.collect::<Result<_, _>>();
        let files = files.map_err(|error| error.to_string())?;
        (front.grow)(files, size).map_err(|error| chain(&error))
    }
}
