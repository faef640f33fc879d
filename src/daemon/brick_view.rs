//! An image as its bricks tell it, for commands that open no session.

use std::collections::BTreeSet;

use crate::control::copy_status::CopyStatus;
use crate::control::status::{FilesStatus, Identity};
use crate::gluster::{LkOwner, Timeouts};
use crate::image::brick_client::session_port::{GlusterPort, identity};
use crate::image::brick_client::shards;
use crate::image::locate::{Catalog, LocateError, Located};
use crate::image::replica::brick_port::{BrickPort, CopyState, PortError, merged};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::holder::Holder;

use super::failure::Failure;
use super::target::{GlusterdAddress, Target};

/// An image, with one port per brick of its replica set.
pub struct BrickView {
    /// Where the image is.
    pub located: Located,
    /// Its bricks, in child order; those that answered are connected.
    pub ports: Vec<Box<dyn BrickPort>>,
    /// The bricks that answered.
    pub connected: BrickSet,
    /// Who is looking.
    pub me: Holder,
    away: Vec<Option<String>>,
}

impl BrickView {
    /// Finds the image and connects to its bricks.
    pub fn load(
        server: &GlusterdAddress,
        target: &Target,
        timeouts: Timeouts,
    ) -> Result<Self, Failure> {
        let me = Holder::here(&host_name());
        let owner = lock_owner(&me)?;
        let catalog = Catalog::load(&server.host, server.port, &target.volume, &timeouts)?;
        let identity = identity(owner.clone());
        let located = catalog.find(&target.image.0, &identity, &timeouts)?;
        let located = shards::seen(located, &identity, &timeouts).map_err(LocateError::from)?;
        let mut ports = GlusterPort::for_set(&located, &owner, timeouts, None);
        let mut connected = BrickSet::EMPTY;
        let mut away = Vec::new();
        for (brick, port) in ports.iter_mut().enumerate() {
            match port.connect(Box::new(|_| {})) {
                Ok(()) => {
                    connected.insert(brick);
                    away.push(None);
                }
                Err(error) => away.push(Some(error.to_string())),
            }
        }
        Ok(Self {
            located,
            ports,
            connected,
            me,
            away,
        })
    }

    /// The record of the session that holds the image, if any brick has one.
    pub fn holder(&mut self) -> Option<Holder> {
        let connected = self.connected;
        let mut ports = self
            .ports
            .iter_mut()
            .enumerate()
            .filter(|(brick, _)| connected.contains(*brick));
        ports.find_map(|(_, port)| port.holder().ok().flatten())
    }

    /// Every copy as its brick tells it, and which files of the image are marked, if it is
    /// several.
    pub fn copies(&mut self) -> (Vec<CopyStatus>, Option<FilesStatus>) {
        let names = self.located.names();
        let layout = self.located.layout();
        let mut marked = BTreeSet::new();
        let ports = self.ports.iter_mut().zip(&self.away).enumerate();
        let copies = ports.map(|(brick, (port, away))| {
            let answer = match away {
                Some(why) => Err(PortError::Away(why.clone())),
                None if layout.is_whole() => port.probe(),
                None => port.look_at_all(layout.len() as u32).map(|files| {
                    let each = files.iter().zip(0..);
                    marked.extend(
                        each.filter(|(f, _)| !f.accuses().is_empty())
                            .map(|(_, n)| n),
                    );
                    as_one(files)
                }),
            };
            copy_status(names.one(brick), answer)
        });
        let copies = copies.collect();
        let files = (!layout.is_whole()).then(|| FilesStatus {
            count: layout.len(),
            piece_bytes: layout.piece(),
            marked: marked.into_iter().collect(),
        });
        (copies, files)
    }

    /// What the status document says of the image itself.
    pub fn identity(&self) -> Identity {
        Identity {
            volume: self.located.volume.clone(),
            image: self.located.image.clone(),
            gfid: self.located.gfid,
            size: self.located.size,
            local: None,
            arbiter: self.located.arbiter(),
            last_verified: None,
        }
    }
}

/// A copy of which any file is accused is.
fn as_one(files: Vec<CopyState>) -> CopyState {
    let pending = merged(files.iter().map(|file| file.pending.as_slice()));
    let dirty = files.iter().map(|file| file.dirty).max();
    let base = files.into_iter().next();
    CopyState {
        gfid: base.as_ref().map(|base| base.gfid).unwrap_or_default(),
        size: base.as_ref().map_or(0, |base| base.size),
        pending,
        dirty: dirty.unwrap_or_default(),
        fenced: base.is_some_and(|base| base.fenced),
    }
}

fn copy_status(brick: String, answer: Result<CopyState, PortError>) -> CopyStatus {
    let (reason, copy) = match answer {
        Ok(copy) => (None, Some(copy)),
        Err(error) => (Some(error.to_string()), None),
    };
    CopyStatus {
        brick,
        local: false,
        arbiter: false,
        reachable: reason.is_none(),
        reason,
        stale: false,
        behind: None,
        fenced: copy.as_ref().is_some_and(|copy| copy.fenced),
        marks: copy.map(|copy| copy.pending),
        marks_age_seconds: None,
    }
}

/// This host's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The lock owner that carries our record.
///
/// # Errors
/// If the record is longer than an owner may be, against what its codec promises.
pub fn lock_owner(me: &Holder) -> Result<LkOwner, Failure> {
    Ok(LkOwner::new(me.encode())?)
}
