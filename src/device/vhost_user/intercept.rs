//! The messages that `vhost-user-backend` cannot answer, or of which it drops a
//! part that matters.
//!
//! `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD` it refuses, `SET_LOG_BASE` goes to a
//! kind of bitmap that is not ours, `SET_LOG_FD` it does not know, of
//! `SET_VRING_ADDR` it forgets where the used ring is logged, the channel of
//! `SET_BACKEND_REQ_FD` it keeps without the message that is needed, and memory it maps
//! without a look at the file. Why it refuses a feature or a ring it does not say. The relay
//! shows every message here before it
//! passes it on. Payloads are as in the vhost-user specification, "Payload", in
//! the machine's byte order.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
    VhostUserVringAddrFlags,
};
use vm_memory::GuestAddressSpace;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::error::DeviceError;
use crate::device::guest::memory::MemoryHandle;
use crate::device::queue::vring::never_wait_for;
use crate::device::shared_memory::dirty_log::DirtyLog;
use crate::device::shared_memory::inflight::{Description, Inflight};
use crate::device::shared_memory::log_switch::Logging;
use crate::device::shared_memory::mapping::check_within;
use crate::device::size_change::SizeChanges;

/// The version and whether it is a reply, of a header's flags.
const HEADER_FLAGS: u32 = 0b111;
/// Those of a request.
const VERSION: u32 = 1;

/// A whole message from the front-end.
pub struct FrontEndRequest<'a> {
    /// Which one.
    pub code: u32,
    /// As in its header.
    pub flags: u32,
    /// Its payload.
    pub body: &'a [u8],
}

/// What becomes of a message.
pub enum Verdict {
    /// It goes to the handler.
    Pass,
    /// It has been dealt with, and nothing is said.
    Done,
    /// It has been dealt with, and is answered so.
    Reply {
        /// The answer's payload.
        body: Vec<u8>,
        /// What goes with it.
        fd: Option<OwnedFd>,
    },
}

/// `VhostUserInflight`, without what a compiler may pad it with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct InflightBody {
    len: u64,
    offset: u64,
    queues: u16,
    entries: u16,
}

/// `VhostUserLog`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LogBody {
    len: u64,
    offset: u64,
}

/// `vhost_vring_addr`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AddressBody {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// A memory region description.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RegionBody {
    guest_address: u64,
    len: u64,
    user_address: u64,
    offset: u64,
}

/// `vhost_vring_state`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StateBody {
    index: u32,
    number: u32,
}

/// What a front-end can have of this device.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Virtio and vhost feature bits.
    pub features: u64,
    /// Number of queues.
    pub queues: u16,
    /// Entries of the largest ring.
    pub queue_size: u16,
}

/// Bytes before the regions, of `SET_MEM_TABLE` and of `ADD_MEM_REG` alike.
const BEFORE_REGIONS: usize = 8;

/// For one connection.
pub struct Intercept {
    offer: Offer,
    inflight: Arc<Inflight>,
    logging: Arc<Logging>,
    memory: MemoryHandle,
    size_changes: SizeChanges,
    /// The protocol features that the front-end accepted.
    acked: u64,
    /// A driver has negotiated.
    used: bool,
}

impl Intercept {
    /// Keeps `inflight`, `logging` and the channel of `size_changes` as the front-end says;
    /// `memory` is the map in force.
    pub fn new(
        offer: Offer,
        inflight: Arc<Inflight>,
        logging: Arc<Logging>,
        memory: MemoryHandle,
        size_changes: SizeChanges,
    ) -> Self {
        Self {
            offer,
            inflight,
            logging,
            memory,
            size_changes,
            acked: 0,
            used: false,
        }
    }

    /// Whether a guest's driver has used the disk in this connection.
    pub fn used(&self) -> bool {
        self.used
    }

