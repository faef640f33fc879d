//! A session that a healer opens itself, when nobody serves the image: it writes
//! nothing, it only keeps everybody else away while the other copies are healed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::control::socket::{Answer, ControlSocket, Request};
use crate::control::status::{Identity, Status};
use crate::image::heal::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked, Wait};
use crate::image::locate::Allowed;
use crate::image::replica::brick_port::Fence;
use crate::image::session::handle::SessionHandle;
use crate::image::session::life::Session;
use crate::image::session::resize::{Insist, NewSize, ResizeError, Resized};
use crate::image::session::snapshot::Snapshot;
use crate::image::session::state_machine::StopReason;
use crate::image::session::terms::{FenceWish, HOT_FILES, Terms};
use crate::image::state_dir::StateDir;

use super::control_service::{ControlService, Image};
use super::failure::Failure;
use super::growth;
use super::session_setup::{self, Place, SessionSetup};
use super::target::GlusterdAddress;

/// How long the marks may take to be stored. Nothing waits for them but the healing.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(60);

/// Which image, and how to open it.
pub struct Wanted<'a> {
    /// The glusterd to ask.
    pub server: &'a GlusterdAddress,
    /// The volume.
    pub volume: &'a str,
    /// The image's path in it.
    pub image: &'a str,
    /// The local brick, if it is not to be found.
    pub brick: Option<&'a str>,
    /// The state directory.
    pub state: &'a StateDir,
    /// How long to wait for locks.
    pub lock_timeout: Duration,
}

/// See the module.
pub struct MaintenanceSession {
    place: Place,
    state: StateDir,
    session: Session,
    service: Arc<ControlService>,
    stopped: Arc<AtomicBool>,
}

impl MaintenanceSession {
    /// Opens the image; `cancelled` ends the wait for locks.
    ///
    /// # Errors
    /// As `serve` does.
    pub fn open(wanted: &Wanted<'_>, cancelled: &AtomicBool) -> Result<Self, Failure> {
        let place = session_setup::find(
            wanted.server,
            wanted.volume,
            wanted.image,
            wanted.brick,
            // They would not see the guest's writes, of which there are none.
            Allowed::All,
            false,
        )?;
        let known = wanted.state.entry(wanted.volume, place.located.gfid);
        let extent_size = known.and_then(|entry| entry.chosen_extent_size());
        let setup = SessionSetup {
            terms: Terms {
                read_only: false,
                // Ordinary clients go on: the healer minds their locks.
                fence: FenceWish::Exactly(Fence::Advisory),
                lock_timeout: wanted.lock_timeout,
                urgent: false,
                hot_files: HOT_FILES,
            },
            quorum_timeout: QUORUM_TIMEOUT,
            force_raw: true,
            extent_size,
        };
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        let on_stop = move |_: StopReason| stop.store(true, Ordering::SeqCst);
        let (session, local) =
            session_setup::open(&place, &setup, wanted.state, cancelled, on_stop)?;
        let handle = session.handle();
        let service = ControlService {
            identity: Identity {
                volume: place.located.volume.clone(),
                image: place.located.image.clone(),
                gfid: place.located.gfid,
                size: local.size,
                local: Some(place.local),
                arbiter: place.located.arbiter(),
                last_verified: None,
            },
            image: Image::Ours(
                handle.clone(),
                Box::new(place.job(wanted.state, handle.peer_children())),
            ),
            surroundings: place.surroundings(),
            state: wanted.state.clone(),
            serving: None,
            last_timed: Mutex::default(),
            forced_until: Mutex::default(),
        };
        Ok(Self {
            place,
            state: wanted.state.clone(),
            session,
            service: Arc::new(service),
            stopped,
        })
    }

    /// The session, for a healer in this process.
    pub fn link(&self) -> Arc<dyn SessionLink> {
        Arc::new(InProcess {
            session: self.session.handle(),
            job: self
                .place
                .job(&self.state, self.session.handle().peer_children()),
        })
    }

    /// The state of the session.
    pub fn snapshot(&self) -> Snapshot {
        self.session.handle().snapshot()
    }

    /// The state of the image.
    pub fn status(&self) -> Status {
        self.service.status()
    }

    /// The session ended by itself.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Answers status requests, and notes in `give_way` when somebody wants to serve
    /// the image.
    ///
    /// # Errors
    /// When there can be no control socket.
    pub fn listen(
        &self,
        run_dir: &std::path::Path,
        give_way: Arc<AtomicBool>,
    ) -> Result<ControlSocket, Failure> {
        let located = &self.place.located;
        let socket = ControlSocket::bind(run_dir, &located.volume, located.gfid)?;
        let service = self.service.clone();
        let answer = move |request| match request {
            Request::Status | Request::Repair { .. } => service.answer(request),
            Request::Yield => {
                give_way.store(true, Ordering::SeqCst);
                Answer::Done
            }
            // The healer is in this process.
            _ => Answer::Ended {
                why: "this process heals the image itself".to_owned(),
            },
        };
        socket.answer(answer).map_err(|source| Failure::System {
            what: "start the control thread",
            source,
        })?;
        Ok(socket)
    }

    /// Makes the image larger; `block` is the disk's, in bytes.
    ///
    /// # Errors
    /// Why not.
    pub fn grow(&self, size: NewSize, block: u64, insist: Insist) -> Result<Resized, ResizeError> {
        // The shards that were made are there when the image is opened again.
        let (extend, _made) = growth::extension(&self.place);
        self.session.grow(size, block, insist, extend)
    }

    /// Gives the image back.
    pub fn close(self) {
        self.session.close();
    }
}

/// The link to a session of this process.
struct InProcess {
    session: SessionHandle,
    job: Job,
}

impl SessionLink for InProcess {
    fn job(&self) -> Result<Job, LinkError> {
        Ok(self.job.clone())
    }

    /// Does not wait: the image is given back when there is nothing to do.
    fn report(&self, report: &HealReport, _: Option<&Wait>) -> Result<Hint, LinkError> {
        self.session.report(report, None, |hint| hint)
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        self.session.unmark()
    }
}
