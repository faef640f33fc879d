//! What a front-end has said so far, as far as another protocol handler must be told
//! it: the last word on each thing, with its file descriptors.
//!
//! Kept by the relay for each connection; told again by `pause` when the front-end
//! goes on with another process. What is logged for a migration is not kept: while
//! one is under way nobody else can go on ([`Transcript::may_pause`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};

/// Kinds of messages of which the last one counts, per ring where it names one, in the
/// order in which they are told: as QEMU does when it connects.
const KEPT: [FrontendReq; 12] = [
    FrontendReq::SET_OWNER,
    FrontendReq::SET_PROTOCOL_FEATURES,
    FrontendReq::SET_FEATURES,
    FrontendReq::SET_BACKEND_REQ_FD,
    FrontendReq::SET_INFLIGHT_FD,
    FrontendReq::SET_VRING_NUM,
    FrontendReq::SET_VRING_BASE,
    FrontendReq::SET_VRING_ADDR,
    FrontendReq::SET_VRING_ERR,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_ENABLE,
];
/// How many of those come before the memory.
const BEFORE_MEMORY: usize = 5;

/// Bytes before the regions in `SET_MEM_TABLE` and `ADD_MEM_REG`, and of a region.
const BEFORE_REGIONS: usize = 8;
const REGION: usize = 32;

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Which.
    pub code: u32,
    /// Its payload.
    pub body: Vec<u8>,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

/// A message to be told.
#[derive(Debug)]
pub struct Told<'a> {
    /// Which.
    pub code: u32,
    /// Its payload.
    pub body: Vec<u8>,
    /// What goes with it.
    pub fds: Vec<&'a OwnedFd>,
}

