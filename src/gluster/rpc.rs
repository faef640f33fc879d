//! ONC RPC (RFC 5531) as Gluster uses it: headers, programs, credentials.
//!
//! Pure codecs of the part of a record before the procedure's own arguments or
//! results. Numbers are from GlusterFS `rpc/rpc-lib/src/protocol-common.h`.

use thiserror::Error;

use super::record;
use super::xdr::{Decoder, Encoder, XdrError};

const RPC_VERSION: u32 = 2;
const MESSAGE_CALL: u32 = 0;
const MESSAGE_REPLY: u32 = 1;
const AUTH_NONE: u32 = 0;
/// `AUTH_GLUSTERFS_v3`.
const AUTH_GLUSTER: u32 = 390_040;
/// An authenticator's longest body (RFC 5531, section 8.2).
const MAX_AUTH_BODY: usize = 400;

/// A remote program and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Program number.
    pub number: u32,
    /// Version.
    pub version: u32,
}

/// SETVOLUME, GETSPEC, PING; spoken by glusterd and bricks.
pub const HANDSHAKE: Program = Program {
    number: 14_398_633,
    version: 2,
};
/// glusterd's map of bricks to ports.
pub const PORTMAP: Program = Program {
    number: 34_123_456,
    version: 1,
};
/// The file operations of a brick.
pub const FILE_OPERATIONS: Program = Program {
    number: 1_298_437,
    version: 400,
};
/// The part of the command line's program that glusterd serves over TCP.
pub const COMMAND_LINE: Program = Program {
    number: 1_238_463,
    version: 2,
};

/// Who holds a lock and who writes: bytes that Gluster compares and hands back
/// to whoever asks for a conflicting lock, but does not interpret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LkOwner(Vec<u8>);

/// A lock owner of a length that bricks do not take.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a lock owner of {length} bytes; bricks take 1 to {}", LkOwner::MAX)]
pub struct BadLkOwner {
    /// Its length in bytes.
    pub length: usize,
}

impl LkOwner {
    /// The longest owner in bytes that a brick accepts with no auxiliary
    /// groups. (`GF_AUTH_GLUSTERFS_MAX_LKOWNER` of
    /// `rpc/rpc-lib/src/xdr-common.h`: the credentials have room for more, but
    /// the check counts bytes as if they were 4-byte units.)
    pub const MAX: usize = 91;

    /// Checks the length of `bytes`. An empty owner would be everybody's.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BadLkOwner> {
        let bytes = bytes.into();
        match bytes.len() {
            1..=Self::MAX => Ok(Self(bytes)),
            length => Err(BadLkOwner { length }),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for LkOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LkOwner({})", self.0.escape_ascii())
    }
}

/// On whose behalf a call is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Handshake and glusterd: `AUTH_NONE`.
    None,
    /// File operations (`auth_glusterfs_params_v3`), always as root.
    Client {
        /// Process id; bricks treat negative ones as Gluster's own daemons.
        pid: i32,
        /// Owner of the locks that the call takes or needs.
        lk_owner: LkOwner,
    },
}

impl Credentials {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::None => {
                to.u32(AUTH_NONE).opaque(&[]);
            }
            Self::Client { pid, lk_owner } => {
                let mut body = Encoder::new();
                let (uid, gid, flags) = (0, 0, 0);
                let (ctime_nsec, ctime_sec) = (0, 0);
                let groups = 0;
                body.i32(*pid)
                    .u32(uid)
                    .u32(gid)
                    .u32(flags)
                    .u32(ctime_nsec)
                    .u64(ctime_sec)
                    .u32(groups)
                    .opaque(lk_owner.as_bytes());
                to.u32(AUTH_GLUSTER).opaque(&body.into_bytes());
            }
        }
    }
}

/// A call, ready to be sent once it has a transaction id.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The program called.
    pub program: Program,
    /// Procedure number.
    pub procedure: u32,
    /// The caller.
    pub credentials: &'a Credentials,
    /// The encoded arguments.
    pub arguments: &'a [u8],
    /// Data that follows the arguments as it is (WRITE's bytes).
    pub payload: &'a [u8],
}

