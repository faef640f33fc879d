//! The io_uring that moves bytes between the guest's memory and the file, the file, and the
//! buffers between the two where one of them is not aligned.
//!
//! Used by the queues. It knows operations, not requests.

pub mod bounce;
pub mod disk;
pub mod engine;
