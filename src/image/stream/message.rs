//! The language between the sender of a stream and the receiver on a peer's host, as bytes.
//!
//! ```text
//! sender                                       receiver
//!   Hello (which image, a nonce)        ──►
//!                                       ◄──    Challenge (its nonce, its proof)  or  Refused
//!   Proof                               ──►
//!                                       ◄──    Welcome                           or  Refused
//!   Items + their data, Whole           ──►
//!   Consistent, AsOf, Sync              ──►
//!                                       ◄──    Progress
//! ```
//!
//! Every message is a head of [`HEAD_LEN`] bytes, which says what it is and how long, and a body of
//! that length. The data of items comes behind the body, and counts only when [`Whole`] has come:
//! the sender looks once more, when it was sent, whether it was what it took it for.
//!
//! No message is longer than [`MAX_BODY`], no data than [`MAX_DATA`]; whatever else is not as it should
//! be is an error, and the connection is over.
//!
//! [`Whole`]: FromSender::Whole

use thiserror::Error;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cells::EntryKind;

/// The version of the language; others are refused.
pub const VERSION: u16 = 1;
/// What each message begins with.
pub const HEAD_LEN: usize = size_of::<RawHead>();
/// The most items of one message.
pub const MAX_ITEMS: usize = 1024;
/// The most bytes of a body.
pub const MAX_BODY: usize = MAX_ITEMS * size_of::<RawItem>();
/// The most bytes of data of one message.
pub const MAX_DATA: u64 = 4 << 20;
/// The most bytes of a reason.
const MAX_TEXT: usize = 1024;
const MAGIC: [u8; 4] = *b"bybs";

/// What was received is not of this language.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Garbage {
    /// It does not begin as a message.
    #[error("what was received is no message of a stream of writes")]
    Magic,
    /// No message of that kind there, now or ever.
    #[error("a message of kind {0} is not known here")]
    Kind(u8),
    /// Of no length that it may have.
    #[error("a message of kind {kind} has a body of {len} bytes")]
    Length {
        /// As it was received.
        kind: u8,
        /// Of the body, in bytes.
        len: u32,
    },
    /// An item that makes no sense.
    #[error("an item of a message makes no sense: kind {kind}, {len} bytes at {offset}")]
    Item {
        /// As it was received.
        kind: u8,
        /// Byte of the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// More data than one message may have.
    #[error("a message has {0} bytes of data, more than {MAX_DATA}")]
    Data(u64),
}

/// What a message says before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    len: u32,
}

impl Head {
    /// From the first bytes of a message.
    ///
    /// # Errors
    /// [`Garbage::Magic`], [`Garbage::Length`] of more than [`MAX_BODY`].
    pub fn decode(bytes: &[u8; HEAD_LEN]) -> Result<Self, Garbage> {
        let raw = RawHead::read_from_bytes(bytes).map_err(|_| Garbage::Magic)?;
        let (kind, len) = (raw.kind, raw.len.get());
        match raw.magic == MAGIC {
            false => Err(Garbage::Magic),
            true if len as usize > MAX_BODY => Err(Garbage::Length { kind, len }),
            true => Ok(Self { kind, len }),
        }
    }

    /// Bytes of the body.
    pub fn body(&self) -> usize {
        self.len as usize
    }

    fn unfit(&self) -> Garbage {
        let Self { kind, len } = *self;
        Garbage::Length { kind, len }
    }

    fn read<T: FromBytes>(&self, body: &[u8]) -> Result<T, Garbage> {
        T::read_from_bytes(body).map_err(|_| self.unfit())
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    len: U32,
    kind: u8,
    reserved: [u8; 7],
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let head = RawHead {
        magic: MAGIC,
        // No body is longer than MAX_BODY.
        len: U32::new(body.len() as u32),
        kind,
        reserved: [0; 7],
    };
    [head.as_bytes(), body].concat()
}

/// Which stream it is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version that the sender speaks.
    pub version: u16,
    /// The volume's id.
    pub volume: Uuid,
    /// The gfid of the image's first file.
    pub image: Uuid,
    /// The session whose writes they are.
    pub session: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// Child index of the sender's brick.
    pub child: u32,
    /// Never used before.
    pub nonce: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHello {
    version: U16,
    reserved: [u8; 2],
    child: U32,
    size: U64,
    volume: [u8; 16],
    image: [u8; 16],
    session: [u8; 16],
    nonce: [u8; 32],
}

/// A change of the disk, or a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which; a copy of what the disk has is a write.
    pub kind: EntryKind,
    /// Byte of the disk.
    pub offset: u64,
    /// Bytes of the disk; of a write, which come with it, at most [`MAX_DATA`].
    pub len: u64,
}

