//! What a glusterd tells: volfiles, the state of a volume, ports of bricks.
//!
//! Each [`Glusterd`] is one connection, made for a few questions and dropped; or kept, to hear
//! that a volume has changed.

use std::collections::BTreeMap;
use std::io;

use uuid::Uuid;

use super::connection::{CallError, Connection, Deadline, Disconnect, Reply, Timeouts, Weight};
use super::dict;
use super::error::{Errno, GlusterdError};
use super::notice::Notice;
use super::record::MAX_RECORD;
use super::rpc::{COMMAND_LINE, Call, Credentials, HANDSHAKE, PORTMAP, Program};
use super::tls::{TlsFiles, management_wants_tls};
use super::volume::BrickSpec;
use super::xdr::{Decoder, Encoder, XdrError};

/// The port of every glusterd.
pub const GLUSTERD_PORT: u16 = 24007;

/// The newest volume format that is understood, as glusterd's op-version.
/// glusterd keeps volfiles that need a newer client to itself.
const MAX_OP_VERSION: &str = "110000";

const GETSPEC: Procedure = Procedure {
    program: HANDSHAKE,
    number: 2,
    name: "GETSPEC",
};
const PORTBYBRICK: Procedure = Procedure {
    program: PORTMAP,
    number: 1,
    name: "PORTBYBRICK",
};
/// `GLUSTER_CLI_GET_VOLUME`: one of the few questions of the command line that
/// glusterd answers over TCP (`gd_svc_cli_trusted_actors`, glusterd-handler.c).
const GET_VOLUME: Procedure = Procedure {
    program: COMMAND_LINE,
    number: 5,
    name: "GET_VOLUME",
};
/// GET_VOLUME's flag for one volume by its name.
const ONE_VOLUME: &str = "2";

struct Procedure {
    program: Program,
    number: u32,
    name: &'static str,
}

/// Has the volume been started?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Never started since it was created.
    Created,
    /// Started: its bricks should run.
    Started,
    /// Stopped by the operator.
    Stopped,
}

/// What glusterd knows about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its identity.
    pub volume_id: Uuid,
    /// Is it started? (The volfile does not tell: it is served in every state.)
    pub state: VolumeState,
    /// Options that differ from their defaults, by full name
    /// (`features.shard`), and glusterd's own.
    pub options: BTreeMap<String, String>,
}

/// A connection to a glusterd.
pub struct Glusterd {
    server: String,
    connection: Connection,
    timeouts: Timeouts,
    tls: bool,
}

impl Glusterd {
    /// Connects to the glusterd of `host`, a name or an address; with TLS where this host's
    /// own does.
    pub fn connect(host: &str, port: u16, timeouts: &Timeouts) -> Result<Self, GlusterdError> {
        let server = format!("{host}:{port}");
        let files = TlsFiles::default();
        let tls = management_wants_tls().then_some(&files);
        match Connection::connect(host, port, timeouts, false, tls) {
            Ok(connection) => Ok(Self {
                server,
                connection,
                timeouts: *timeouts,
                tls: tls.is_some(),
            }),
            Err(source) => Err(GlusterdError::Unreachable { server, source }),
        }
    }