    /// Deals with a message, or lets it pass. Takes the file descriptors that came
    /// with it only in the first case.
    ///
    /// # Errors
    /// It is malformed, was not negotiated, or asks for what cannot be done.
    pub fn request(
        &mut self,
        request: &FrontEndRequest<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Verdict, DeviceError> {
        let Ok(code) = FrontendReq::try_from(request.code) else {
            return Ok(Verdict::Pass);
        };
        match code {
            FrontendReq::SET_PROTOCOL_FEATURES => {
                if let Ok(acked) = u64::read_from_bytes(request.body) {
                    self.acked = acked;
                }
                Ok(Verdict::Pass)
            }
            FrontendReq::SET_FEATURES => {
                if let Ok(acked) = u64::read_from_bytes(request.body) {
                    self.check_features(acked)?;
                }
                self.used = true;
                Ok(Verdict::Pass)
            }
            FrontendReq::SET_VRING_NUM => {
                if let Ok(body) = StateBody::read_from_bytes(request.body) {
                    self.check_ring(&body)?;
                }
                Ok(Verdict::Pass)
            }
            FrontendReq::SET_VRING_ADDR => {
                if let Ok(body) = AddressBody::read_from_bytes(request.body) {
                    self.address(&body);
                }
                Ok(Verdict::Pass)
            }
            FrontendReq::SET_MEM_TABLE | FrontendReq::ADD_MEM_REG => {
                check_memory(request, fds)?;
                Ok(Verdict::Pass)
            }
            FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::SET_INFLIGHT_FD
            | FrontendReq::SET_LOG_BASE
            | FrontendReq::SET_LOG_FD
            | FrontendReq::SET_BACKEND_REQ_FD => {
                if request.flags & HEADER_FLAGS != VERSION {
                    return Err(malformed(request));
                }
                match code {
                    FrontendReq::GET_INFLIGHT_FD => self.get_inflight(request),
                    FrontendReq::SET_INFLIGHT_FD => self.set_inflight(request, fds),
                    FrontendReq::SET_LOG_BASE => self.set_log_base(request, fds),
                    FrontendReq::SET_BACKEND_REQ_FD => self.set_backend_channel(request, fds),
                    _ => self.set_log_fd(request, fds),
                }
            }
            _ => Ok(Verdict::Pass),
        }
    }

    /// The handler would refuse these as well, without a word that helps whoever has
    /// started a daemon with other options under a running guest.
    fn check_features(&self, acked: u64) -> Result<(), DeviceError> {
        match acked & !self.offer.features {
            0 => Ok(()),
            missing => Err(DeviceError::Features { missing }),
        }
    }

    fn check_ring(&self, ring: &StateBody) -> Result<(), DeviceError> {
        let Offer {
            queues, queue_size, ..
        } = self.offer;
        if ring.index >= queues.into() {
            return Err(DeviceError::NoSuchQueue {
                asked: ring.index,
                queues,
            });
        }
        if ring.number > queue_size.into() {
            return Err(DeviceError::RingSize {
                asked: ring.number,
                queue_size,
            });
        }
        Ok(())
    }

    /// A queue that does not exist is for the handler to refuse.
    fn address(&self, body: &AddressBody) {
        let logged = body.flags & VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits() != 0;
        self.logging
            .set_used(body.index as usize, logged.then_some(body.log));
    }

    fn get_inflight(&self, request: &FrontEndRequest<'_>) -> Result<Verdict, DeviceError> {
        self.negotiated(request, Protocol::INFLIGHT_SHMFD)?;
        let asked = inflight_body(request)?;
        let (made, fd) = self.inflight.make(asked).map_err(DeviceError::Inflight)?;
        let made = InflightBody {
            len: made.len,
            offset: made.offset,
            queues: made.queues,
            entries: made.entries,
        };
        let mut body = made.as_bytes().to_vec();
        // With the padding that the front-end has, or has not.
        body.resize(request.body.len(), 0);
        Ok(Verdict::Reply { body, fd: Some(fd) })
    }

    fn set_inflight(
        &self,
        request: &FrontEndRequest<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Verdict, DeviceError> {
        self.negotiated(request, Protocol::INFLIGHT_SHMFD)?;
        let description = inflight_body(request)?;
        self.inflight
            .set(description, only_file(request, fds)?)
            .map_err(DeviceError::Inflight)?;
        Ok(self.acknowledge(request))
    }

    /// Answered in any case, with what was asked (the front-end waits for it).
    fn set_log_base(
        &self,
        request: &FrontEndRequest<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Verdict, DeviceError> {
        self.negotiated(request, Protocol::LOG_SHMFD)?;
        let body = LogBody::read_from_bytes(request.body).map_err(|_| malformed(request))?;
        let file = only_file(request, fds)?;
        let log = DirtyLog::new(file, body.offset, body.len).map_err(DeviceError::Log)?;
        self.logging
            .set_log(log, &self.memory.memory())
            .map_err(DeviceError::Log)?;
        Ok(Verdict::Reply {
            body: request.body.to_vec(),
            fd: None,
        })
    }

    fn set_log_fd(
        &self,
        request: &FrontEndRequest<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Verdict, DeviceError> {
        let event = only_file(request, fds)?;
        never_wait_for(&event);
        self.logging.set_listener(event);
        Ok(self.acknowledge(request))
    }

    fn set_backend_channel(
        &self,
        request: &FrontEndRequest<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Verdict, DeviceError> {
        self.negotiated(request, Protocol::BACKEND_REQ)?;
        let channel = only_file(request, fds)?;
        self.size_changes.set_channel(OwnedFd::from(channel).into());
        Ok(self.acknowledge(request))
    }

    fn negotiated(
        &self,
        request: &FrontEndRequest<'_>,
        feature: Protocol,
    ) -> Result<(), DeviceError> {
        if self.acked & feature.bits() != 0 {
            return Ok(());
        }
        Err(DeviceError::NotNegotiated {
            code: request.code,
            feature,
        })
    }

    /// `VHOST_USER_PROTOCOL_F_REPLY_ACK`.
    fn acknowledge(&self, request: &FrontEndRequest<'_>) -> Verdict {
        let wanted = request.flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        if wanted && self.acked & Protocol::REPLY_ACK.bits() != 0 {
            let done = 0u64;
            return Verdict::Reply {
                body: done.to_ne_bytes().to_vec(),
                fd: None,
            };
        }
        Verdict::Done
    }
}

/// Refuses memory that its file does not have, at which a first look would end
/// the process. Whatever else is wrong is for the handler to refuse.
fn check_memory(request: &FrontEndRequest<'_>, fds: &[OwnedFd]) -> Result<(), DeviceError> {
    let regions = request.body.get(BEFORE_REGIONS..).unwrap_or_default();
    for (region, fd) in regions.chunks_exact(size_of::<RegionBody>()).zip(fds) {
        let Ok(region) = RegionBody::read_from_bytes(region) else {
            continue;
        };
        check_within(fd, region.offset, region.len).map_err(DeviceError::Memory)?;
    }
    Ok(())
}

fn inflight_body(request: &FrontEndRequest<'_>) -> Result<Description, DeviceError> {
    let padded = size_of::<InflightBody>().next_multiple_of(align_of::<u64>());
    if request.body.len() > padded {
        return Err(malformed(request));
    }
    let (body, _) = InflightBody::read_from_prefix(request.body).map_err(|_| malformed(request))?;
    Ok(Description {
        len: body.len,
        offset: body.offset,
        queues: body.queues,
        entries: body.entries,
    })
}

/// The one file that must come with the message.
fn only_file(request: &FrontEndRequest<'_>, fds: &mut Vec<OwnedFd>) -> Result<File, DeviceError> {
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok(fd.into()),
        _ => Err(malformed(request)),
    }
}

fn malformed(request: &FrontEndRequest<'_>) -> DeviceError {
    DeviceError::Malformed { code: request.code }
}
