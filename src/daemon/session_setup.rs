//! Finding an image and opening a session on it: what `serve`, `heal` and `heald`
//! have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::control::socket::{self, Request};
use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::{GlusterPort, Overruled, identity};
use crate::image::brick_client::shards;
use crate::image::dirty_map::ExtentSize;
use crate::image::error_chain::chain;
use crate::image::heal::Job;
use crate::image::layout::Layout;
use crate::image::local::error::LocalError;
use crate::image::local::{self, LocalFile, LocalPlace, LocalTerms, Name};
use crate::image::locate::{Allowed, Catalog, LocateError, Located, local_brick};
use crate::image::replica::brick_port::{CopyState, Fence, KeptBrick};
use crate::image::replica::holder::Holder;
use crate::image::session::ending::{Ending, Parting};
use crate::image::session::life::{Session, Setup};
use crate::image::session::map_place::{self, MapPlace};
use crate::image::session::state_machine::StopReason;
use crate::image::session::terms::{FenceWish, Terms};
use crate::image::state_dir::{Entry, StateDir};
use crate::image::surroundings::{Prompt, Surroundings};

use super::brick_view::{host_name, lock_owner};
use super::failure::Failure;
use super::open_files;
use super::target::GlusterdAddress;

/// How long a healer may take to give an image up: it waits for what it sent.
const YIELD_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether it did.
const YIELD_PAUSE: Duration = Duration::from_millis(20);

/// The image and the brick to open it from.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is.
    pub located: Located,
    /// Child index of the local brick.
    pub local: usize,
    /// The session to be.
    pub me: Holder,
    /// Whom the layout was asked of.
    pub server: GlusterdAddress,
    /// For the look around it.
    pub prompt: Prompt,
}

/// Finds an image that may be opened from a brick of this host.
///
/// # Errors
/// Whatever forbids it.
pub fn find(
    server: &GlusterdAddress,
    volume: &str,
    image: &str,
    brick: Option<&str>,
    allowed: Allowed<'_>,
    read_only: bool,
) -> Result<Place, Failure> {
    let timeouts = Timeouts::default();
    let me = Holder::here(&host_name());
    let catalog = Catalog::load(&server.host, server.port, volume, &timeouts)?;
    let identity = identity(lock_owner(&me)?);
    let located = catalog.find(image, &identity, &timeouts)?;
    catalog.check_features(&located.set, allowed, read_only)?;
    let local = local_brick(&catalog, &located, brick, &identity, &timeouts)?;
    if located.cut().is_some() {
        open_files::allow_all();
    }
    let shape = located.shape(local);
    let located = shards::find(located, &shape, &identity, &timeouts, !read_only)
        .map_err(LocateError::from)?;
    Ok(Place {
        located,
        local,
        me,
        server: server.clone(),
        prompt: Prompt::default(),
    })
}

/// How to open.
#[derive(Clone, Copy, Debug)]
pub struct SessionSetup {
    /// Locks and fence.
    pub terms: Terms,
    /// How long a first write waits for a quorum.
    pub quorum_timeout: Duration,
    /// Serve it raw whatever it looks like.
    pub force_raw: bool,
    /// How fine the dirty map is, if not by default.
    pub extent_size: Option<ExtentSize>,
}

/// Opens a session and the local file; `cancelled` ends the wait for locks early.
///
/// # Errors
/// Whatever forbids it.
pub fn open(
    place: &Place,
    setup: &SessionSetup,
    state: &StateDir,
    cancelled: &AtomicBool,
    on_stop: impl Fn(StopReason) + Send + 'static,
) -> Result<(Session, LocalFile), Failure> {
    let (here, terms) = (place.local_place(), setup.local_terms());
    let open_local = |copy: &CopyState| match here.layout.is_whole() {
        // What the brick says of it under the session's locks counts.
        true => local::open(&here.path, copy.gfid, terms),
        false => local::open_image(&here, terms),
    };
    open_with(place, setup, state, cancelled, None, open_local, on_stop)
}

/// Opens a session over a local file that `open_local` gives, once the copy is known to
/// be fresh. With `kept` it is the session of the process before, as `place` names it.
///
/// # Errors
/// Whatever forbids it.
pub fn open_with(
    place: &Place,
    setup: &SessionSetup,
    state: &StateDir,
    cancelled: &AtomicBool,
    kept: Option<Vec<Option<KeptBrick>>>,
    open_local: impl FnOnce(&CopyState) -> Result<LocalFile, LocalError>,
    on_stop: impl Fn(StopReason) + Send + 'static,
) -> Result<(Session, LocalFile), Failure> {
    let Place {
        located, local, me, ..
    } = place;
    let read_only = setup.terms.read_only;
    let extent_size = setup.extent_size;
    let overruled = state.entry(&located.volume, located.gfid);
    let overruled = overruled
        .and_then(|entry| entry.promoted)
        .map(|promotion| Overruled {
            promotion,
            local: *local,
        });
    if !read_only {
        state.create()?;
    }
    // Not before the locks are ours: a session before may note at its end that nothing is
    // left to do.
    let open_local = |copy: &CopyState| {
        if !read_only {
            state.change(&located.volume, located.gfid, |before| {
                Some(place.entry(before, extent_size))
            })?;
        }
        open_local(copy)
    };
    let prompt = place.prompt.clone();
    let setup = Setup {
        shape: located.shape(*local),
        layout: located.layout(),
        names: located.names(),
        ports: GlusterPort::for_set_from(
            located,
            &lock_owner(me)?,
            Timeouts::default(),
            overruled.as_ref().filter(|_| !read_only),
            kept,
        ),
        pending_names: located.set.pending_names.clone().into(),
        me: me.clone(),
        terms: terms_of(located, setup.terms)?,
        quorum_timeout: setup.quorum_timeout,
        map: place.map_place(state, extent_size),
        on_end: note_end(state.clone(), located),
        on_return: Box::new(move || prompt.ask()),
    };
    Ok(Session::open(setup, cancelled, open_local, on_stop)?)
}