impl Call<'_> {
    /// The record mark, header and arguments, to be followed by the payload;
    /// `None` if the record would be too long.
    pub fn encode(&self, xid: u32) -> Option<Vec<u8>> {
        let mut head = Encoder::new();
        head.u32(0) // the record mark's place
            .u32(xid)
            .u32(MESSAGE_CALL)
            .u32(RPC_VERSION)
            .u32(self.program.number)
            .u32(self.program.version)
            .u32(self.procedure);
        self.credentials.encode(&mut head);
        head.u32(AUTH_NONE).opaque(&[]); // verifier
        head.fixed(self.arguments);
        let mut bytes = head.into_bytes();
        let length = (bytes.len() - record::MARK_LEN).checked_add(self.payload.len())?;
        bytes
            .first_chunk_mut::<{ record::MARK_LEN }>()?
            .copy_from_slice(&record::mark(length)?);
        Some(bytes)
    }
}

/// Why a peer's RPC layer did not run a call.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// The peer does not serve this program.
    #[error("the peer does not serve this program")]
    ProgramUnavailable,
    /// The peer serves other versions of the program.
    #[error("the peer serves versions {low} to {high} of this program")]
    ProgramMismatch {
        /// Lowest version served.
        low: u32,
        /// Highest version served.
        high: u32,
    },
    /// The program has no such procedure.
    #[error("the peer's program has no such procedure")]
    ProcedureUnavailable,
    /// The peer could not read the arguments.
    #[error("the peer could not read the arguments")]
    GarbageArguments,
    /// The peer failed inside.
    #[error("the peer failed to run the call (before the handshake, or out of memory)")]
    SystemError,
    /// The peer speaks another version of RPC itself.
    #[error("the peer speaks another version of RPC")]
    RpcMismatch,
    /// The credentials were refused.
    #[error("the peer refused the credentials (status {status})")]
    Authentication {
        /// `auth_stat` of RFC 5531, section 9.
        status: u32,
    },
}

/// What a record from a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The answer to one of our calls.
    Reply {
        /// The call's transaction id.
        xid: u32,
        /// Where in the record the results begin, or why there are none.
        results: Result<usize, Rejection>,
    },
    /// A call from the peer: a brick's notice, which needs no answer.
    Call {
        /// Program called.
        program: u32,
        /// Procedure number.
        procedure: u32,
        /// Where in the record its arguments begin.
        arguments: usize,
    },
}

/// Reads the header of a record.
pub fn parse(record: &[u8]) -> Result<Message, XdrError> {
    let mut header = Decoder::new(record);
    let xid = header.u32()?;
    match header.u32()? {
        MESSAGE_CALL => {
            let _rpc_version = header.u32()?;
            let program = header.u32()?;
            let _version = header.u32()?;
            let procedure = header.u32()?;
            for _ in ["credentials", "verifier"] {
                let _flavor = header.u32()?;
                let _body = header.opaque(MAX_AUTH_BODY)?;
            }
            Ok(Message::Call {
                program,
                procedure,
                arguments: record.len() - header.rest().len(),
            })
        }
        MESSAGE_REPLY => {
            let rejection = parse_reply_status(&mut header)?;
            let position = record.len() - header.rest().len();
            let results = rejection.map_or(Ok(position), Err);
            Ok(Message::Reply { xid, results })
        }
        other => Err(unknown("RPC message type", other)),
    }
}

fn parse_reply_status(header: &mut Decoder<'_>) -> Result<Option<Rejection>, XdrError> {
    const ACCEPTED: u32 = 0;
    const DENIED: u32 = 1;
    match header.u32()? {
        ACCEPTED => {
            let _verifier_flavor = header.u32()?;
            let _verifier = header.opaque(MAX_AUTH_BODY)?;
            Ok(match header.u32()? {
                0 => None,
                1 => Some(Rejection::ProgramUnavailable),
                2 => Some(Rejection::ProgramMismatch {
                    low: header.u32()?,
                    high: header.u32()?,
                }),
                3 => Some(Rejection::ProcedureUnavailable),
                4 => Some(Rejection::GarbageArguments),
                5 => Some(Rejection::SystemError),
                other => return Err(unknown("RPC accept status", other)),
            })
        }
        DENIED => Ok(Some(match header.u32()? {
            0 => Rejection::RpcMismatch,
            1 => Rejection::Authentication {
                status: header.u32()?,
            },
            other => return Err(unknown("RPC reject status", other)),
        })),
        other => Err(unknown("RPC reply status", other)),
    }
}

