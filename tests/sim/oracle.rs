//! What each sector may hold: the last acknowledged write, and those under way since.

use super::brick::{SECTORS, Version};

pub struct Oracle {
    sectors: Vec<Sector>,
    /// Where the last session that was opened is.
    host: Option<usize>,
}

#[derive(Clone)]
struct Sector {
    allowed: Vec<Version>,
    /// What may be there after a crash of the host whose guest wrote it: what was
    /// there when it was last flushed, and everything after.
    after_crash: Vec<Version>,
}

/// The guest's sectors; ordinary clients write the others. So it is always known whose
/// write is the last.
pub fn is_guests(sector: usize) -> bool {
    sector.is_multiple_of(2)
}

impl Oracle {
    pub fn new() -> Self {
        let sector = Sector {
            allowed: vec![0],
            after_crash: vec![0],
        };
        Self {
            sectors: vec![sector; SECTORS],
            host: None,
        }
    }

    pub fn submitted(&mut self, sector: usize, version: Version) {
        self.sectors[sector].allowed.push(version);
        self.sectors[sector].after_crash.push(version);
    }

    pub fn acknowledged(&mut self, sector: usize, version: Version) {
        self.sectors[sector].allowed = vec![version];
    }

    /// Everything acknowledged is on the disk.
    pub fn flushed(&mut self) {
        for sector in &mut self.sectors {
            sector.after_crash.clone_from(&sector.allowed);
        }
    }

    pub fn crashed(&mut self, host: usize) {
        if self.host == Some(host) {
            for sector in &mut self.sectors {
                sector.allowed.clone_from(&sector.after_crash);
            }
        }
    }

    /// A session is open on `host` and serves `copy`: what its guest reads now stays.
    pub fn opened(&mut self, host: usize, copy: &[Version]) {
        let moved = self.host.replace(host) != Some(host);
        for (sector, version) in self.sectors.iter_mut().zip(copy) {
            sector.allowed = vec![*version];
            if moved {
                sector.after_crash = vec![*version];
            }
        }
    }

    /// What only others had is given up.
    pub fn promoted(&mut self, host: usize, copy: &[Version]) {
        self.host = None;
        self.opened(host, copy);
    }

    /// The first of the guest's sectors where something is missing.
    pub fn missing(&self, copy: &[Version]) -> Option<String> {
        let mut sectors = self.sectors.iter().zip(copy).enumerate();
        sectors.find_map(|(number, (sector, found))| {
            let lost = is_guests(number) && !sector.allowed.contains(found);
            let allowed = &sector.allowed;
            lost.then(|| format!("sector {number} holds {found}, and may hold {allowed:?}"))
        })
    }
}