impl<'a> From<&'a Message> for Told<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            code: message.code,
            body: message.body.clone(),
            fds: message.fds.iter().collect(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Transcript {
    rings: u32,
    /// By place in [`KEPT`], and by ring.
    last: BTreeMap<(usize, u32), Message>,
    /// The guest's memory, each region as its 32 bytes.
    regions: Vec<(Vec<u8>, OwnedFd)>,
    /// The device was reset, and no driver has begun anew.
    reset: bool,
}

impl Transcript {
    /// Nothing yet, to a device of so many rings.
    pub fn new(rings: u16) -> Self {
        Self {
            rings: rings.into(),
            last: BTreeMap::new(),
            regions: Vec::new(),
            reset: false,
        }
    }

    /// The front-end says something.
    ///
    /// # Errors
    /// No file descriptor is left to keep it.
    pub fn note(&mut self, code: u32, body: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let Ok(kind) = FrontendReq::try_from(code) else {
            return Ok(());
        };
        match kind {
            FrontendReq::SET_MEM_TABLE => {
                self.regions.clear();
                return self.add_regions(body, fds);
            }
            FrontendReq::ADD_MEM_REG => return self.add_regions(body, fds),
            FrontendReq::REM_MEM_REG => self.remove_region(body),
            // It stops a ring: its event fds are forgotten, and where it was is its own.
            FrontendReq::GET_VRING_BASE => {
                let ring = ring_of(kind, body);
                self.forget(FrontendReq::SET_VRING_KICK, ring);
                self.forget(FrontendReq::SET_VRING_CALL, ring);
                self.forget(FrontendReq::SET_VRING_BASE, ring);
            }
            FrontendReq::RESET_DEVICE | FrontendReq::RESET_OWNER => self.reset = true,
            _ => {}
        }
        let Some(place) = KEPT.iter().position(|kept| *kept == kind) else {
            return Ok(());
        };
        if kind == FrontendReq::SET_FEATURES {
            self.reset = false;
        }
        let ring = match place < BEFORE_MEMORY {
            true => 0,
            false => ring_of(kind, body),
        };
        // Any other is for the handler to refuse.
        if ring < self.rings {
            let message = Message {
                code,
                body: body.to_vec(),
                fds: fds
                    .iter()
                    .map(OwnedFd::try_clone)
                    .collect::<Result<_, _>>()?,
            };
            self.last.insert((place, ring), message);
        }
        Ok(())
    }

    /// Everything, in the order in which to tell it.
    pub fn messages(&self) -> Vec<Told<'_>> {
        let split = (BEFORE_MEMORY, 0);
        let before = self.last.range(..split).map(|(_, message)| message.into());
        let after = self.last.range(split..).map(|(_, message)| message.into());
        before.chain(self.memory()).chain(after).collect()
    }

    /// The front-end has said nothing.
    pub fn is_empty(&self) -> bool {
        self.last.is_empty() && self.regions.is_empty()
    }

    /// Everything, for another process to note.
    pub fn into_messages(mut self) -> Vec<Message> {
        let regions = std::mem::take(&mut self.regions);
        let region = |(region, fd): (Vec<u8>, OwnedFd)| Message {
            code: FrontendReq::ADD_MEM_REG as u32,
            body: [vec![0; BEFORE_REGIONS], region].concat(),
            fds: vec![fd],
        };
        let regions = regions.into_iter().map(region);
        self.last.into_values().chain(regions).collect()
    }

    /// The rings that run, or would if they were enabled.
    pub fn started(&self) -> Vec<u32> {
        let kicks = self.of(FrontendReq::SET_VRING_KICK);
        kicks.map(|(ring, _)| ring).collect()
    }

    /// The event fds by which the driver tells of requests.
    pub fn kicks(&self) -> impl Iterator<Item = &OwnedFd> {
        let kicks = self.of(FrontendReq::SET_VRING_KICK);
        kicks.filter_map(|(_, message)| message.fds.first())
    }

    /// A ring was stopped, to go on at `base`.
    pub fn stopped_at(&mut self, ring: u32, base: u32) {
        let body = [ring.to_ne_bytes(), base.to_ne_bytes()].concat();
        // It has no file descriptors, which alone can fail.
        let _ = self.note(FrontendReq::SET_VRING_BASE as u32, &body, &[]);
    }

    /// May the front-end go on with another process now?
    ///
    /// # Errors
    /// Why not.
    pub fn may_pause(&self) -> Result<(), &'static str> {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        let logs_ring = |(_, message): (u32, &Message)| word(&message.body, 4) & 1 != 0;
        if self.word64(FrontendReq::SET_FEATURES) & log_all != 0
            || self.of(FrontendReq::SET_VRING_ADDR).any(logs_ring)
        {
            Err("the guest is being migrated")
        } else if self.reset {
            Err("the guest's driver has reset the device and not begun anew")
        } else {
            Ok(())
        }
    }

    /// Both features are negotiated that make the handler answer whoever asks for it.
    pub fn wants_acknowledgements(&self) -> bool {
        let negotiated = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.word64(FrontendReq::SET_FEATURES) & negotiated != 0
            && self.protocol() & Protocol::REPLY_ACK.bits() != 0
    }

    /// The protocol features that the front-end accepted.
    fn protocol(&self) -> u64 {
        self.word64(FrontendReq::SET_PROTOCOL_FEATURES)
    }

    fn of(&self, kind: FrontendReq) -> impl Iterator<Item = (u32, &Message)> {
        let place = KEPT.iter().position(|kept| *kept == kind);
        let all = self.last.iter();
        all.filter(move |((at, _), _)| Some(*at) == place)
            .map(|((_, ring), message)| (*ring, message))
    }

    fn word64(&self, kind: FrontendReq) -> u64 {
        let body = self.of(kind).next().map(|(_, message)| &message.body[..]);
        let bytes = body.and_then(|body| body.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    fn forget(&mut self, kind: FrontendReq, ring: u32) {
        if let Some(place) = KEPT.iter().position(|kept| *kept == kind) {
            self.last.remove(&(place, ring));
        }
    }

    fn add_regions(&mut self, body: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let regions = body.get(BEFORE_REGIONS..).unwrap_or_default();
        for (region, fd) in regions.chunks_exact(REGION).zip(fds) {
            self.regions.push((region.to_vec(), fd.try_clone()?));
        }
        Ok(())
    }

    /// By guest address, length and the front-end's address.
    fn remove_region(&mut self, body: &[u8]) {
        let names = BEFORE_REGIONS..BEFORE_REGIONS + REGION - 8;
        let Some(wanted) = body.get(names) else {
            return;
        };
        let at = self
            .regions
            .iter()
            .position(|(region, _)| region.starts_with(wanted));
        if let Some(at) = at {
            self.regions.remove(at);
        }
    }

    /// Region by region, where that is negotiated: a table may be too small for all.
    fn memory<'a>(&'a self) -> Vec<Told<'a>> {
        if self.regions.is_empty() {
            return Vec::new();
        }
        let slots = Protocol::CONFIGURE_MEM_SLOTS.bits();
        let (kind, at_once, count) = match self.protocol() & slots != 0 {
            true => (FrontendReq::ADD_MEM_REG, 1, 0),
            false => (
                FrontendReq::SET_MEM_TABLE,
                self.regions.len(),
                self.regions.len() as u64,
            ),
        };
        let told = |regions: &'a [(Vec<u8>, OwnedFd)]| {
            let mut body = count.to_ne_bytes().to_vec();
            regions.iter().for_each(|(region, _)| body.extend(region));
            let fds = regions.iter().map(|(_, fd)| fd).collect();
            let code = kind as u32;
            Told { code, body, fds }
        };
        self.regions.chunks(at_once).map(told).collect()
    }
}

/// The ring that a message names: in the low byte of one that brings an event fd, in
/// the first word of others.
fn ring_of(kind: FrontendReq, body: &[u8]) -> u32 {
    let word = word(body, 0);
    match kind {
        FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
            word & 0xff
        }
        _ => word,
    }
}

fn word(body: &[u8], at: usize) -> u32 {
    let bytes = body.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes))
}
