//! `bypass-blk serve`: its words; the daemon is [`crate::daemon::serve`].

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use crate::control::metrics::Endpoint;
use crate::daemon::failure::Failure;
use crate::daemon::options::{FrontEnds, ServeOptions};
use crate::daemon::session_setup::SessionSetup;
use crate::daemon::target::{ImagePath, volume_name};
use crate::daemon::upgrade::{self, Resume};
use crate::daemon::upgrade_state;
use crate::daemon::{logging, serve};
use crate::device::Config;
use crate::image::dirty_map::{ExtentSize, MapError};
use crate::image::locate::Bypassable;
use crate::image::replica::brick_port::Fence;
use crate::image::session::terms::{FenceWish, HOT_FILES, Terms};

use super::arguments::{LogArgs, RunDirArgs, ServerArgs, StateDirArgs};

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
    volume: Option<String>,

    /// The image: its path inside the volume, such as /vms/vm1.img (raw format)
    #[arg(
        long,
        value_name = "PATH",
        allow_hyphen_values = true,
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
    allow: Vec<Bypassable>,

    /// Print what this backend can do, as QEMU's vhost-user conventions want it,
    /// and exit
    #[arg(long)]
    pub(super) print_capabilities: bool,

    /// How finely it is noted what the other copies miss: 4K to 1M, a power of two. By
    /// default 4K for images of up to 256 GiB, then as small as 128 MiB of map allow.
    /// Another size than before makes everything that is marked count as missing
    #[arg(long, value_name = "SIZE", value_parser = extent_size)]
    extent_size: Option<ExtentSize>,

    /// Of an image in shards, how many may be marked as missing on the other copies before
    /// those that are healed lose their marks at once (else they do after some quiet
    /// seconds). What is marked when this host crashes is compared as a whole afterwards:
    /// so many shards
    #[arg(long, value_name = "N", default_value_t = HOT_FILES)]
    hot_files: usize,

    /// Give metrics of the image to Prometheus: unix:PATH answers HTTP on a unix
    /// socket, textfile:PATH.prom is written every 15 s for node_exporter. They are
    /// described in docs/status.md
    #[arg(long, value_name = "unix:PATH|textfile:PATH")]
    metrics: Option<Endpoint>,

    /// The program that takes this one's place at SIGUSR1 (docs/upgrade.md). Default: the one
    /// that stands then where this one was started from
    #[arg(long, value_name = "PATH")]
    upgrade_binary: Option<PathBuf>,

    /// Go on with what the process before left
    #[arg(long, value_name = "N", hide = true)]
    resume: Option<Resume>,

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
    if args.resume == Some(Resume::Check) {
        for version in upgrade_state::VERSIONS {
            println!("{}", upgrade::understood(version));
        }
        return Ok(());
    }
    logging::start(args.log.log_level);
    serve::run(args.options()?)
}

impl ServeArgs {
    fn options(self) -> Result<ServeOptions, Failure> {
        let (Some(volume), Some(image)) = (self.volume, self.image) else {
            return Err(Failure::Usage("--volume and --image are needed".to_owned()));
        };
        let front_ends = match (self.socket_path, self.fd) {
            (Some(path), _) => FrontEnds::At(path),
            (None, Some(fd)) => FrontEnds::Connected(fd),
            (None, None) => {
                let why = "one of --socket-path and --fd is needed";
                return Err(Failure::Usage(why.to_owned()));
            }
        };
        Ok(ServeOptions {
            volume,
            image: image.0,
            front_ends,
            server: self.server.server,
            brick: self.brick,
            config: Config {
                num_queues: self.num_queues,
                queue_size: self.queue_size,
            },
            serial: self.serial,
            incoming: self.incoming,
            setup: SessionSetup {
                terms: Terms {
                    read_only: self.read_only,
                    fence: self.fence.into(),
                    lock_timeout: Duration::from(self.lock_timeout),
                    urgent: self.incoming,
                    hot_files: self.hot_files,
                },
                quorum_timeout: Duration::from(self.quorum_timeout),
                force_raw: self.force_raw,
                extent_size: self.extent_size,
            },
            full_timeout: self.full_timeout.map(Duration::from),
            allow: self.allow,
            metrics: self.metrics,
            upgrade_binary: self.upgrade_binary,
            resume: self.resume,
            state_dir: self.state_dir.state_dir,
            run_dir: self.run_dir.run_dir,
        })
    }
}

/// `--extent-size`: bytes, or with K or M.
pub fn extent_size(text: &str) -> Result<ExtentSize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| "expected a size such as 64K")?;
    let bytes = number.checked_mul(unit).ok_or("the size is too large")?;
    ExtentSize::new(bytes).map_err(|error: MapError| error.to_string())
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
            serve.args.options().unwrap().patience().first
        };
        assert_eq!(
            first(["--socket-path", "/run/s"]),
            crate::device::Patience::default().first
        );
        assert_eq!(first(["--fd", "3"]), None);
    }

    #[test]
    fn an_extent_size_is_a_power_of_two_in_range_with_or_without_a_unit() {
        let bytes = |text: &str| extent_size(text).map(ExtentSize::bytes);
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64K"), Ok(65536));
        assert_eq!(bytes("1m"), Ok(1 << 20));
        for bad in ["", "K", "3K", "2M", "2048", "5000", "9999999M", "4 K", "é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
