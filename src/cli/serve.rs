//! `bypass-blk serve`: one image to one front-end after the other, until a signal
//! or the session ends it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use signal_hook::consts::SIGUSR1;

use crate::control::metrics::{Endpoint, Metrics, MetricsError};
use crate::control::socket::ControlSocket;
use crate::control::status::Identity;
use crate::device::{CacheMode, Config, Disk, Patience, Server};
use crate::image::dirty::ExtentSize;
use crate::image::error::{chain, stop_message};
use crate::image::locate::{Bypassable, Located};
use crate::image::open::{FenceWish, Terms};
use crate::image::port::Fence;
use crate::image::state_dir::StateDir;

use super::begin::{self, Begin};
use super::bus_error;
use super::counter::{self, Counter};
use super::custodian::{self, Custodian};
use super::listen::Listener;
use super::opening::{self, Opening, Place, StateDirArgs};
use super::seat::Front;
use super::service::{Device, Image, Service};
use super::stop::Stop;
use super::upgrade::{self, Resume, Upgrade};
use super::{Failure, ImagePath, LogArgs, RunDirArgs, ServerArgs, logging, volume_name};

/// Arguments of `serve`.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("socket").args(["socket_path", "fd"]),
    override_usage = "bypass-blk serve --volume NAME --image PATH (--socket-path PATH | --fd N) [OPTIONS]",
    after_help = "SIGTERM ends it; SIGUSR1 replaces it by the program as it is on the disk now, unseen by the guest.\n\
Example: bypass-blk serve --volume vms --image /vm1.img --socket-path /run/bypass-blk/vm1.sock"
)]
pub struct ServeArgs {
    /// The Gluster volume
    #[arg(long, value_name = "NAME", value_parser = volume_name, required_unless_present = "print_capabilities")]
    pub(super) volume: Option<String>,

