//! `bypass-blk serve`: one image to one front-end after the other, until a signal
//! or the session ends it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use crate::control::metrics::{Endpoint, Metrics, MetricsError};
use crate::control::socket::ControlSocket;
use crate::control::status::Identity;
use crate::device::{CacheMode, Config, Disk, EndReason, Server};
use crate::image::dirty::ExtentSize;
use crate::image::error::{chain, stop_message};
use crate::image::local;
use crate::image::locate::{Bypassable, Located};
use crate::image::open::{FenceWish, Terms};
use crate::image::port::Fence;
use crate::image::state_dir::StateDir;

use super::custodian::{self, Custodian, Front, Seat};
use super::listen::{self, Listener, Next};
use super::opening::{self, Opening, Place, StateDirArgs};
use super::service::{Device, Image, Service};
use super::stop::Stop;
use super::{Failure, ImagePath, LogArgs, RunDirArgs, ServerArgs, logging, volume_name};

/// Arguments of `serve`.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("socket").args(["socket_path", "fd"]),
    override_usage = "bypass-blk serve --volume NAME --image PATH (--socket-path PATH | --fd N) [OPTIONS]",
    after_help = "Example: bypass-blk serve --volume vms --image /vm1.img --socket-path /run/bypass-blk/vm1.sock"
)]
pub struct ServeArgs {
    /// The Gluster volume
    #[arg(long, value_name = "NAME", value_parser = volume_name, required_unless_present = "print_capabilities")]
    volume: Option<String>,

    /// The image: its path inside the volume, such as /vms/vm1.img (raw format)
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "print_capabilities"
    )]
    image: Option<ImagePath>,

    /// Listen for front-ends (QEMU) at this path; one is served at a time, and
    /// the next one when it has gone
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Serve the one front-end that is connected to this socket already, and end
    /// with it
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    #[command(flatten)]
    server: ServerArgs,

    /// Which copy to serve: this host's brick, as `gluster volume info` names it.
    /// Default: found by itself when this host has one
    #[arg(long, value_name = "HOST:/PATH")]
    brick: Option<String>,

    /// Request queues, 1 to 64, a thread each; the front-end may use fewer
    #[arg(long, value_name = "N", default_value_t = Config::default().num_queues)]
    num_queues: u16,

    /// The largest ring size that the front-end may choose; a power of two
    #[arg(long, value_name = "N", default_value_t = Config::default().queue_size)]
    queue_size: u16,

    /// Serve a disk that cannot be written; other read-only sessions may serve
    /// the image at the same time
    #[arg(long)]
    read_only: bool,

    /// The disk's serial, at most 20 characters. Default: from the image's gfid
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,

    /// Be the target of a live migration: give the front-end a disk of the right size,
    /// and open the image only when its rings start, waiting for the source to give it
    /// away for --lock-timeout
    #[arg(long)]
    incoming: bool,

    /// How long to wait for an image that is locked or being healed
    #[arg(long, value_name = "TIME", default_value = "10s")]
    lock_timeout: humantime::Duration,

    /// How long the guest's first write may wait for a quorum of bricks before it
    /// fails (reads go on; writes work again by themselves when a quorum is back)
    #[arg(long, value_name = "TIME", default_value = "60s")]
    quorum_timeout: humantime::Duration,

    /// How other clients of the volume are kept from the image: mandatory = the
    /// bricks refuse them (needs the volume options locks.mandatory-locking optimal
    /// and features.enforce-mandatory-lock on), advisory = locks that QEMU and its
    /// tools respect, auto = mandatory where possible
    #[arg(long, value_enum, default_value = "auto")]
    fence: FenceArg,

    /// Serve the image raw even if it looks like qcow2 or another format
    #[arg(long)]
    force_raw: bool,

    /// Serve in spite of a feature that will not see the guest's writes
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FEATURE")]
    allow: Vec<Bypassable>,

    /// Print what this backend can do, as QEMU's vhost-user conventions want it,
    /// and exit
    #[arg(long)]
    pub(super) print_capabilities: bool,

    /// How finely it is noted what the other copies miss: 4K to 1M, a power of two. By
    /// default 4K for images of up to 256 GiB, then as small as 128 MiB of map allow.
    /// Another size than before makes everything that is marked count as missing
    #[arg(long, value_name = "SIZE", value_parser = opening::extent_size)]
    extent_size: Option<ExtentSize>,

    /// Give metrics of the image to Prometheus: unix:PATH answers HTTP on a unix
    /// socket, textfile:PATH.prom is written every 15 s for node_exporter. They are
    /// described in docs/status.md
    #[arg(long, value_name = "unix:PATH|textfile:PATH")]
    metrics: Option<Endpoint>,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FenceArg {
    Auto,
    Advisory,
    Mandatory,
}

impl From<FenceArg> for FenceWish {
    fn from(wish: FenceArg) -> Self {
        match wish {
            FenceArg::Auto => Self::Auto,
            FenceArg::Advisory => Self::Exactly(Fence::Advisory),
            FenceArg::Mandatory => Self::Exactly(Fence::Mandatory),
        }
    }
}

/// QEMU's `docs/interop/vhost-user.rst`, backend program conventions, and the
/// schema `vhost-user.json`.
pub(super) fn print_capabilities() -> ExitCode {
    println!(
        "{}",
        serde_json::json!({ "type": "block", "features": ["read-only"] })
    );
    ExitCode::SUCCESS
}

pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    let stop = Stop::on_signals()?;
    let adopted = match (&args.socket_path, args.fd) {
        (Some(path), _) => listen::check_path(path).map(|()| None)?,
        (None, Some(fd)) => Some(Listener::adopt(fd)?),
        (None, None) => {
            return Err(Failure::Usage(
                "one of --socket-path and --fd is needed".to_owned(),
            ));
        }
    };
    let config = Config {
        num_queues: args.num_queues,
        queue_size: args.queue_size,
    };
    config.validate()?;

    let place = find(&args)?;
    let opening = opening_of(&args);
    let state = StateDir::new(&args.state_dir.state_dir);
    let local = local::look_at(
        &place.local_path(),
        place.located.gfid,
        opening.local_terms(),
    )
    .map_err(|error| Failure::Open(error.into()))?;
    if args.incoming && !args.read_only {
        opening::prepare(&place, &opening, &state, local.size)?;
    }
    let terms = custodian::Terms {
        place: place.clone(),
        opening,
        state: state.clone(),
        run_dir: args.run_dir.run_dir.clone(),
        stop: stop.clone(),
    };
    let custodian = Custodian::start(terms, &local, args.incoming)?;
    let (size, path) = (local.size, local.path);
    let disk = Disk::new(local.file, &serial(&args, &place.located))?;
    let block = disk.block_size().into();
    let server = Server::new(disk, custodian.door(), config)?;
    let cache = server.cache_mode();
    keep_cache_mode(&cache, &state, &place.located);
    custodian.seat().set_front(Front {
        block,
        grow: Box::new(server.growth()),
    });
    let handle = server.stop_handle();
    stop.tell(move || handle.stop());

    let mut listener = match (adopted, &args.socket_path) {
        (Some(listener), _) => listener,
        (None, Some(path)) => Listener::bind(path)?,
        (None, None) => {
            return Err(Failure::Usage(
                "one of --socket-path and --fd is needed".to_owned(),
            ));
        }
    };
    let front_end = Arc::new(AtomicBool::new(false));
    let service = Arc::new(Service {
        identity: identity(&place, size),
        image: Image::Seat(custodian.seat()),
        state,
        serving: Some(Device {
            stats: server.stats(),
            front_end: front_end.clone(),
            socket: listener.name(),
            read_only: args.read_only,
            cache,
        }),
        last_timed: Mutex::default(),
    });
    let _metrics = start_metrics(&args, &service)?;
    let control = ControlSocket::bind(
        &args.run_dir.run_dir,
        &place.located.volume,
        place.located.gfid,
    )?;
    control
        .answer(move |request| service.answer(request))
        .map_err(|source| Failure::System {
            what: "start the control thread",
            source,
        })?;

    log::info!(
        "{} {}{} from {}; listening on {}",
        if args.incoming {
            "waiting to serve"
        } else {
            "serving"
        },
        place.located.volume,
        place.located.image,
        path.display(),
        listener.name()
    );
    let seat = custodian.seat();
    serve_front_ends(&server, &mut listener, &stop, &front_end, &seat)?;
    // The device is drained: nothing of the guest is under way.
    custodian.close()?;
    let reason = seat.now().stopped;
    match reason {
        Some(reason) => Err(Failure::Stopped(stop_message(
            reason,
            &place.located.names(),
        ))),
        None => Ok(()),
    }
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
    args: &ServeArgs,
    service: &Arc<Service>,
) -> Result<Option<Metrics>, MetricsError> {
    let start = |endpoint| {
        let service = service.clone();
        Metrics::start(endpoint, move || vec![service.status()])
    };
    args.metrics.as_ref().map(start).transpose()
}

fn serve_front_ends<G: crate::device::gate::Gate>(
    server: &Server<G>,
    listener: &mut Listener,
    stop: &Stop,
    front_end: &AtomicBool,
    seat: &Seat,
) -> Result<(), Failure> {
    // A session that stopped by itself fails the guest's requests for as long as
    // the front-end stays, so that the guest sees errors and not silence.
    while !stop.is_requested() && seat.now().stopped.is_none() {
        let stream = match listener.next(stop)? {
            Next::FrontEnd(stream) => stream,
            Next::End => break,
        };
        log::info!("front-end connected");
        front_end.store(true, Ordering::SeqCst);
        let ended = server.serve(stream);
        front_end.store(false, Ordering::SeqCst);
        seat.front_end_gone();
        match ended {
            Ok(EndReason::Unused) => log::info!(
                "front-end gone before a guest used the disk. If QEMU comes and goes again and again, its own log says \
                 why; mostly serve has fewer --num-queues than QEMU"
            ),
            Ok(reason) => log::info!("front-end gone: {reason:?}"),
            Err(error) => log::warn!("front-end dropped: {}", chain(&error)),
        }
    }
    Ok(())
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

fn find(args: &ServeArgs) -> Result<Place, Failure> {
    let (Some(volume), Some(image)) = (&args.volume, &args.image) else {
        return Err(Failure::Usage("--volume and --image are needed".to_owned()));
    };
    opening::find(
        &args.server.server,
        volume,
        &image.0,
        args.brick.as_deref(),
        &args.allow,
        args.read_only,
    )
}

fn opening_of(args: &ServeArgs) -> Opening {
    Opening {
        terms: Terms {
            read_only: args.read_only,
            fence: args.fence.into(),
            lock_timeout: Duration::from(args.lock_timeout),
            urgent: args.incoming,
        },
        quorum_timeout: Duration::from(args.quorum_timeout),
        force_raw: args.force_raw,
        extent_size: args.extent_size,
    }
}

/// At most 20 bytes: the gfid's first ones in hexadecimal.
fn serial(args: &ServeArgs, located: &Located) -> String {
    let from_gfid = || located.gfid.simple().to_string().chars().take(20).collect();
    args.serial.clone().unwrap_or_else(from_gfid)
}
