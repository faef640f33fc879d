//! A vhost-user front-end and virtio driver that obeys its caller, not the
//! specification.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::DEADLINE;

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

/// The log of dirty pages of a migration.
pub struct Log {
    pub file: File,
    pub len: u64,
}

impl Log {
    /// A log for `pages` pages.
    pub fn new(pages: u64) -> Self {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages / 8).unwrap();
        let len = pages / 8;
        Self { file, len }
    }

    fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.len,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn has(&self, page: u64) -> bool {
        self.bytes()[page as usize / 8] & 1 << (page % 8) != 0
    }
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

    pub fn set_log(&self, log: &Log) -> vhost::Result<()> {
        self.vhost.set_log_base(0, Some(log.region()))
    }

    /// Switches the logging of data and of the used rings, at their addresses.
    pub fn set_logging(&mut self, on: bool) {
        self.set_logging_of_data(on);
        self.log_used_at = on.then_some(0);
        for queue in 0..self.queues.len() {
            self.set_vring_addr(queue);
        }
    }

    pub fn set_logging_of_data(&mut self, on: bool) {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        let features = self.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = features | if on { log_all } else { 0 };
        let offered = self.vhost.get_features().unwrap();
        self.vhost.set_features(offered & features).unwrap();
    }

    pub fn contents(&self) -> Vec<u8> {
        self.read(0, MEMORY_SIZE as usize)
    }

    pub fn used_ring(&self, queue: usize) -> u64 {
        self.ring(queue).2
    }

    /// The next used element, if there is one.
    pub fn poll_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        (self.used_index(queue) != self.queues[queue].next_used).then(|| self.wait_used(queue))
    }

    /// Answers a chain as an earlier device would have, without the driver's knowing.
    pub fn push_used(&mut self, queue: usize, head: u16) {
        let (_, _, used) = self.ring(queue);
        let index = self.used_index(queue);
        let at = used + 4 + 8 * u64::from(index % self.ring_size);
        self.write(at, &u64::from(head).to_le_bytes());
        self.write(used + 2, &index.wrapping_add(1).to_le_bytes());
        self.queues[queue].next_used = index.wrapping_add(1);
    }

    /// Makes a chain in the descriptors from `head` on available.
    pub fn put_chain_at(&mut self, queue: usize, head: u16, descs: &[(u64, u32, u16)]) {
        self.queues[queue].next_desc = head;
        self.put_chain(queue, descs);
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

    /// Uses `call` to interrupt the driver from now on.
    pub fn set_call(&mut self, queue: usize, call: EventFd) {
        self.vhost.set_vring_call(queue, &call).unwrap();
        self.queues[queue].call = call;
    }

    /// Kicks by another event fd from now on.
    pub fn set_kick(&mut self, queue: usize, kick: EventFd) {
        self.vhost.set_vring_kick(queue, &kick).unwrap();
        self.queues[queue].kick = kick;
    }

    /// Whether a kick would be read by whoever has the event fd next.
    pub fn has_kick(&self, queue: usize) -> bool {
        // One more, as reading none would wait.
        self.kick(queue);
        self.queues[queue].kick.read().unwrap() > 1
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

    fn ring(&self, queue: usize) -> (u64, u64, u64) {
        let base = queue as u64 * 0x10000;
        (base, base + 0x4000, base + 0x8000)
    }

    pub fn set_vring_addr(&mut self, queue: usize) {
        let base = self.region().userspace_addr;
        let (desc, avail, used) = self.ring(queue);
        let config = VringConfigData {
            queue_max_size: self.ring_size,
            queue_size: self.ring_size,
            flags: self.log_used_at.is_some().into(),
            desc_table_addr: base + desc,
            used_ring_addr: base + used,
            avail_ring_addr: base + avail,
            log_addr: self.log_used_at.map(|at| at + used),
        };
        self.vhost.set_vring_addr(queue, &config).unwrap();
    }

    pub fn start_queue(&mut self, queue: usize, base: u16) {
        self.vhost.set_vring_num(queue, self.ring_size).unwrap();
        self.vhost.set_vring_base(queue, base).unwrap();
        self.set_vring_addr(queue);
        self.vhost
            .set_vring_kick(queue, &self.queues[queue].kick)
            .unwrap();
        self.vhost
            .set_vring_call(queue, &self.queues[queue].call)
            .unwrap();
        self.vhost.set_vring_enable(queue, true).unwrap();
    }

    /// Another driver begins with the ring, as after the guest was reset.
    pub fn begin_anew(&mut self, queue: usize) {
        let (table, ..) = self.ring(queue);
        self.write(table, &[0; 0xc000]);
        let ring = &mut self.queues[queue];
        (ring.next_desc, ring.next_avail, ring.next_used) = (0, 0, 0);
        self.start_queue(queue, 0);
    }

    /// A free page for a request's own use.
    pub fn page(&mut self) -> u64 {
        self.scratch += 4096;
        if self.scratch >= DATA {
            self.scratch = SCRATCH;
        }
        self.scratch
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

    pub fn put_desc(&self, table: u64, index: u16, desc: Desc) {
        let mut raw = Vec::new();
        raw.extend(desc.addr.to_le_bytes());
        raw.extend(desc.len.to_le_bytes());
        raw.extend(desc.flags.to_le_bytes());
        raw.extend(desc.next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &raw);
    }

    /// Makes an available chain of `(addr, len, flags)`, and returns its head.
    pub fn put_chain(&mut self, queue: usize, descs: &[(u64, u32, u16)]) -> u16 {
        let (table, ..) = self.ring(queue);
        let begin = self.queues[queue].next_desc;
        let at = |i: usize| (begin + i as u16) % self.ring_size;
        for (i, &(addr, len, flags)) in descs.iter().enumerate() {
            let more = if i + 1 < descs.len() { NEXT } else { 0 };
            let desc = Desc {
                addr,
                len,
                flags: flags | more,
                next: at(i + 1),
            };
            self.put_desc(table, at(i), desc);
        }
        self.queues[queue].next_desc = at(descs.len());
        self.make_available(queue, begin);
        begin
    }

    pub fn make_available(&mut self, queue: usize, head: u16) {
        let (_, avail, _) = self.ring(queue);
        let next = self.queues[queue].next_avail;
        self.write(
            avail + 4 + 2 * u64::from(next % self.ring_size),
            &head.to_le_bytes(),
        );
        self.set_avail_index(queue, next.wrapping_add(1));
        let kicks = match self.kicks {
            Kicks::Always => true,
            Kicks::WhenAsked => self.kick_is_asked_for(queue, next),
            Kicks::Never => false,
        };
        if kicks {
            self.kick(queue);
        }
    }

    /// Whether the device wants to hear that entry `index` is available (virtio 1.2, 2.7.10).
    fn kick_is_asked_for(&self, queue: usize, index: u16) -> bool {
        let (_, _, used) = self.ring(queue);
        let order = std::sync::atomic::Ordering::SeqCst;
        let event: u16 = self
            .memory
            .load(
                GuestAddress(used + 4 + 8 * u64::from(self.ring_size)),
                order,
            )
            .unwrap();
        event == index
    }

    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        let (_, avail, used) = self.ring(queue);
        self.queues[queue].next_avail = index;
        // Interrupt after the next used element.
        let event = self.queues[queue].next_used;
        self.write(
            avail + 4 + 2 * u64::from(self.ring_size),
            &event.to_le_bytes(),
        );
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory
            .store(index, GuestAddress(avail + 2), order)
            .unwrap();
        let _ = used;
    }

    pub fn kick(&self, queue: usize) {
        self.queues[queue].kick.write(1).unwrap();
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        let (_, _, used) = self.ring(queue);
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.load(GuestAddress(used + 2), order).unwrap()
    }

    /// The next used element as `(head, len)`.
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        let next = self.queues[queue].next_used;
        let end = Instant::now() + DEADLINE;
        while self.used_index(queue) == next {
            assert!(Instant::now() < end, "no used element in queue {queue}");
            std::thread::yield_now();
        }
        let (_, _, used) = self.ring(queue);
        let element = self.read(used + 4 + 8 * u64::from(next % self.ring_size), 8);
        self.queues[queue].next_used = next.wrapping_add(1);
        (
            u32::from_le_bytes(element[..4].try_into().unwrap()),
            u32::from_le_bytes(element[4..].try_into().unwrap()),
        )
    }

    /// Waits for an interrupt of the queue.
    pub fn wait_call(&self, queue: usize) {
        super::wait_for("an interrupt", || self.queues[queue].call.read().is_ok());
    }

    pub fn header(&mut self, kind: u32, sector: u64) -> u64 {
        let page = self.page();
        let mut raw = Vec::new();
        raw.extend(kind.to_le_bytes());
        raw.extend([0; 4]);
        raw.extend(sector.to_le_bytes());
        self.write(page, &raw);
        self.write(page + 16, &[0xff]);
        page
    }

    /// Makes a request available without waiting: returns where its status will be.
    pub fn submit(&mut self, queue: usize, kind: u32, sector: u64, data: &[(u64, u32)]) -> u64 {
        let page = self.header(kind, sector);
        let data_flag = match kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => WRITE,
            _ => 0,
        };
        let mut chain = vec![(page, 16, 0)];
        chain.extend(data.iter().map(|&(addr, len)| (addr, len, data_flag)));
        chain.push((page + 16, 1, WRITE));
        self.put_chain(queue, &chain);
        page + 16
    }

    /// Makes a request and returns its status.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, data: &[(u64, u32)]) -> u32 {
        let status = self.submit(queue, kind, sector, data);
        self.wait_used(queue);
        self.byte(status).into()
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