fn unknown(what: &'static str, value: u32) -> XdrError {
    XdrError::UnknownValue {
        what,
        value: value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepted(xid: u32, status: &[u32]) -> Vec<u8> {
        let mut reply = Encoder::new();
        reply.u32(xid).u32(MESSAGE_REPLY).u32(0).u32(AUTH_NONE);
        reply.opaque(&[]);
        for word in status {
            reply.u32(*word);
        }
        reply.into_bytes()
    }

    #[test]
    fn a_call_is_laid_out_as_the_rfc_says() {
        let credentials = Credentials::Client {
            pid: -6,
            lk_owner: LkOwner::new("abc").unwrap(),
        };
        let bytes = Call {
            program: FILE_OPERATIONS,
            procedure: 13,
            credentials: &credentials,
            arguments: &[9; 8],
            payload: b"12345",
        }
        .encode(77)
        .unwrap();
        let mut fields = Decoder::new(&bytes);
        let length = (bytes.len() - 4 + 5) as u32;
        assert_eq!(fields.u32(), Ok(length | 1 << 31));
        for expected in [77, 0, 2, 1_298_437, 400, 13, 390_040] {
            assert_eq!(fields.u32(), Ok(expected));
        }
        let mut body = Decoder::new(fields.opaque(MAX_AUTH_BODY).unwrap());
        assert_eq!(body.i32(), Ok(-6));
        for _ in 0..7 {
            assert_eq!(body.u32(), Ok(0));
        }
        assert_eq!(body.opaque(91), Ok(&b"abc"[..]));
        assert_eq!((fields.u32(), fields.u32()), (Ok(0), Ok(0)));
        assert_eq!(fields.rest(), [9; 8]);
    }

    #[test]
    fn the_longest_lock_owner_fits_the_credentials() {
        assert!(LkOwner::new(vec![0; LkOwner::MAX + 1]).is_err());
        assert!(LkOwner::new(Vec::new()).is_err());
        let mut body = Encoder::new();
        Credentials::Client {
            pid: 1,
            lk_owner: LkOwner::new(vec![1; LkOwner::MAX]).unwrap(),
        }
        .encode(&mut body);
        assert!(body.len() <= MAX_AUTH_BODY);
    }

    #[test]
    fn a_call_over_the_record_limit_is_not_encoded() {
        let call = Call {
            program: FILE_OPERATIONS,
            procedure: 13,
            credentials: &Credentials::None,
            arguments: &[],
            payload: &vec![0; record::MAX_RECORD],
        };
        assert_eq!(call.encode(1), None);
    }

    #[test]
    fn a_callback_is_never_taken_for_a_reply() {
        let call = Call {
            program: Program {
                number: 52_743_234,
                version: 1,
            },
            procedure: 10,
            credentials: &Credentials::None,
            arguments: b"args",
            payload: &[],
        }
        .encode(5)
        .unwrap();
        assert_eq!(
            parse(&call[record::MARK_LEN..]),
            Ok(Message::Call {
                program: 52_743_234,
                procedure: 10,
                arguments: call.len() - record::MARK_LEN - 4,
            })
        );
    }

    #[test]
    fn every_rejection_is_told_apart() {
        let cases = [
            (vec![1], Rejection::ProgramUnavailable),
            (
                vec![2, 3, 4],
                Rejection::ProgramMismatch { low: 3, high: 4 },
            ),
            (vec![3], Rejection::ProcedureUnavailable),
            (vec![4], Rejection::GarbageArguments),
            (vec![5], Rejection::SystemError),
        ];
        for (status, rejection) in cases {
            let results = Err(rejection);
            assert_eq!(
                parse(&accepted(9, &status)),
                Ok(Message::Reply { xid: 9, results })
            );
        }
    }

    #[test]
    fn results_begin_after_the_header() {
        let record = accepted(9, &[0, 42]);
        let results = Ok(record.len() - 4);
        assert_eq!(parse(&record), Ok(Message::Reply { xid: 9, results }));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(record in proptest::collection::vec(any::<u8>(), 0..96)) {
            let begin = match parse(&record) {
                Ok(Message::Reply { results: Ok(begin), .. }) => begin,
                Ok(Message::Call { arguments, .. }) => arguments,
                _ => 0,
            };
            prop_assert!(begin <= record.len());
        }

        #[test]
        fn a_damaged_reply_never_panics(cut in 0usize..40, flip in 0usize..40, bits: u8) {
            let mut record = accepted(1, &[2, 3, 4]);
            if let Some(byte) = record.get_mut(flip) { *byte ^= bits; }
            record.truncate(cut);
            let _ = parse(&record);
        }
    }
}
