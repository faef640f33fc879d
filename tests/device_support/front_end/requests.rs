//! Requests of an ordinary driver: header, data, status.

use virtio_bindings::virtio_blk::*;

use super::{DATA, FrontEnd, SCRATCH, WRITE};

impl FrontEnd {
    /// A free page for a request's own use.
    pub fn page(&mut self) -> u64 {
        self.scratch += 4096;
        if self.scratch >= DATA {
            self.scratch = SCRATCH;
        }
        self.scratch
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
}
