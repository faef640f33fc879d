//! What a brick or a glusterd says unasked: calls of their callback program. Two kinds are of use:
//! that somebody else wants a lock which is held, and that a volume has changed. All others are
//! passed over.
//!
//! Pure codec. Numbers are from GlusterFS `rpc/rpc-lib/src/protocol-common.h`, the layout
//! (`gfs4_inodelk_contention_req`) from `rpc/xdr/src/glusterfs4-xdr.x`.

use uuid::Uuid;

use super::inode::Gfid;
use super::record::MAX_RECORD;
use super::rpc::Program;
use super::xdr::{Decoder, XdrError};

/// `GLUSTER_CBK_PROGRAM`.
const CALLBACK: Program = Program {
    number: 52_743_234,
    version: 1,
};
/// `GF_CBK_FETCHSPEC`.
const FETCHSPEC: u32 = 1;
/// `GF_CBK_INODELK_CONTENTION`.
const INODELK_CONTENTION: u32 = 10;
/// The longest name of a lock domain in bytes: that of a translator, and what AFR adds.
const MAX_DOMAIN: usize = 4096;
/// `GF_MAX_LOCK_OWNER_LEN`.
const MAX_OWNER: usize = 1024;

/// What is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// By a brick.
    Contention(Contention),
    /// By a glusterd, to whoever is connected: a volfile has changed. It does not say which
    /// (`glusterd_fetchspec_notify`, glusterd.c).
    VolumeChanged,
}

/// Somebody else has asked for an INODELK that conflicts with one of this connection's. Sent
/// with `features.locks-notify-contention`, which is on by default, and for each lock at most
/// once in `features.locks-notify-contention-delay` seconds, 5 by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contention {
    /// The file.
    pub gfid: Gfid,
    /// The lock's domain.
    pub domain: String,
}

impl Notice {
    /// What a call says, if it is of use.
    ///
    /// # Errors
    /// Arguments that are not such a call's.
    pub fn parse(program: u32, procedure: u32, arguments: &[u8]) -> Result<Option<Self>, XdrError> {
        if program != CALLBACK.number {
            return Ok(None);
        }
        Ok(match procedure {
            FETCHSPEC => Some(Self::VolumeChanged),
            INODELK_CONTENTION => Some(Self::Contention(Contention::parse(arguments)?)),
            _ => None,
        })
    }
}

impl Contention {
    fn parse(arguments: &[u8]) -> Result<Self, XdrError> {
        let mut from = Decoder::new(arguments);
        let gfid = Gfid(Uuid::from_bytes(from.fixed()?));
        // struct gf_proto_flock
        let (_kind, _whence) = (from.u32()?, from.u32()?);
        let (_start, _len) = (from.u64()?, from.u64()?);
        let (_pid, _owner) = (from.u32()?, from.opaque(MAX_OWNER)?);
        let _holder = from.u32()?;
        let domain = from.string(MAX_DOMAIN)?.to_owned();
        let _xdata = from.opaque(MAX_RECORD)?;
        Ok(Self { gfid, domain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::xdr::Encoder;
    use proptest::prelude::*;

    fn wanted(domain: &[u8]) -> Vec<u8> {
        let mut arguments = Encoder::new();
        let (kind, whence, pid) = (1, 0, 4711);
        arguments.fixed(&[7; 16]).u32(kind).u32(whence);
        arguments.u64(0).u64(0).u32(pid).opaque(b"owner");
        arguments.u32(pid).opaque(domain).opaque(&[]);
        arguments.into_bytes()
    }

    #[test]
    fn the_lock_that_somebody_wants_is_named() {
        let told = Notice::parse(52_743_234, 10, &wanted(b"gv0-replicate-0:self-heal"));
        let domain = "gv0-replicate-0:self-heal".to_owned();
        let gfid = Gfid(Uuid::from_bytes([7; 16]));
        let contention = Contention { gfid, domain };
        assert_eq!(told, Ok(Some(Notice::Contention(contention))));
    }

    #[test]
    fn a_glusterd_says_that_a_volume_has_changed_without_a_word_more() {
        let told = Notice::parse(52_743_234, 1, &[]);
        assert_eq!(told, Ok(Some(Notice::VolumeChanged)));
    }

    #[test]
    fn other_notices_are_passed_over_whatever_they_say() {
        for (program, procedure) in [(52_743_234, 9), (52_743_234, 11), (1, 10)] {
            assert_eq!(Notice::parse(program, procedure, b"x"), Ok(None));
        }
    }

    #[test]
    fn a_notice_that_is_cut_off_or_too_long_is_an_error() {
        let whole = wanted(b"domain");
        for len in 0..whole.len() {
            assert!(Notice::parse(52_743_234, 10, &whole[..len]).is_err());
        }
        let long = wanted(&[b'a'; MAX_DOMAIN + 1]);
        assert!(Notice::parse(52_743_234, 10, &long).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(arguments in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Notice::parse(52_743_234, 10, &arguments);
        }
    }
}
