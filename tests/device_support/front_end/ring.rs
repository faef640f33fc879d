//! The driver's side of the rings: descriptors, what is available and used, kicks and interrupts.

use std::time::Instant;

use super::super::{DEADLINE, wait_for};
use super::{Desc, FrontEnd, Kicks, NEXT};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

impl FrontEnd {
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

    pub fn kick(&self, queue: usize) {
        self.queues[queue].kick.write(1).unwrap();
    }

    /// Whether a kick would be read by whoever has the event fd next.
    pub fn has_kick(&self, queue: usize) -> bool {
        // One more, as reading none would wait.
        self.kick(queue);
        self.queues[queue].kick.read().unwrap() > 1
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

    /// Makes a chain in the descriptors from `head` on available.
    pub fn put_chain_at(&mut self, queue: usize, head: u16, descs: &[(u64, u32, u16)]) {
        self.queues[queue].next_desc = head;
        self.put_chain(queue, descs);
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

    pub fn used_ring(&self, queue: usize) -> u64 {
        self.ring(queue).2
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        let (_, _, used) = self.ring(queue);
        let order = std::sync::atomic::Ordering::SeqCst;
        self.memory.load(GuestAddress(used + 2), order).unwrap()
    }

    /// The next used element, if there is one.
    pub fn poll_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        (self.used_index(queue) != self.queues[queue].next_used).then(|| self.wait_used(queue))
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

    /// Answers a chain as an earlier device would have, without the driver's knowing.
    pub fn push_used(&mut self, queue: usize, head: u16) {
        let (_, _, used) = self.ring(queue);
        let index = self.used_index(queue);
        let at = used + 4 + 8 * u64::from(index % self.ring_size);
        self.write(at, &u64::from(head).to_le_bytes());
        self.write(used + 2, &index.wrapping_add(1).to_le_bytes());
        self.queues[queue].next_used = index.wrapping_add(1);
    }

    /// Waits for an interrupt of the queue.
    pub fn wait_call(&self, queue: usize) {
        wait_for("an interrupt", || self.queues[queue].call.read().is_ok());
    }
}