    /// Runs `listener` whenever glusterd tells, as it tells everybody who is connected, that
    /// some volume has changed; see [`Connection::on_notice`].
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.connection.on_notice(move |notice| match notice {
            Notice::VolumeChanged => listener(),
            Notice::Contention(_) => {}
        });
    }

    /// Is the connection up, as far as known?
    pub fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }

    /// The volfile of `volume`'s clients, for [`super::Volume::parse`].
    pub fn volfile(&self, volume: &str) -> Result<String, GlusterdError> {
        self.get_spec(volume).map_err(|error| match error {
            GlusterdError::Refused { errno, .. } if errno == Errno::NOENT => {
                self.unknown_volume(volume)
            }
            other => other,
        })
    }

    /// The volfile of one of `volume`'s brick processes, for
    /// [`super::BrickFeatures::parse`]. Every glusterd of the cluster has those of
    /// all bricks. [`Errno::NOENT`] if it has none of that brick.
    pub fn brick_volfile(&self, volume: &str, brick: &BrickSpec) -> Result<String, GlusterdError> {
        // glusterd_generate_brick_volfile: the path without the first slash,
        // the others as dashes.
        let path = brick.path.trim_start_matches('/').replace('/', "-");
        self.get_spec(&format!("{volume}.{}.{path}", brick.host))
    }

    fn get_spec(&self, key: &str) -> Result<String, GlusterdError> {
        let versions =
            dict::encode_text([("min-op-version", "1"), ("max-op-version", MAX_OP_VERSION)]);
        let mut arguments = Encoder::new();
        arguments.u32(0).string(key).opaque(&versions);
        let reply = self.call(&GETSPEC, arguments)?;
        let (op_ret, errno, text) = self.decode(&GETSPEC, &reply, |results| {
            let (op_ret, errno) = (results.i32()?, results.i32()?);
            Ok((op_ret, errno, results.string(MAX_RECORD)?.to_owned()))
        })?;
        match op_ret {
            0.. => Ok(text),
            _ => Err(self.refused(&GETSPEC, errno)),
        }
    }

    /// Identity, state and options of `volume`.
    pub fn volume_info(&self, volume: &str) -> Result<VolumeInfo, GlusterdError> {
        let question = dict::encode_text([("flags", ONE_VOLUME), ("volname", volume)]);
        let mut arguments = Encoder::new();
        arguments.opaque(&question);
        let reply = self.call(&GET_VOLUME, arguments)?;
        let details = self.decode(&GET_VOLUME, &reply, |results| {
            let (op_ret, _errno) = (results.i32()?, results.i32()?);
            let _message = results.opaque(dict::MAX_VALUE)?;
            let details = dict::decode_text(results.opaque(MAX_RECORD)?)?;
            Ok((op_ret >= 0).then_some(details))
        })?;
        // A failure says nothing but that there is no such volume; a cluster
        // without any volume answers with an empty list.
        match details {
            Some(details) if details.get("count").is_some_and(|count| count != "0") => {
                self.volume_details(&details)
            }
            _ => Err(self.unknown_volume(volume)),
        }
    }

    fn volume_details(
        &self,
        details: &BTreeMap<String, String>,
    ) -> Result<VolumeInfo, GlusterdError> {
        let missing = |what: &str| GlusterdError::Incomplete {
            server: self.server.clone(),
            what: what.to_owned(),
        };
        let value = |key: &str| details.get(key).map(String::as_str);
        let volume_id = value("volume0.volume_id").and_then(|id| id.parse().ok());
        // glusterd_volume_status of glusterd.h
        let state = match value("volume0.status") {
            Some("0") => VolumeState::Created,
            Some("1") => VolumeState::Started,
            Some("2") => VolumeState::Stopped,
            _ => return Err(missing("the volume's state")),
        };
        let options = details
            .iter()
            .filter_map(|(key, value)| {
                let name = key.strip_prefix("volume0.option.")?;
                Some((name.to_owned(), value.clone()))
            })
            .collect();
        Ok(VolumeInfo {
            volume_id: volume_id.ok_or_else(|| missing("the volume's id"))?,
            state,
            options,
        })
    }

    /// The TCP port of the brick process that serves `brick_path` on this
    /// glusterd's host.
    pub fn brick_port(&self, brick_path: &str) -> Result<u16, GlusterdError> {
        let mut arguments = Encoder::new();
        arguments.string(brick_path);
        let reply = self.call(&PORTBYBRICK, arguments)?;
        let (op_ret, port) = self.decode(&PORTBYBRICK, &reply, |results| {
            let (op_ret, _errno, _status) = (results.i32()?, results.i32()?, results.i32()?);
            Ok((op_ret, results.i32()?))
        })?;
        match u16::try_from(port) {
            Ok(port) if op_ret >= 0 && port > 0 => Ok(port),
            _ => Err(GlusterdError::BrickNotRunning {
                server: self.server.clone(),
                brick: brick_path.to_owned(),
            }),
        }
    }

    fn call(&self, procedure: &Procedure, arguments: Encoder) -> Result<Reply, GlusterdError> {
        let deadline = Deadline::after(self.timeouts.call);
        let call = Call {
            program: procedure.program,
            procedure: procedure.number,
            credentials: &Credentials::None,
            arguments: &arguments.into_bytes(),
            payload: &[],
        };
        self.connection
            .call(&call, Weight::Counted, deadline)
            .and_then(|pending| pending.wait(deadline))
            .map_err(|source| match &source {
                CallError::Disconnected(why) if !self.tls && was_closed(why) => {
                    GlusterdError::HungUp {
                        server: self.server.clone(),
                    }
                }
                _ => GlusterdError::NoAnswer {
                    server: self.server.clone(),
                    operation: procedure.name,
                    source,
                },
            })
    }

    fn decode<T>(
        &self,
        procedure: &Procedure,
        reply: &Reply,
        read: impl FnOnce(&mut Decoder<'_>) -> Result<T, XdrError>,
    ) -> Result<T, GlusterdError> {
        read(&mut Decoder::new(reply.results())).map_err(|source| GlusterdError::BadAnswer {
            server: self.server.clone(),
            operation: procedure.name,
            source,
        })
    }

    fn refused(&self, procedure: &Procedure, errno: i32) -> GlusterdError {
        GlusterdError::Refused {
            server: self.server.clone(),
            operation: procedure.name,
            errno: Errno(errno),
        }
    }

    fn unknown_volume(&self, volume: &str) -> GlusterdError {
        GlusterdError::UnknownVolume {
            server: self.server.clone(),
            volume: volume.to_owned(),
        }
    }
}

/// Did the other end close it? A peer that wants TLS makes no sense of what it is told.
fn was_closed(why: &Disconnect) -> bool {
    match why {
        Disconnect::ClosedByPeer => true,
        Disconnect::Socket(error) => error.kind() == io::ErrorKind::ConnectionReset,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
