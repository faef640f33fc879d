//! A connection to one brick's process: handshake, identity, life and end.
//!
//! The operations themselves are in [`super::fops`] and [`super::locks`]. A
//! brick that is gone stays gone; its locks and open files went with it.

use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::connection::{
    CallError, ConnectError, Connection, Deadline, Disconnect, HoldError, PendingCall, Timeouts,
    Undo, Weight,
};
use super::dict;
use super::error::{BrickError, Errno, ProtocolError};
use super::glusterd::{GLUSTERD_PORT, Glusterd};
use super::notice::{Contention, Notice};
use super::record::MAX_RECORD;
use super::rpc::{Call, Credentials, FILE_OPERATIONS, HANDSHAKE, LkOwner};
use super::tls::TlsIdentity;
use super::volume::BrickSpec;
use super::xdr::{Decoder, Encoder};

/// Procedure SETVOLUME of the handshake program.
const SETVOLUME: u32 = 1;
/// The feature level that bricks take this client for (an op-version).
const OP_VERSION: &str = "100000";

/// A process id for [`Identity::pid`] that makes this client one of Gluster's own
/// (`GF_CLIENT_PID_NO_ROOT_SQUASH`): neither root squashing nor anybody's mandatory
/// lock stops it, and its INODELKs do not hold up the file's removal. Other
/// negative ids do the same, but their operations go through the brick's one
/// lowest-priority thread (`iot_schedule` of io-threads.c): ten times slower.
pub const INTERNAL_PID: i32 = -4;

/// Who this client is to a brick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What `gluster volume status VOL clients` shows as the kind of client.
    pub process_name: String,
    /// Process id of the credentials: [`INTERNAL_PID`], or 0 and more for an
    /// ordinary client. (What holders of conflicting locks are told of each other
    /// is the real process id.)
    pub pid: i32,
    /// Owner of every lock that is taken and every write that is made on the
    /// connection.
    pub lk_owner: LkOwner,
}

/// A connection at rest.
#[derive(Debug)]
pub struct KeptConnection {
    /// Its socket, between two records.
    pub socket: TcpStream,
    /// The last transaction id that was used.
    pub last_xid: u32,
}

/// A handle of a brick connection; clones share it.
#[derive(Clone)]
pub struct Brick {
    inner: Arc<Inner>,
    call_timeout: Duration,
}

struct Inner {
    /// `host:path`, for messages.
    name: String,
    connection: Connection,
    credentials: Credentials,
}

impl fmt::Debug for Brick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Brick({})", self.inner.name)
    }
}

/// An operation of the file-operation program, as sent and in messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub number: u32,
    pub name: &'static str,
}

