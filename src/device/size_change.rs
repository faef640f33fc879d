//! Tells the front-end that the disk has another size.
//!
//! Over the channel that the front-end gives for requests of ours
//! (`VHOST_USER_SET_BACKEND_REQ_FD`), with `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`
//! (vhost-user specification, "Back-end message types"); it then reads the config space.
//! QEMU reads the size when it first connects, not when it connects again, and ignores
//! the message while its device is stopped (`vhost_user_blk_handle_config_change`). So
//! who has not read the size of now is told when its rings start, too.

use std::io::IoSlice;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use vhost::vhost_user::message::BackendReq;

/// The protocol's version, in a header's flags. No answer is asked for.
const VERSION: u32 = 1;

/// Shared by all queues, over all connections.
#[derive(Clone, Debug, Default)]
pub struct SizeChanges(Arc<Mutex<SizeState>>);

/// Of the present connection.
#[derive(Debug, Default)]
struct SizeState {
    channel: Option<UnixStream>,
    /// The size that the front-end last read, in bytes.
    told: Option<u64>,
    /// The size at which it was last told to read it, by a ring that started.
    announced: Option<u64>,
}

impl SizeChanges {
    /// A front-end has connected, of which nothing is known.
    pub fn connected(&self) {
        *self.state() = SizeState::default();
    }

    /// It is reached over `channel`.
    pub fn set_channel(&self, channel: UnixStream) {
        self.state().channel = Some(channel);
    }

    /// It has read that the disk has `size` bytes.
    pub fn told(&self, size: u64) {
        self.state().told = Some(size);
    }

    /// A ring has started on a disk of `size` bytes.
    pub fn ring_started(&self, size: u64) {
        let mut state = self.state();
        if state.told != Some(size) && state.announced != Some(size) {
            state.announced = Some(size);
            state.send();
        }
    }

    /// The disk has another size. `false`: nobody could be told.
    pub fn grown(&self) -> bool {
        self.state().send()
    }

    fn state(&self) -> MutexGuard<'_, SizeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SizeState {
    /// Never waits: a front-end that does not read its channel goes without.
    fn send(&self) -> bool {
        let Some(channel) = &self.channel else {
            return false;
        };
        let header = [BackendReq::CONFIG_CHANGE_MSG.into(), VERSION, 0u32];
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sent = sendmsg(
            channel,
            &[IoSlice::new(&header)],
            &mut SendAncillaryBuffer::default(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(bytes) if bytes == header.len() => true,
            Ok(_) => false,
            Err(errno) => {
                log::warn!("the front-end cannot be told of the disk's new size: {errno}");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn size_changes() -> (SizeChanges, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let size_changes = SizeChanges::default();
        size_changes.connected();
        size_changes.set_channel(ours);
        (size_changes, theirs)
    }

    /// How many messages have come.
    fn messages(front_end: &mut UnixStream) -> usize {
        let mut all = Vec::new();
        let _ = front_end.read_to_end(&mut all);
        for message in all.chunks(12) {
            assert_eq!(message[..4], 2u32.to_ne_bytes());
            assert_eq!(message[4..], [1, 0, 0, 0, 0, 0, 0, 0]);
        }
        all.len() / 12
    }

    #[test]
    fn who_has_not_read_the_size_of_now_is_told_when_its_rings_start_and_only_once() {
        let (size_changes, mut front_end) = size_changes();
        size_changes.ring_started(512);
        size_changes.ring_started(512);
        assert_eq!(messages(&mut front_end), 1);
        size_changes.told(512);
        size_changes.ring_started(512);
        assert_eq!(messages(&mut front_end), 0);
        size_changes.ring_started(1024);
        assert_eq!(messages(&mut front_end), 1);
    }

    #[test]
    fn a_new_size_is_told_at_once_to_who_can_be_told() {
        let (size_changes, mut front_end) = size_changes();
        size_changes.told(512);
        assert!(size_changes.grown());
        assert_eq!(messages(&mut front_end), 1);
        size_changes.connected();
        assert!(!size_changes.grown(), "a front-end without a channel");
    }

    #[test]
    fn a_front_end_that_does_not_read_holds_up_nobody() {
        let (size_changes, _front_end) = size_changes();
        while size_changes.grown() {}
        assert!(!size_changes.grown());
    }
}
