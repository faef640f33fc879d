//! The file operations of a brick: names, attributes, counters and bytes.
//!
//! Requests and answers are those of GlusterFS `rpc/xdr/src/glusterfs4-xdr.x`.
//! Bytes are read and written by gfid alone, through the anonymous file
//! descriptor. Operations that move bytes also come as `start_…`, so that many
//! can be on their way at one time.

use std::collections::BTreeMap;

use super::brick::{Brick, Operation};
use super::connection::{Deadline, PendingCall, Weight};
use super::dict::{Dict, Value};
use super::error::{BrickError, Errno, ProtocolError};
use super::inode::{FileType, Gfid, Iatt};
use super::pending::{BadPending, PENDING_LEN, Pending};
use super::xdr::{Decoder, Encoder};

/// "The file of this gfid, without an open": `GF_ANON_FD_NO`.
const ANONYMOUS_FD: i64 = -2;

pub(super) const fn operation(number: u32, name: &'static str) -> Operation {
    Operation { number, name }
}

// enum gf_fop_procnum of rpc/rpc-lib/src/protocol-common.h
const OPEN: Operation = operation(11, "OPEN");
const STATFS: Operation = operation(14, "STATFS");
const FSYNC: Operation = operation(16, "FSYNC");
const SETXATTR: Operation = operation(17, "SETXATTR");
const GETXATTR: Operation = operation(18, "GETXATTR");
const REMOVEXATTR: Operation = operation(19, "REMOVEXATTR");
const LOOKUP: Operation = operation(27, "LOOKUP");
pub(super) const XATTROP: Operation = operation(33, "XATTROP");
const RELEASE: Operation = operation(41, "RELEASE");

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file's attributes, its gfid among them.
    pub iatt: Iatt,
    /// The extended attributes that were asked for and that exist (and some that
    /// the brick adds).
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// The file's identity.
    pub fn gfid(&self) -> Gfid {
        self.iatt.gfid
    }

    /// The data counter of the pending attribute `name`; zero where there is none.
    ///
    /// # Errors
    /// A value that is none.
    pub fn pending_data(&self, name: &str) -> Result<i32, BadPending> {
        self.pending(name).map(|pending| pending.data)
    }

    /// The pending attribute `name`; all zero where there is none.
    ///
    /// # Errors
    /// A value that is none.
    pub fn pending(&self, name: &str) -> Result<Pending, BadPending> {
        let value = self.xattrs.get(name);
        value.map_or(Ok(Pending::default()), |value| Pending::from_bytes(value))
    }
}

/// A file opened on a brick. It is closed by [`Brick::release`] or with the
/// connection, and the posix locks taken through it go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteFd {
    /// The file.
    pub gfid: Gfid,
    /// The number it has in this connection.
    pub(super) number: i64,
}

impl RemoteFd {
    /// Its number in this connection, for a process that goes on with it.
    pub fn number(self) -> i64 {
        self.number
    }

    /// A file that another process opened on a connection that it left to this one.
    pub fn adopt(gfid: Gfid, number: i64) -> Self {
        Self { gfid, number }
    }
}