    /// The image: its path inside the volume, such as /vms/vm1.img (raw format)
    #[arg(
        long,
        value_name = "PATH",
        allow_hyphen_values = true,
        required_unless_present = "print_capabilities"
    )]
    pub(super) image: Option<ImagePath>,

    /// Listen for front-ends (QEMU) at this path; one is served at a time, and
    /// the next one when it has gone
    #[arg(long, value_name = "PATH")]
    pub(super) socket_path: Option<PathBuf>,

    /// Serve the one front-end that is connected to this socket already, and end
    /// with it
    #[arg(long, value_name = "N")]
    pub(super) fd: Option<RawFd>,

    #[command(flatten)]
    pub(super) server: ServerArgs,

    /// Which copy to serve: this host's brick, as `gluster volume info` names it.
    /// Default: found by itself when this host has one
    #[arg(long, value_name = "HOST:/PATH")]
    pub(super) brick: Option<String>,

    /// Request queues, 1 to 64, a thread each; the front-end may use fewer
    #[arg(long, value_name = "N", default_value_t = Config::default().num_queues)]
    num_queues: u16,

    /// The largest ring size that the front-end may choose; a power of two
    #[arg(long, value_name = "N", default_value_t = Config::default().queue_size)]
    queue_size: u16,

    /// Serve a disk that cannot be written; other read-only sessions may serve
    /// the image at the same time
    #[arg(long)]
    pub(super) read_only: bool,

    /// The disk's serial, at most 20 characters. Default: from the image's gfid
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,

    /// Be the target of a live migration: give the front-end a disk of the right size,
    /// and open the image only when its rings start, waiting for the source to give it
    /// away for --lock-timeout
    #[arg(long)]
    pub(super) incoming: bool,

    /// How long to wait for an image that is locked or being healed
    #[arg(long, value_name = "TIME", default_value = "10s")]
    lock_timeout: humantime::Duration,

    /// How long the guest's first write may wait for a quorum of bricks before it
    /// fails (reads go on; writes work again by themselves when a quorum is back)
    #[arg(long, value_name = "TIME", default_value = "60s")]
    quorum_timeout: humantime::Duration,

    /// How long the guest's writes wait for room when the local disk is full, before they
    /// fail (reads go on). Default: for ever
    #[arg(long, value_name = "TIME")]
    full_timeout: Option<humantime::Duration>,

    /// How other clients of the volume are kept from the image: mandatory = the
    /// bricks refuse them (needs the volume options locks.mandatory-locking optimal
    /// and features.enforce-mandatory-lock on), advisory = locks that QEMU and its
    /// tools respect, auto = mandatory where possible
    #[arg(long, value_enum, default_value = "auto")]
    fence: FenceArg,

    /// Serve the image raw even if it looks like qcow2 or another format
    #[arg(long)]
    force_raw: bool,

    /// Serve in spite of a feature that will not see the guest's writes: bitrot,
    /// changelog, quota, or a translator by its type, as the refusal names it
    #[arg(long, value_delimiter = ',', value_name = "FEATURE")]
    pub(super) allow: Vec<Bypassable>,

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
    pub(super) metrics: Option<Endpoint>,

    /// The program that takes this one's place at SIGUSR1 (docs/upgrade.md). Default: the one
    /// that stands then where this one was started from
    #[arg(long, value_name = "PATH")]
    upgrade_binary: Option<PathBuf>,

    /// Go on with what the process before left
    #[arg(long, value_name = "N", hide = true)]
    pub(super) resume: Option<Resume>,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    pub(super) run_dir: RunDirArgs,

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
    if args.resume == Some(Resume::Check) {
        println!("{}", upgrade::understood());
        return Ok(());
    }
    logging::start(args.log.log_level);
    bus_error::explain()?;
    let stop = Stop::of_daemon(&[SIGUSR1])?;
    let wishes = upgrade::on_signal()?;
    let upgrade = Arc::new(Upgrade::new(args.upgrade_binary.as_deref())?);
    let config = Config {
        num_queues: args.num_queues,
        queue_size: args.queue_size,
    };
    config.validate()?;
    let opening = opening_of(&args);
    let state = StateDir::new(&args.state_dir.state_dir);
    let Begin {
        place,
        local,
        front_ends,
        kept,
    } = begin::begin(&args, &opening, &state)?;

    let terms = custodian::Terms {
        place: place.clone(),
        opening,
        state: state.clone(),
        run_dir: args.run_dir.run_dir.clone(),
        stop: stop.clone(),
    };
    let upgraded = kept.is_some();
    let config = kept.as_ref().map_or(config, |kept| kept.config);
    let (bricks, control, front_end, since) = match kept {
        Some(kept) => (
            Some(kept.bricks),
            Some(kept.control),
            kept.front_end,
            kept.since,
        ),
        None => (None, None, None, 0),
    };
    let incoming = args.incoming && !upgraded;
    let (size, path) = (local.size, local.path.clone());
    let disk = local
        .try_clone()
        .map_err(|error| Failure::Open(error.into()))?;
    let disk = Disk::new(disk.file, &serial(&args, &place.located))?;
    let block = disk.block_size().into();
    // From here on the image may be ours. Whatever ends this, by an error or a panic, ends
    // the session as well, and last: the custodian is dropped after all that is made below.
    let custodian = Custodian::start(terms, &local, incoming, bricks)?;
    let mut server = Server::new(disk, custodian.door(), config)?.with_patience(patience(&args));
    if let Some(limit) = args.full_timeout {
        server = server.with_full_timeout(limit.into());
    }
    let cache = server.cache_mode();
    keep_cache_mode(&cache, &state, &place.located);
    custodian.seat().set_front(Front {
        block,
        grow: Box::new(server.growth()),
    });
    let handle = server.stop_handle();
    stop.tell(move || handle.stop());

    let listener = match (front_ends, &args.socket_path) {
        (Some(listener), _) => listener,
        (None, Some(path)) => Listener::bind(path)?,
        (None, None) => return Err(begin::no_socket()),
    };
    let connected = Arc::new(AtomicBool::new(front_end.is_some()));
    let surroundings = place.surroundings();
    let service = Arc::new(Service {
        identity: identity(&place, size),
        image: Image::Seat(custodian.seat()),
        surroundings: surroundings.clone(),
        state,
        serving: Some(Device {
            stats: server.stats(),
            front_end: connected.clone(),
            space: server.space(),
            socket: listener.name(),
            read_only: args.read_only,
            cache,
        }),
        last_timed: Mutex::default(),
        forced_until: Mutex::default(),
    });
    let _metrics = start_metrics(&args, &service)?;
    let (run_dir, located) = (&args.run_dir.run_dir, &place.located);
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
    upgrade.listen(wishes, custodian.seat(), server.pause_handle())?;

    let tell = move |change| told_of_changes.set_changed(change);
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
        let stall = Duration::from_nanos(counter::monotonic().saturating_sub(since));
        log::info!("the front-end stood still for {} ms", stall.as_millis());
    }
    let seat = custodian.seat();
    let mut counter = Counter {
        server: &server,
        listener,
        stop: &stop,
        connected: &connected,
        seat: &seat,
        upgrade: &upgrade,
        local: &local.file,
        control: &control,
        config,
    };
    counter.serve_front_ends(front_end)?;
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

/// Behind a connection that was passed on nobody waits, and its QEMU may come late.
fn patience(args: &ServeArgs) -> Patience {
    let patience = Patience::default();
    let first = patience.first.filter(|_| args.fd.is_none());
    Patience { first, ..patience }
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    #[test]
    fn an_image_may_be_named_like_an_option_but_an_option_is_not_taken_for_one() {
        let image = |words: &[&str]| {
            let begin = ["serve", "--volume", "vms", "--fd", "3"];
            let serve = Serve::try_parse_from(begin.iter().chain(words));
            serve.ok().and_then(|serve| serve.args.image)
        };
        let named = |name: &str| Some(ImagePath(name.to_owned()));
        assert_eq!(image(&["--image", "-x.img"]), named("/-x.img"));
        assert_eq!(image(&["--image=-x.img"]), named("/-x.img"));
        assert_eq!(image(&["--image", "/--read-only"]), named("/--read-only"));
        assert_eq!(image(&["--image", "--read-only"]), None);
    }

    #[test]
    fn a_front_end_must_begin_soon_only_where_others_may_wait_behind_it() {
        let first = |socket: [&str; 2]| {
            let image = ["serve", "--volume", "vms", "--image", "/vm1.img"];
            let serve = Serve::try_parse_from(image.iter().chain(&socket)).unwrap();
            patience(&serve.args).first
        };
        assert_eq!(
            first(["--socket-path", "/run/s"]),
            Patience::default().first
        );
        assert_eq!(first(["--fd", "3"]), None);
    }
}
