//! The ordered stream: the guest's writes in the order that it may rely on, from the queues'
//! threads to whoever feeds a peer with them. So a peer's copy is at every moment something that
//! the guest can be started from.
//!
//! A queue's thread copies each write that was let in into its ring ([`recorder`]), in memory that
//! it shares with the healer ([`buffer`], [`cells`]), and the local write is done from there: the
//! disk and the peers get the same bytes. All entries of all queues have one order, their
//! sequence. A peer's sender takes them in it ([`in_order`], [`feed`]), and clears what is durable there in the
//! dirty map ([`outstanding`]). Whoever applies them at a peer ([`receiving`]) keeps to what the guest may rely on
//! ([`applying`]), and notes durably what the copy is ([`standing`]).
//!
//! # The order
//! What was completed before a flush was asked for is there before anything that was asked for
//! after that flush was answered. An entry takes its number when it is let in and before it is
//! submitted, a flush when it is taken. So whatever was completed before has a smaller number
//! than the flush, and whatever is asked for after its answer a larger one: a flush is a line
//! across all queues, and the *epoch* of an entry is the number of flushes before it. Of two
//! writes to the same bytes the second is let in when the first has landed, so they land in
//! their sequence.
//!
//! # When a peer cannot follow
//! No write waits for a peer. A ring that is full leaves those peers *behind* that hold its oldest
//! entry: from then on their places are used again. The dirty map, which is kept as without a
//! stream, has what they miss, and it alone says what a peer has: an entry's extents are
//! cleared by the rules of [`crate::image::dirty_map`].
//!
//! Where the guest's flushes wait for peers, [`in_step`] says which may be answered, and which copies
//! have everything that was.
//!
//! Sender and receiver know each other by the volume's secret ([`proof`]) and speak [`message`]s.
//!
//! It knows no sockets and no bricks. Nothing feeds it yet: the queues' threads and the healer
//! are the next to be connected.

pub mod applying;
pub mod backlog;
pub mod buffer;
pub mod cells;
pub mod feed;
pub mod in_order;
pub mod in_step;
pub mod message;
pub mod outstanding;
pub mod proof;
pub mod receiving;
pub mod recorder;
pub mod standing;

/// The atomics that [`cells`], [`recorder`] and [`in_order`] are made of. The loom model compiles
/// the same source with loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering, fence};
}

#[cfg(test)]
mod tests;