/// As far as they can be had of this image.
fn terms_of(located: &Located, terms: Terms) -> Result<Terms, LocateError> {
    match (&located.pieces, terms.fence) {
        (None, _) | (_, FenceWish::Exactly(Fence::Advisory)) => Ok(terms),
        (Some(_), FenceWish::Auto) => Ok(Terms {
            fence: FenceWish::Exactly(Fence::Advisory),
            ..terms
        }),
        (Some(_), FenceWish::Exactly(Fence::Mandatory)) => Err(LocateError::ShardsFence {
            image: located.image.clone(),
        }),
    }
}

/// Makes what a session on an image of `size` bytes will need and takes long to make.
///
/// # Errors
/// The state directory cannot be used.
pub fn prepare(
    place: &Place,
    setup: &SessionSetup,
    state: &StateDir,
    size: u64,
) -> Result<(), Failure> {
    state.create()?;
    let Place { located, local, .. } = place;
    let map = place.map_place(state, setup.extent_size);
    let shape = located.shape(*local);
    let layout = Layout::new(located.gfid, size, located.pieces.as_ref());
    map_place::prepare_map(&map, &shape, &located.names(), &layout)
        .map_err(|error| Failure::Open(LocalError::Map(error).into()))
}

impl SessionSetup {
    /// How to open the local file.
    pub fn local_terms(&self) -> LocalTerms {
        LocalTerms {
            read_only: self.terms.read_only,
            force_raw: self.force_raw,
        }
    }
}

/// A healer of this host that has opened the image for itself gives it back.
pub fn take_over(run_dir: &Path, gfid: uuid::Uuid) -> Result<(), Failure> {
    for path in socket::list(run_dir)? {
        if !socket::is_of(&path, gfid) || socket::ask(&path, &Request::Yield).is_err() {
            continue;
        }
        log::info!("the healer of this host gives the image up");
        let begin = Instant::now();
        while !socket::is_gone(&path) && begin.elapsed() < YIELD_LIMIT {
            std::thread::sleep(YIELD_PAUSE);
        }
    }
    Ok(())
}

/// Keeps in mind what is left to do about an image when its session ends.
fn note_end(state: StateDir, located: &Located) -> Box<dyn Fn(Parting, Ending) + Send> {
    let (volume, gfid) = (located.volume.clone(), located.gfid);
    Box::new(move |parting, ending| {
        let noted = match (ending, parting) {
            (Ending::AllEqual, _) => state.settle(&volume, gfid),
            (Ending::Behind, Parting::HandedOver) => state.hand_over(&volume, gfid),
            (Ending::Behind, Parting::Closed) => Ok(()),
        };
        if let Err(error) = noted {
            log::warn!("{}", chain(&error));
        }
    })
}

impl Place {
    /// The image's file on the local brick.
    pub fn local_path(&self) -> PathBuf {
        self.located.local_path(self.local)
    }

    /// All its files there.
    pub fn local_place(&self) -> LocalPlace {
        LocalPlace {
            path: self.local_path(),
            shards: self.located.local_shards(self.local),
            layout: self.located.layout(),
        }
    }

    /// The same for another session, by the name that the image has now.
    pub fn again(&self) -> Self {
        let mut again = self.clone();
        again.me = Holder::here(&self.me.host);
        if let Name::Other(image) = self.located.name_now(self.local, &self.located.image) {
            again.located.image = image;
        }
        again
    }

    /// What others do around it.
    pub fn surroundings(&self) -> Arc<Surroundings> {
        let GlusterdAddress { host, port } = &self.server;
        Arc::new(Surroundings::new(
            &self.located,
            self.local,
            host,
            *port,
            self.prompt.clone(),
        ))
    }

    /// The image's dirty map.
    pub fn map(&self, state: &StateDir) -> PathBuf {
        state.map(&self.located.volume, self.located.gfid)
    }

    fn map_place(&self, state: &StateDir, extent_size: Option<ExtentSize>) -> MapPlace {
        MapPlace {
            path: self.map(state),
            extent_size,
        }
    }

    /// What a healer of a session here needs to know.
    pub fn job(&self, state: &StateDir, peers: Vec<usize>) -> Job {
        Job {
            volume: self.located.volume.clone(),
            image: self.located.image.clone(),
            gfid: self.located.gfid,
            session: self.me.session,
            server: self.server.host.clone(),
            port: self.server.port,
            local_path: self.local_path(),
            local: self.local,
            bricks: self.located.names().bricks,
            map: self.map(state),
            peers,
        }
    }

    /// The image's document at the beginning of a session, with what was noted there
    /// before.
    pub fn entry(&self, before: Option<Entry>, extent_size: Option<ExtentSize>) -> Entry {
        Entry {
            volume: self.located.volume.clone(),
            image: self.located.image.clone(),
            gfid: self.located.gfid,
            server: self.server.host.clone(),
            port: self.server.port,
            brick: self.located.names().one(self.local),
            extent_size: extent_size.and_then(|size| u32::try_from(size.bytes()).ok()),
            settled: false,
            handed_over: false,
            verified: before.as_ref().and_then(|entry| entry.verified.clone()),
            promoted: before.and_then(|entry| entry.promoted),
        }
    }
}
