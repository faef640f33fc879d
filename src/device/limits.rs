//! Limits of the device that messages name as well as the code that keeps them.

/// `vhost-user-backend` maps queues to threads with a 64-bit mask.
pub const MAX_QUEUES: u16 = 64;

/// Smallest ring: a request's header, its status and two data segments.
pub const MIN_QUEUE_SIZE: u16 = 4;

/// Largest ring that QEMU can set up (`VIRTQUEUE_MAX_SIZE`).
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Bytes per virtio sector, whatever the block size is (virtio 1.2, section 5.2).
pub const SECTOR: u32 = 512;

/// Bytes of the serial that GET_ID returns (`VIRTIO_BLK_ID_BYTES`).
pub const SERIAL_LEN: usize = 20;

/// Largest alignment that bounce buffers can give, in bytes.
pub const MAX_ALIGNMENT: u32 = 4096;

/// Most bytes of a message's body, as in the `vhost` crate.
pub const MAX_BODY: u32 = 4096;

/// Most file descriptors with one message, as in the `vhost` crate.
pub const MAX_FDS: usize = 32;

/// Most files of a disk: what io_uring registers at once (`IORING_MAX_FIXED_FILES` before
/// kernel 6.0; `io_uring_register(2)`).
pub const MAX_FILES: usize = 1 << 15;