impl From<Gfid> for RemoteFd {
    /// The anonymous one: the brick opens the file for each operation.
    fn from(gfid: Gfid) -> Self {
        Self {
            gfid,
            number: ANONYMOUS_FD,
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading, and read locks.
    Read,
    /// Reading and writing, and locks of both kinds.
    ReadWrite,
}

/// The space on a brick, in units of `frsize` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of one unit.
    pub frsize: u64,
    /// All units.
    pub blocks: u64,
    /// Free units.
    pub bfree: u64,
    /// Free units for everybody but root.
    pub bavail: u64,
}

/// Reads what follows an answer's status; is given its result, which is not
/// negative.
type Decode<T> = Box<dyn FnOnce(u32, &mut Decoder<'_>) -> Result<T, ProtocolError> + Send>;

/// An operation that was sent. Dropped, its answer is thrown away.
pub struct InFlight<T> {
    brick: Brick,
    operation: Operation,
    pending: PendingCall,
    deadline: Deadline,
    decode: Decode<T>,
}

impl<T> InFlight<T> {
    /// Waits for the answer, until the brick's call time-out after the start.
    pub fn wait(self) -> Result<T, BrickError> {
        let name = self.operation.name;
        let reply = self
            .pending
            .wait(self.deadline)
            .map_err(|error| self.brick.call_failed(name, error))?;
        self.brick
            .results(self.operation, reply.results(), self.decode)
    }
}

impl Brick {
    pub(super) fn begin<T>(
        &self,
        operation: Operation,
        arguments: Encoder,
        payload: &[u8],
        decode: impl FnOnce(u32, &mut Decoder<'_>) -> Result<T, ProtocolError> + Send + 'static,
    ) -> Result<InFlight<T>, BrickError> {
        let deadline = self.deadline();
        let pending = self.start(operation, arguments, payload, Weight::Counted, deadline)?;
        Ok(self.in_flight(operation, pending, deadline, decode))
    }

    pub(super) fn in_flight<T>(
        &self,
        operation: Operation,
        pending: PendingCall,
        deadline: Deadline,
        decode: impl FnOnce(u32, &mut Decoder<'_>) -> Result<T, ProtocolError> + Send + 'static,
    ) -> InFlight<T> {
        InFlight {
            brick: self.clone(),
            operation,
            pending,
            deadline,
            decode: Box::new(decode),
        }
    }

    pub(super) fn run<T>(
        &self,
        operation: Operation,
        arguments: Encoder,
        decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, ProtocolError> + Send + 'static,
    ) -> Result<T, BrickError> {
        let decode = |_: u32, results: &mut Decoder<'_>| decode(results);
        self.begin(operation, arguments, &[], decode)?.wait()
    }

    /// Reads an answer; all begin with the operation's result and error number.
    pub(super) fn results<T>(
        &self,
        operation: Operation,
        results: &[u8],
        decode: impl FnOnce(u32, &mut Decoder<'_>) -> Result<T, ProtocolError>,
    ) -> Result<T, BrickError> {
        let mut results = Decoder::new(results);
        let mut status = || Ok((results.i32()?, results.i32()?));
        let read = match status() {
            Ok((op_ret, errno)) => match u32::try_from(op_ret) {
                Ok(value) => decode(value, &mut results),
                Err(_) => return Err(self.refused(operation.name, Errno(errno))),
            },
            Err(error) => Err(ProtocolError::Decode(error)),
        };
        read.map_err(|error| self.protocol(operation.name, error))
    }

    /// Looks `name` up in the directory `parent`. `want` names extended
    /// attributes to return with it. Symbolic links are not followed.
    pub fn lookup(&self, parent: Gfid, name: &str, want: &[&str]) -> Result<Entry, BrickError> {
        self.look_up(Gfid::NONE, parent, name, want)
    }

    /// Looks a known gfid up: its attributes as they are now.
    pub fn lookup_gfid(&self, gfid: Gfid, want: &[&str]) -> Result<Entry, BrickError> {
        self.look_up(gfid, Gfid::NONE, "", want)
    }

    fn look_up(
        &self,
        gfid: Gfid,
        parent: Gfid,
        name: &str,
        want: &[&str],
    ) -> Result<Entry, BrickError> {
        let (xattrs, iatt) = self.look_up_with(gfid, parent, name, want)?;
        let xattrs = xattrs.into_attributes();
        Ok(Entry { iatt, xattrs })
    }

    /// With every value of the answer, not only those that are attributes.
    pub(super) fn look_up_with(
        &self,
        gfid: Gfid,
        parent: Gfid,
        name: &str,
        want: &[&str],
    ) -> Result<(Dict, Iatt), BrickError> {
        self.start_look_up(gfid, parent, name, want, |values, iatt| (values, iatt))?
            .wait()
    }

    /// [`Brick::look_up_with`], begun; `read` makes of the answer what is wanted.
    pub(super) fn start_look_up<T: 'static>(
        &self,
        gfid: Gfid,
        parent: Gfid,
        name: &str,
        want: &[&str],
        read: fn(Dict, Iatt) -> T,
    ) -> Result<InFlight<T>, BrickError> {
        let mut keys = Dict::new();
        for key in want {
            // The value is what AFR sends for its counters; for other attributes
            // only the key counts (posix_xattr_fill).
            keys.set(*key, Value::Bytes(vec![0; PENDING_LEN]));
        }
        let mut arguments = Encoder::new();
        arguments
            .fixed(gfid.as_bytes())
            .fixed(parent.as_bytes())
            .u32(0)
            .string(name);
        keys.encode(&mut arguments);
        self.begin(LOOKUP, arguments, &[], move |_, results| {
            Ok(read(Dict::decode(results)?, Iatt::decode(results)?))
        })
    }

    /// Follows `path` from the volume's root, one lookup a component; `want` is
    /// asked of the last. The last may be of any type, the others must be
    /// directories. An empty path is the root.
    pub fn resolve(&self, path: &str, want: &[&str]) -> Result<Entry, BrickError> {
        let fail = |component: &str, errno| BrickError::Path {
            brick: self.name().to_owned(),
            path: path.to_owned(),
            component: component.to_owned(),
            errno,
        };
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        if names.peek().is_none() {
            return self.lookup_gfid(Gfid::ROOT, want);
        }
        let mut parent = Gfid::ROOT;
        while let Some(name) = names.next() {
            // A brick knows no "." and no "..".
            if name == "." || name == ".." {
                return Err(fail(name, Errno::INVAL));
            }
            let last = names.peek().is_none();
            let found = self.lookup(parent, name, if last { want } else { &[] });
            let entry = found.map_err(|error| match error.errno() {
                Some(errno) => fail(name, errno),
                None => error,
            })?;
            if last {
                return Ok(entry);
            }
            if entry.iatt.file_type() != FileType::Directory {
                return Err(fail(name, Errno::NOTDIR));
            }
            parent = entry.gfid();
        }
        Err(fail(path, Errno::NOENT))
    }

    /// Adds to pending counters (XATTROP, ADD_ARRAY), which also keeps the brick's
    /// index of what to heal. Returns their values afterwards. Durable only after
    /// [`Brick::fsync`].
    pub fn xattrop_add(
        &self,
        gfid: Gfid,
        values: &[(&str, Pending)],
    ) -> Result<BTreeMap<String, Pending>, BrickError> {
        const ADD_ARRAY: u32 = 0;
        let mut counters = Dict::new();
        for (key, value) in values {
            counters.set(*key, Value::Bytes(value.to_bytes().to_vec()));
        }
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes()).u32(ADD_ARRAY);
        counters.encode(&mut arguments);
        Dict::new().encode(&mut arguments);
        let after = self.run(XATTROP, arguments, |results| {
            let _xdata = Dict::decode(results)?;
            Ok(Dict::decode(results)?.into_attributes())
        })?;
        let read = |key: &str| -> Result<Pending, ProtocolError> {
            let bytes = after.get(key);
            let bytes = bytes.ok_or_else(|| ProtocolError::Missing(key.to_owned()))?;
            Ok(Pending::from_bytes(bytes)?)
        };
        values
            .iter()
            .map(|(key, _)| Ok(((*key).to_owned(), read(key)?)))
            .collect::<Result<_, ProtocolError>>()
            .map_err(|error| self.protocol(XATTROP.name, error))
    }

    /// Makes the file durable on the brick: its bytes and attributes, or with
    /// `datasync` its bytes. Through a file opened before it was written to, an error of
    /// writing it back is told whoever else was told of it.
    pub fn fsync(&self, file: impl Into<RemoteFd>, datasync: bool) -> Result<(), BrickError> {
        self.start_fsync(file, datasync)?.wait()
    }

    /// [`Brick::fsync`], begun.
    pub fn start_fsync(
        &self,
        file: impl Into<RemoteFd>,
        datasync: bool,
    ) -> Result<InFlight<()>, BrickError> {
        let mut arguments = by_fd(file.into());
        arguments.u32(datasync.into());
        Dict::new().encode(&mut arguments);
        self.begin(FSYNC, arguments, &[], |_, _| Ok(()))
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, gfid: Gfid, key: &str, value: &[u8]) -> Result<(), BrickError> {
        let mut attributes = Dict::new();
        attributes.set(key, Value::Bytes(value.to_vec()));
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes()).u32(0);
        attributes.encode(&mut arguments);
        Dict::new().encode(&mut arguments);
        self.run(SETXATTR, arguments, |_| Ok(()))
    }

    /// The value of an extended attribute, if the file has it.
    pub fn getxattr(&self, gfid: Gfid, key: &str) -> Result<Option<Vec<u8>>, BrickError> {
        let mut arguments = Encoder::new();
        let name_length = u32::try_from(key.len()).unwrap_or(u32::MAX);
        arguments
            .fixed(gfid.as_bytes())
            .u32(name_length)
            .string(key);
        Dict::new().encode(&mut arguments);
        let found = self.run(GETXATTR, arguments, |results| {
            let _xdata = Dict::decode(results)?;
            Ok(Dict::decode(results)?.into_attributes())
        });
        match found {
            Ok(mut attributes) => Ok(attributes.remove(key)),
            Err(error) if error.errno() == Some(Errno::NODATA) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an extended attribute; [`Errno::NODATA`] if the file has it not.
    pub fn removexattr(&self, gfid: Gfid, key: &str) -> Result<(), BrickError> {
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes()).string(key);
        Dict::new().encode(&mut arguments);
        self.run(REMOVEXATTR, arguments, |_| Ok(()))
    }

    /// Opens a file, which posix locks need.
    pub fn open(&self, gfid: Gfid, mode: OpenMode) -> Result<RemoteFd, BrickError> {
        let flags = match mode {
            OpenMode::Read => libc::O_RDONLY,
            OpenMode::ReadWrite => libc::O_RDWR,
        };
        let mut arguments = Encoder::new();
        arguments.fixed(gfid.as_bytes()).i32(flags);
        Dict::new().encode(&mut arguments);
        let number = self.run(OPEN, arguments, |results| {
            let _xdata = Dict::decode(results)?;
            Ok(results.i64()?)
        })?;
        Ok(RemoteFd { gfid, number })
    }

    /// Closes an open file; posix locks taken through it are released.
    pub fn release(&self, fd: RemoteFd) -> Result<(), BrickError> {
        let mut arguments = Encoder::new();
        arguments.fixed(fd.gfid.as_bytes()).i64(fd.number);
        Dict::new().encode(&mut arguments);
        self.run(RELEASE, arguments, |_| Ok(()))
    }

    /// The space of the file system below the brick.
    pub fn statfs(&self) -> Result<Space, BrickError> {
        let mut arguments = Encoder::new();
        arguments.fixed(Gfid::ROOT.as_bytes());
        Dict::new().encode(&mut arguments);
        self.run(STATFS, arguments, |results| {
            let _xdata = Dict::decode(results)?;
            let _bsize = results.u64()?;
            Ok(Space {
                frsize: results.u64()?,
                blocks: results.u64()?,
                bfree: results.u64()?,
                bavail: results.u64()?,
            })
        })
    }
}

/// The start of the arguments of every operation on a file's bytes.
pub(super) fn by_gfid(gfid: Gfid) -> Encoder {
    by_fd(gfid.into())
}

/// The same of an open file.
pub(super) fn by_fd(fd: RemoteFd) -> Encoder {
    let mut arguments = Encoder::new();
    arguments.fixed(fd.gfid.as_bytes()).i64(fd.number);
    arguments
}
