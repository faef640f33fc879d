//! A vhost-user front-end and virtio driver that obeys its caller, not the
//! specification.

pub mod log;
mod requests;
mod ring;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

pub const MEMORY_SIZE: u64 = 8 << 20;
pub const RING_SIZE: u16 = 64;
/// Guest-physical address of free memory for the tests' data.
pub const DATA: u64 = 1 << 20;
/// Where requests put header, status and indirect tables: a page per request.
const SCRATCH: u64 = 512 << 10;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Features of an ordinary driver.
pub const ORDINARY: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_CONFIG_WCE
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

#[derive(Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// When the driver kicks for what it makes available.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kicks {
    Always,
    /// If the device has asked for it.
    WhenAsked,
    Never,
}

struct Queue {
    kick: EventFd,
    call: EventFd,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
}

pub struct FrontEnd {
    pub vhost: Frontend,
    pub memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    scratch: u64,
    features: u64,
    pub kicks: Kicks,
    /// Where the used rings are logged, if they are: added to their addresses.
    pub log_used_at: Option<u64>,
    /// Entries of each queue in the record of requests in flight that is asked for.
    pub queue_size: u16,
    /// Entries of each ring, at most 1024.
    pub ring_size: u16,
}

/// What a front-end keeps of the requests in flight.
pub struct Inflight {
    pub description: VhostUserInflight,
    pub file: File,
}

fn negotiate(stream: UnixStream, queues: usize, features: u64) -> Frontend {
    let mut vhost = Frontend::from_stream(stream, queues as u64);
    vhost.set_owner().unwrap();
    let offered = vhost.get_features().unwrap();
    let wanted = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    vhost.set_features(offered & wanted).unwrap();
    let protocol = vhost.get_protocol_features().unwrap();
    vhost
        .set_protocol_features(
            protocol
                & (VhostUserProtocolFeatures::MQ
                    | VhostUserProtocolFeatures::CONFIG
                    | VhostUserProtocolFeatures::REPLY_ACK
                    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                    | VhostUserProtocolFeatures::RESET_DEVICE
                    | VhostUserProtocolFeatures::LOG_SHMFD
                    | VhostUserProtocolFeatures::BACKEND_REQ
                    | VhostUserProtocolFeatures::INFLIGHT_SHMFD),
        )
        .unwrap();
    vhost.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    vhost
}

fn guest_memory() -> GuestMemoryMmap {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(MEMORY_SIZE).unwrap();
    let region = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY_SIZE as usize).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

impl FrontEnd {
    /// Negotiates an ordinary driver's features and starts all queues.
    pub fn start(stream: UnixStream, queues: usize) -> Self {
        let mut this = Self::connect(stream, queues, ORDINARY);
        this.share_memory();
        for queue in 0..queues {
            this.start_queue(queue, 0);
        }
        this
    }

    pub fn connect(stream: UnixStream, queues: usize, features: u64) -> Self {
        let vhost = negotiate(stream, queues, features);
        let queues = (0..queues)
            .map(|_| Queue {
                kick: EventFd::new(0).unwrap(),
                call: EventFd::new(0x800).unwrap(),
                next_desc: 0,
                next_avail: 0,
                next_used: 0,
            })
            .collect();
        Self {
            vhost,
            memory: guest_memory(),
            queues,
            scratch: SCRATCH,
            features,
            kicks: Kicks::Always,
            log_used_at: None,
            queue_size: RING_SIZE,
            ring_size: RING_SIZE,
        }
    }

    /// Connects anew, as QEMU does after its back-end died: the rings begin where
    /// the used index is, and the record of requests in flight is handed over.
    pub fn reconnect(&mut self, stream: UnixStream, inflight: &Inflight) {
        // The old connection ends first.
        let (nobody, _) = UnixStream::pair().unwrap();
        self.vhost = Frontend::from_stream(nobody, 1);
        self.vhost = negotiate(stream, self.queues.len(), self.features);
        self.set_inflight(inflight).unwrap();
        self.share_memory();
        for queue in 0..self.queues.len() {
            self.start_queue(queue, self.used_index(queue));
        }
    }

    pub fn get_inflight(&mut self) -> Inflight {
        let asked = VhostUserInflight::new(0, 0, self.queues.len() as u16, self.queue_size);
        let (description, file) = self.vhost.get_inflight_fd(&asked).unwrap();
        Inflight { description, file }
    }

    pub fn set_inflight(&mut self, inflight: &Inflight) -> vhost::Result<()> {
        let fd = inflight.file.as_raw_fd();
        self.vhost.set_inflight_fd(&inflight.description, fd)
    }

    pub fn contents(&self) -> Vec<u8> {
        self.read(0, MEMORY_SIZE as usize)
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        use vm_memory::GuestMemoryBackend;
        VhostUserMemoryRegionInfo::from_guest_region(self.memory.iter().next().unwrap()).unwrap()
    }

    pub fn share_memory(&mut self) {
        self.vhost.set_mem_table(&[self.region()]).unwrap();
    }

    /// Takes all of the guest's memory away.
    pub fn remove_memory(&mut self) {
        self.vhost.remove_mem_region(&self.region()).unwrap();
    }

    /// Gives back what [`Self::remove_memory`] took away.
    pub fn add_memory(&mut self) {
        self.vhost.add_mem_region(&self.region()).unwrap();
    }

    /// Replaces the guest's memory by new memory with a copy of the contents.
    pub fn replace_memory(&mut self) -> GuestMemoryMmap {
        let mut contents = vec![0; MEMORY_SIZE as usize];
        self.memory
            .read_slice(&mut contents, GuestAddress(0))
            .unwrap();
        let old = std::mem::replace(&mut self.memory, guest_memory());
        self.memory.write_slice(&contents, GuestAddress(0)).unwrap();
        self.share_memory();
        old
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    pub fn byte(&self, addr: u64) -> u8 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let room = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.vhost.get_config(offset, len, flags, &room).unwrap().1
    }

    pub fn region_fd(&self) -> i32 {
        self.region().mmap_handle.as_raw_fd()
    }
}