impl Item {
    /// Bytes that come with it.
    pub fn data(&self) -> u64 {
        match self.kind {
            EntryKind::Write => self.len,
            EntryKind::Discard | EntryKind::Zeroes | EntryKind::Flush => 0,
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawItem {
    offset: U64,
    len: U64,
    kind: u8,
    reserved: [u8; 7],
}

impl RawItem {
    fn of(item: &Item) -> Self {
        Self {
            offset: U64::new(item.offset),
            len: U64::new(item.len),
            kind: item.kind as u8,
            reserved: [0; 7],
        }
    }

    fn item(&self) -> Result<Item, Garbage> {
        let (kind, offset, len) = (self.kind, self.offset.get(), self.len.get());
        let garbage = Garbage::Item { kind, offset, len };
        let item = Item {
            kind: EntryKind::from_code(kind).ok_or(garbage)?,
            offset,
            len,
        };
        let sensible = match item.kind {
            EntryKind::Flush => offset == 0 && len == 0,
            EntryKind::Write => len > 0 && len <= MAX_DATA,
            EntryKind::Discard | EntryKind::Zeroes => len > 0,
        };
        let ends = offset.checked_add(len).is_some();
        (sensible && ends).then_some(item).ok_or(garbage)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPair {
    first: U64,
    second: U64,
}

/// What the sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSender {
    /// The first message.
    Hello(Hello),
    /// That it knows the volume's secret.
    Proof([u8; 32]),
    /// These, in order; their data follows.
    Items(Vec<Item>),
    /// The items before this message, and their data, were what they were taken for.
    Whole,
    /// With all items before this message the copy is consistent.
    Consistent,
    /// All items before this message were let in before this time: the sender's, in milliseconds
    /// since 1970.
    AsOf(u64),
    /// Say at once when all items before this message are durable.
    Sync,
}

impl FromSender {
    /// As bytes; the data of items comes behind them.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => message(
                1,
                RawHello {
                    version: U16::new(hello.version),
                    reserved: [0; 2],
                    child: U32::new(hello.child),
                    size: U64::new(hello.size),
                    volume: hello.volume.into_bytes(),
                    image: hello.image.into_bytes(),
                    session: hello.session.into_bytes(),
                    nonce: hello.nonce,
                }
                .as_bytes(),
            ),
            Self::Proof(proof) => message(2, proof),
            Self::Items(items) => {
                let raw: Vec<_> = items.iter().map(RawItem::of).collect();
                message(3, raw.as_bytes())
            }
            Self::Whole => message(4, &[]),
            Self::Consistent => message(5, &[]),
            Self::AsOf(time) => message(6, U64::new(*time).as_bytes()),
            Self::Sync => message(7, &[]),
        }
    }

    /// From a head and its body.
    ///
    /// # Errors
    /// Any [`Garbage`].
    pub fn decode(head: Head, body: &[u8]) -> Result<Self, Garbage> {
        let empty = |message| match body.is_empty() {
            true => Ok(message),
            false => Err(head.unfit()),
        };
        match head.kind {
            1 => {
                let raw: RawHello = head.read(body)?;
                Ok(Self::Hello(Hello {
                    version: raw.version.get(),
                    volume: Uuid::from_bytes(raw.volume),
                    image: Uuid::from_bytes(raw.image),
                    session: Uuid::from_bytes(raw.session),
                    size: raw.size.get(),
                    child: raw.child.get(),
                    nonce: raw.nonce,
                }))
            }
            2 => Ok(Self::Proof(head.read(body)?)),
            3 => decode_items(head, body).map(Self::Items),
            4 => empty(Self::Whole),
            5 => empty(Self::Consistent),
            6 => Ok(Self::AsOf(head.read::<U64>(body)?.get())),
            7 => empty(Self::Sync),
            kind => Err(Garbage::Kind(kind)),
        }
    }
}

fn decode_items(head: Head, body: &[u8]) -> Result<Vec<Item>, Garbage> {
    let raw = <[RawItem]>::ref_from_bytes(body).map_err(|_| head.unfit())?;
    if raw.is_empty() || raw.len() > MAX_ITEMS {
        return Err(head.unfit());
    }
    let items = raw
        .iter()
        .map(RawItem::item)
        .collect::<Result<Vec<_>, _>>()?;
    let data = items.iter().map(Item::data).sum();
    match data {
        0..=MAX_DATA => Ok(items),
        _ => Err(Garbage::Data(data)),
    }
}

/// What the receiver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromReceiver {
    /// That it knows the volume's secret, and its own nonce.
    Challenge {
        /// Never used before.
        nonce: [u8; 32],
        /// Over both nonces.
        proof: [u8; 32],
    },
    /// It is ready for items.
    Welcome,
    /// It takes none, for this reason.
    Refused(String),
    /// How many items it has.
    Progress {
        /// On its disk.
        applied: u64,
        /// Durably.
        durable: u64,
    },
}

impl FromReceiver {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Challenge { nonce, proof } => message(33, &[*nonce, *proof].concat()),
            Self::Welcome => message(34, &[]),
            Self::Refused(why) => message(35, &why.as_bytes()[..why.floor_char_boundary(MAX_TEXT)]),
            Self::Progress { applied, durable } => message(
                36,
                RawPair {
                    first: U64::new(*applied),
                    second: U64::new(*durable),
                }
                .as_bytes(),
            ),
        }
    }

    /// From a head and its body.
    ///
    /// # Errors
    /// Any [`Garbage`].
    pub fn decode(head: Head, body: &[u8]) -> Result<Self, Garbage> {
        match head.kind {
            33 => {
                let [nonce, proof] = head.read(body)?;
                Ok(Self::Challenge { nonce, proof })
            }
            34 if body.is_empty() => Ok(Self::Welcome),
            35 if body.len() <= MAX_TEXT => {
                Ok(Self::Refused(String::from_utf8_lossy(body).into_owned()))
            }
            36 => {
                let raw: RawPair = head.read(body)?;
                Ok(Self::Progress {
                    applied: raw.first.get(),
                    durable: raw.second.get(),
                })
            }
            34 | 35 => Err(head.unfit()),
            kind => Err(Garbage::Kind(kind)),
        }
    }
}

#[cfg(test)]
mod tests;