impl Brick {
    /// Asks the glusterd of the brick's host for the brick's port, connects, and
    /// introduces this client. `volume_id` keeps a brick of another volume at
    /// the same path from answering.
    pub fn connect(
        spec: &BrickSpec,
        volume_id: Uuid,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Result<Self, BrickError> {
        let brick = spec.to_string();
        let port = Glusterd::connect(&spec.host, GLUSTERD_PORT, timeouts)
            .and_then(|glusterd| glusterd.brick_port(&spec.path))
            .map_err(|source| BrickError::Port { brick, source })?;
        Self::attach(spec, port, volume_id, identity, timeouts)
    }

    /// Connects to a brick process whose port is known.
    pub(super) fn attach(
        spec: &BrickSpec,
        port: u16,
        volume_id: Uuid,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Result<Self, BrickError> {
        let brick = spec.to_string();
        let tls = spec.tls.then_some(&spec.tls_files);
        let connection = match Connection::connect(&spec.host, port, timeouts, true, tls) {
            Ok(connection) => connection,
            Err(ConnectError::Tls(source)) => return Err(BrickError::Tls { brick, source }),
            Err(source) => {
                return Err(BrickError::Unreachable {
                    brick,
                    port,
                    source,
                });
            }
        };
        let connected = Self::over(brick, connection, identity, timeouts);
        connected.set_volume(spec, volume_id, identity)?;
        Ok(connected)
    }

    fn over(
        brick: String,
        connection: Connection,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Self {
        let inner = Inner {
            name: brick,
            connection,
            credentials: Credentials::Client {
                pid: identity.pid,
                lk_owner: identity.lk_owner.clone(),
            },
        };
        Self {
            inner: Arc::new(inner),
            call_timeout: timeouts.call,
        }
    }

    /// Goes on with a connection that another process had introduced to the brick, with
    /// the same identity. The brick does not notice: locks and open files stand.
    pub fn adopt(
        spec: &BrickSpec,
        kept: KeptConnection,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Result<Self, BrickError> {
        let brick = spec.to_string();
        let connection = Connection::adopt(kept.socket, kept.last_xid, &spec.host, timeouts)
            .map_err(|source| BrickError::Unreachable {
                brick: brick.clone(),
                port: 0,
                source,
            })?;
        Ok(Self::over(brick, connection, identity, timeouts))
    }

    /// Lets the connection rest for another process to go on with it, or until
    /// [`Brick::go_on`].
    ///
    /// # Errors
    /// Why not; the connection goes on.
    pub fn hold(&self, limit: Duration) -> Result<KeptConnection, HoldError> {
        let (socket, last_xid) = self.inner.connection.hold(limit)?;
        Ok(KeptConnection { socket, last_xid })
    }

    /// Ends what [`Brick::hold`] began.
    pub fn go_on(&self) {
        self.inner.connection.go_on();
    }

    /// The handshake (`client_setvolume` of client-handshake.c,
    /// `server_setvolume` of server-handshake.c).
    fn set_volume(
        &self,
        spec: &BrickSpec,
        volume_id: Uuid,
        identity: &Identity,
    ) -> Result<(), BrickError> {
        const OPERATION: &str = "SETVOLUME";
        // The brick frees what a connection held when the connection ends, and
        // knows it by this; it must never be used twice.
        let connection_id = format!(
            "{}-{}-{}",
            identity.process_name,
            std::process::id(),
            Uuid::new_v4()
        );
        let volume_id = volume_id.to_string();
        let mut options = vec![
            ("remote-subvolume", spec.path.as_str()),
            ("process-uuid", &connection_id),
            ("process-name", &identity.process_name),
            ("fops-version", "1298437"),
            ("mgmt-version", "14398633"),
            ("client-version", env!("CARGO_PKG_VERSION")),
            ("clnt-lk-version", "1"),
            ("opversion", OP_VERSION),
            ("volume-id", &volume_id),
        ];
        options.extend(spec.username.as_deref().map(|name| ("username", name)));
        options.extend(spec.password.as_deref().map(|word| ("password", word)));
        let mut arguments = Encoder::new();
        arguments.opaque(&dict::encode_text(options));
        let call = Call {
            program: HANDSHAKE,
            procedure: SETVOLUME,
            credentials: &Credentials::None,
            arguments: &arguments.into_bytes(),
            payload: &[],
        };
        let deadline = self.deadline();
        let reply = self
            .inner
            .connection
            .call(&call, Weight::Counted, deadline)
            .and_then(|pending| pending.wait(deadline))
            .map_err(|error| self.call_failed(OPERATION, error))?;
        let mut results = Decoder::new(reply.results());
        let mut read = || {
            let (op_ret, errno) = (results.i32()?, results.i32()?);
            Ok((
                op_ret,
                errno,
                dict::decode_text(results.opaque(MAX_RECORD)?)?,
            ))
        };
        let (op_ret, errno, answer) =
            read().map_err(|error| self.protocol(OPERATION, ProtocolError::Decode(error)))?;
        if op_ret < 0 {
            if spec.tls && Errno(errno) == Errno::ACCES {
                let ours = TlsIdentity::read(&spec.tls_files);
                let why = ours.map_or_else(|error| error, |ours| ours.not_allowed());
                return Err(BrickError::Tls {
                    brick: self.inner.name.clone(),
                    source: why.into(),
                });
            }
            return Err(BrickError::Handshake {
                brick: self.inner.name.clone(),
                errno: Errno(errno),
                reason: answer.get("ERROR").cloned().unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// A handle of the same connection whose calls get `call_timeout` instead of
    /// [`Timeouts::call`].
    pub fn with_timeout(&self, call_timeout: Duration) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            call_timeout,
        }
    }

    /// `host:path` of the brick.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Is the connection up, as far as known?
    pub fn is_connected(&self) -> bool {
        self.inner.connection.is_connected()
    }

    /// Ends the connection; the brick then frees its locks. Calls that wait fail
    /// at once.
    pub fn close(&self) {
        self.inner.connection.close();
    }

    /// Runs `listener` once when the connection is gone; see
    /// [`Connection::on_disconnect`]. It is also told of [`Brick::close`].
    pub fn on_disconnect(&self, listener: impl FnOnce(&Arc<Disconnect>) + Send + 'static) {
        self.inner.connection.on_disconnect(listener);
    }

    /// Runs `listener` whenever the brick tells that somebody wants a lock of ours; see
    /// [`Connection::on_notice`].
    pub fn on_contention(&self, listener: impl Fn(&Contention) + Send + Sync + 'static) {
        self.inner.connection.on_notice(move |notice| match notice {
            Notice::Contention(contention) => listener(contention),
            Notice::VolumeChanged => {}
        });
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// When a call made now must be answered.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.call_timeout)
    }

    /// Sends a file operation.
    pub(super) fn start(
        &self,
        operation: Operation,
        arguments: Encoder,
        payload: &[u8],
        weight: Weight,
        deadline: Deadline,
    ) -> Result<PendingCall, BrickError> {
        let arguments = arguments.into_bytes();
        let call = self.operation_call(operation, &arguments, payload);
        self.inner
            .connection
            .call(&call, weight, deadline)
            .map_err(|error| self.call_failed(operation.name, error))
    }

    /// Sends one counted operation several times, with these arguments and payloads:
    /// all or none, together.
    pub(super) fn start_all(
        &self,
        operation: Operation,
        each: &[(Vec<u8>, &[u8])],
        deadline: Deadline,
    ) -> Result<Vec<PendingCall>, BrickError> {
        let calls = each.iter();
        let calls: Vec<_> = calls
            .map(|(arguments, payload)| self.operation_call(operation, arguments, payload))
            .collect();
        self.inner
            .connection
            .call_all(&calls, Weight::Counted, deadline)
            .map_err(|error| self.call_failed(operation.name, error))
    }

    fn operation_call<'a>(
        &'a self,
        operation: Operation,
        arguments: &'a [u8],
        payload: &'a [u8],
    ) -> Call<'a> {
        Call {
            program: FILE_OPERATIONS,
            procedure: operation.number,
            credentials: &self.inner.credentials,
            arguments,
            payload,
        }
    }

    /// The operation that gives back what another one took too late.
    pub(super) fn undo(
        &self,
        operation: Operation,
        arguments: Encoder,
        took: fn(&[u8]) -> bool,
    ) -> Undo {
        Undo {
            took,
            program: FILE_OPERATIONS,
            procedure: operation.number,
            credentials: self.inner.credentials.clone(),
            arguments: arguments.into_bytes(),
        }
    }

    pub(super) fn call_failed(&self, operation: &'static str, error: CallError) -> BrickError {
        let brick = self.inner.name.clone();
        match error {
            CallError::Disconnected(reason) => BrickError::Disconnected {
                brick,
                operation,
                reason,
            },
            CallError::TimedOut { after } => BrickError::Timeout {
                brick,
                operation,
                after,
            },
            CallError::TooLong => self.too_long(operation),
            CallError::Rejected(rejection) => {
                self.protocol(operation, ProtocolError::Rejected(rejection))
            }
        }
    }

    pub(super) fn protocol(&self, operation: &'static str, source: ProtocolError) -> BrickError {
        BrickError::Protocol {
            brick: self.inner.name.clone(),
            operation,
            source,
        }
    }

    pub(super) fn too_long(&self, operation: &'static str) -> BrickError {
        BrickError::TooLong {
            brick: self.inner.name.clone(),
            operation,
        }
    }

    pub(super) fn refused(&self, operation: &'static str, errno: Errno) -> BrickError {
        BrickError::Refused {
            brick: self.inner.name.clone(),
            operation,
            errno,
        }
    }
}

#[cfg(test)]
mod tests;
