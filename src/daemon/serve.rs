//! The daemon of one image: one front-end after the other, until a signal or the session
//! ends it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use signal_hook::consts::SIGUSR1;

use crate::control::metrics::{Metrics, MetricsError};
use crate::control::socket::ControlSocket;
use crate::control::status::Identity;
use crate::device::{CacheMode, Disk, Server};
use crate::image::error_chain::chain;
use crate::image::local::LocalFile;
use crate::image::locate::Located;
use crate::image::session::error::stop_message;
use crate::image::state_dir::StateDir;

use super::bus_error;
use super::control_service::{ControlService, Device, Image};
use super::failure::Failure;
use super::frontend_loop::{self, FrontendLoop};
use super::options::ServeOptions;
use super::ownership_worker::{self, OwnershipWorker};
use super::served_image::Front;
use super::session_setup::Place;
use super::shutdown::Stop;
use super::startup::{self, Startup};
use super::upgrade::{self, Upgrade};

/// Serves until a signal or the session ends it.
///
/// # Errors
/// Whatever forbids to serve it, or why the session stopped.
pub fn run(options: ServeOptions) -> Result<(), Failure> {
    bus_error::explain()?;
    let stop = Stop::of_daemon(&[SIGUSR1])?;
    let wishes = upgrade::on_signal()?;
    let upgrade = Arc::new(Upgrade::new(options.upgrade_binary.as_deref())?);
    options.config.validate()?;
    let state = StateDir::new(&options.state_dir);
    let Startup {
        place,
        local,
        front_ends,
        kept,
    } = startup::begin(&options, &state)?;

    let terms = ownership_worker::Terms {
        place: place.clone(),
        setup: options.setup,
        state: state.clone(),
        run_dir: options.run_dir.clone(),
        stop: stop.clone(),
    };
    let upgraded = kept.is_some();
    let config = kept.as_ref().map_or(options.config, |kept| kept.config);
    let (bricks, control, front_end, since) = match kept {
        Some(kept) => (
            Some(kept.bricks),
            Some(kept.control),
            kept.front_end,
            kept.since,
        ),
        None => (None, None, None, 0),
    };
    let incoming = options.incoming && !upgraded;
    let (size, path) = (local.size, local.path.clone());
    let disk = disk_over(&local, &place.located, &serial(&options, &place.located))?;
    let block = disk.block_size().into();
    // From here on the image may be ours. Whatever ends this, by an error or a panic, ends
    // the session as well, and last: the worker is dropped after all that is made below.
    let worker = OwnershipWorker::start(terms, &local, incoming, bricks)?;
    let mut server = Server::new(disk, worker.gate(), config)?.with_patience(options.patience());
    if let Some(limit) = options.full_timeout {
        server = server.with_full_timeout(limit);
    }
    let cache = server.cache_mode();
    keep_cache_mode(&cache, &state, &place.located);
    worker.served().set_front(Front {
        block,
        grow: Box::new(server.growth_by_files()),
    });
    let handle = server.stop_handle();
    stop.tell(move || handle.stop());

    let listener = front_ends.listen()?;
    let connected = Arc::new(AtomicBool::new(front_end.is_some()));
    let surroundings = place.surroundings();
    let service = Arc::new(ControlService {
        identity: identity(&place, size),
        image: Image::ServedImage(worker.served()),
        surroundings: surroundings.clone(),
        state,
        serving: Some(Device {
            stats: server.stats(),
            front_end: connected.clone(),
            space: server.space(),
            socket: listener.name(),
            read_only: options.read_only(),
            cache,
        }),
        last_timed: Mutex::default(),
        forced_until: Mutex::default(),
    });
    let _metrics = start_metrics(&options, &service)?;
    let (run_dir, located) = (&options.run_dir, &place.located);
    let control = match control {
        Some(socket) => ControlSocket::adopt(run_dir, &located.volume, located.gfid, socket),
        None => ControlSocket::bind(run_dir, &located.volume, located.gfid)?,
    };
    let told_of_changes = service.clone();
    control
        .answer(move |request| service.answer(request))
        .map_err(|source| Failure::System {
            what: "start the control thread",
            source,
        })?;
    upgrade.listen(located, wishes, worker.served(), server.pause_handle())?;

    let tell = move |change| told_of_changes.volume_changed(change);
    let _watching = surroundings.watch(tell).map_err(|source| Failure::System {
        what: "start a thread",
        source,
    })?;

    let told = match (upgraded, incoming) {
        (true, _) => "serving again, upgraded,",
        (false, true) => "waiting to serve",
        (false, false) => "serving",
    };
    log::info!(
        "{told} {}{} from {}; listening on {}",
        located.volume,
        located.image,
        path.display(),
        listener.name()
    );
    if front_end.is_some() {
        let stall = Duration::from_nanos(frontend_loop::monotonic().saturating_sub(since));
        log::info!("the front-end stood still for {} ms", stall.as_millis());
    }
    let served = worker.served();
    let mut frontend_loop = FrontendLoop {
        server: &server,
        listener,
        stop: &stop,
        connected: &connected,
        served: &served,
        upgrade: &upgrade,
        local: &local.file,
        control: &control,
        config,
    };
    frontend_loop.serve_front_ends(front_end)?;
    // The device is drained: nothing of the guest is under way.
    worker.close()?;
    let reason = served.now().stopped;
    match reason {
        Some(reason) => Err(Failure::Stopped(stop_message(
            reason,
            &place.located.names(),
        ))),
        None => Ok(()),
    }
}

/// The image's files as a disk. All of what was written to them before is durable when the
/// guest can flush: opening the session syncs every file that may have been written to.
///
/// # Errors
/// [`Failure::System`], and whatever the device refuses.
pub fn disk_over(local: &LocalFile, located: &Located, serial: &str) -> Result<Disk, Failure> {
    let again = |source| Failure::System {
        what: "open the image's files once more",
        source,
    };
    let base = local.file.try_clone().map_err(again)?;
    let layout = located.layout();
    if layout.is_whole() {
        return Ok(Disk::new(base, serial)?);
    }
    let more = local.pieces.iter().map(|piece| piece.file.try_clone());
    let files: Vec<_> = [Ok(base)]
        .into_iter()
        .chain(more)
        .collect::<Result<_, _>>()
        .map_err(again)?;
    let disk = Disk::over_files(files, layout.piece(), layout.size(), serial)?;
    Ok(disk.all_synced())
}

/// A daemon that is started again under a running guest is not told its cache mode.
fn keep_cache_mode(cache: &CacheMode, state: &StateDir, located: &Located) {
    let (volume, gfid) = (located.volume.clone(), located.gfid);
    let through = state.write_through(&volume, gfid);
    if through {
        log::info!("the guest's disk was write-through, and is until a new guest connects");
    }
    let state = state.clone();
    cache.keep_with(!through, move |writeback| {
        state
            .keep_write_through(&volume, gfid, !writeback)
            .map_err(|error| std::io::Error::other(chain(&error)))
    });
}

/// They end when this is dropped.
fn start_metrics(
    options: &ServeOptions,
    service: &Arc<ControlService>,
) -> Result<Option<Metrics>, MetricsError> {
    let start = |endpoint| {
        let service = service.clone();
        Metrics::start(endpoint, move || vec![service.status()])
    };
    options.metrics.as_ref().map(start).transpose()
}

fn identity(place: &Place, size: u64) -> Identity {
    Identity {
        volume: place.located.volume.clone(),
        image: place.located.image.clone(),
        gfid: place.located.gfid,
        size,
        local: Some(place.local),
        arbiter: place.located.arbiter(),
        last_verified: None,
    }
}

/// At most 20 bytes: the gfid's first ones in hexadecimal.
fn serial(options: &ServeOptions, located: &Located) -> String {
    let from_gfid = || located.gfid.simple().to_string().chars().take(20).collect();
    options.serial.clone().unwrap_or_else(from_gfid)
}
