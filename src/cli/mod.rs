//! The command line: one file per command, their exit codes in [`exit`].
//!
//! Each command puts the other modules together; none decides anything about an
//! image by itself.

mod bandwidth;
mod begin;
mod brick_view;
mod bus_error;
mod counter;
mod custodian;
mod exit;
mod finish;
mod forget;
mod handover;
mod handover_verdict;
mod heal;
mod heal_verdict;
mod heald;
mod kept;
mod listen;
mod logging;
mod migrate;
mod opening;
mod own_session;
mod promote;
mod release;
mod resize;
mod seat;
mod serve;
mod service;
mod status;
mod stop;
mod upgrade;
mod verify;
mod verify_report;
mod watch;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::control::socket::RUN_DIR;
use crate::gluster::glusterd::GLUSTERD_PORT;

pub use exit::Failure;

/// Serves virtual machines' disks straight from the local brick of a GlusterFS
/// replica volume, over vhost-user-blk.
#[derive(Debug, Parser)]
#[command(version, after_help = exit::TABLE, propagate_version = true)]
struct Cli {
    /// Print what this backend can do, as QEMU's vhost-user conventions want it,
    /// and exit.
    #[arg(long)]
    print_capabilities: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one image to QEMU (or another vhost-user front-end)
    Serve(Box<serve::ServeArgs>),
    /// Show the images served on this host, or one image of a volume
    Status(status::StatusArgs),
    /// Heal the images of this host: follow every session, finish what ended ones left.
    /// One per host, always running
    Heald(heald::HealdArgs),
    /// Heal one image now, in the foreground
    Heal(heal::HealArgs),
    /// Make an image that is served here ready for a live migration to another host
    Handover(handover::HandoverArgs),
    /// Move a running guest to another host, its disk being the copies of one image there
    /// and here
    Migrate(Box<migrate::MigrateArgs>),
    /// How it is with a guest and its image on this host, for `migrate` on another
    #[command(hide = true)]
    MigrateLook(migrate::LookArgs),
    /// Compare all copies of an image, also while it is served
    Verify(verify::VerifyArgs),
    /// Change the bandwidth limit of this host's healer
    Bandwidth(bandwidth::BandwidthArgs),
    /// Make this host's stale copy the fresh one, when the host with the newer data is
    /// gone for good
    Promote(promote::PromoteArgs),
    /// Make an image larger, also while it is served: the guest sees it at once
    Resize(resize::ResizeArgs),
    /// Lift the fence that a killed daemon left on an image: needed when mounts get
    /// "Device or resource busy" though nobody serves it. Refused while somebody does
    Release(release::ReleaseArgs),
    /// Forget what this host remembers of an image that is gone for good, so that heald
    /// does not try to finish it any more. Changes nothing in the volume
    Forget(forget::ForgetArgs),
}

/// How much to log, to standard error.
#[derive(Args, Clone, Copy, Debug)]
struct LogArgs {
    /// How much to log: error = it does not work; warn = something is wrong and
    /// handled; info = state changes; debug = every step
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: log::LevelFilter,
}

/// Which glusterd to ask.
#[derive(Args, Clone, Debug)]
struct ServerArgs {
    /// The glusterd to ask for the volume's layout. Only a glusterd of this host
    /// gives what is needed to log in to the bricks
    #[arg(long, value_name = "HOST[:PORT]", default_value = "localhost")]
    server: Server,
}

/// Where daemons of this host put their control sockets.
#[derive(Args, Clone, Debug)]
struct RunDirArgs {
    /// The folder of the control sockets, by which `status` finds the daemons
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: std::path::PathBuf,
}

/// `HOST[:PORT]` of a glusterd; an IPv6 address with a port stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    host: String,
    port: u16,
}

impl std::str::FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |digits: &str| {
            digits
                .parse()
                .map_err(|_| format!("{digits:?} is not a port number"))
        };
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, GLUSTERD_PORT),
            Some((host, rest)) => (host, port(rest.trim_start_matches(':'))?),
            None => match text.split_once(':') {
                Some((host, digits)) if !digits.contains(':') => (host, port(digits)?),
                _ => (text, GLUSTERD_PORT),
            },
        };
        if host.is_empty() {
            return Err("the host is missing".to_owned());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// `VOLUME/IMAGE` on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    volume: String,
    image: ImagePath,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (volume, image) = text
            .split_once('/')
            .ok_or("expected VOLUME/IMAGE, for example gv0/vms/one.img")?;
        Ok(Self {
            volume: volume_name(volume)?,
            image: image.parse()?,
        })
    }
}

/// The path of an image in its volume: absolute, without `.`, `..` or empty parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ImagePath(String);

impl std::str::FromStr for ImagePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("--") {
            return Err(format!(
                "the image's path is missing before {text} (an image of that name is /{text})"
            ));
        }
        let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err("the image's path is missing".to_owned());
        }
        if let Some(part) = parts
            .iter()
            .find(|part| matches!(**part, "." | "..") || part.contains('\0'))
        {
            return Err(format!("the image's path may not contain {part:?}"));
        }
        if parts[0] == ".glusterfs" || parts[0] == ".shard" {
            return Err(format!("{} is Gluster's own folder", parts[0]));
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

/// A volume's name, which is also part of a file's name here.
fn volume_name(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(valid) {
        return Err("a volume's name has letters, digits, '-' and '_' only".to_owned());
    }
    Ok(text.to_owned())
}

/// Runs the program: parses the command line, runs the command, prints its
/// error and turns it into the exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if cli.print_capabilities {
        return serve::print_capabilities();
    }
    let done = match cli.command {
        Some(Command::Serve(args)) if args.print_capabilities => {
            return serve::print_capabilities();
        }
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Status(args)) => status::run(args),
        Some(Command::Heald(args)) => heald::run(args),
        Some(Command::Heal(args)) => heal::run(args),
        Some(Command::Handover(args)) => handover::run(args),
        Some(Command::Migrate(args)) => migrate::run(*args),
        Some(Command::MigrateLook(args)) => migrate::run_look(args),
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Bandwidth(args)) => bandwidth::run(args),
        Some(Command::Promote(args)) => promote::run(args),
        Some(Command::Resize(args)) => resize::run(args),
        Some(Command::Release(args)) => release::run(args),
        Some(Command::Forget(args)) => forget::run(args),
        None => Err(Failure::Usage(
            "a command is missing: see bypass-blk --help".to_owned(),
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_server_is_a_host_with_or_without_port() {
        let server = |text: &str| text.parse::<Server>().map(|s| (s.host, s.port));
        assert_eq!(server("node1"), Ok(("node1".into(), 24007)));
        assert_eq!(server("10.0.0.1:99"), Ok(("10.0.0.1".into(), 99)));
        assert_eq!(server("fe80::1"), Ok(("fe80::1".into(), 24007)));
        assert_eq!(server("[fe80::1]:99"), Ok(("fe80::1".into(), 99)));
        for bad in ["", ":1", "host:", "host:x", "host:70000", "[::1]:x"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_path_cannot_leave_the_volume_or_enter_gluster_s_folders() {
        let path = |text: &str| text.parse::<ImagePath>().map(|p| p.0);
        assert_eq!(path("vms//one.img"), Ok("/vms/one.img".into()));
        assert_eq!(path("/one.img"), Ok("/one.img".into()));
        for bad in [
            "",
            "/",
            "../x",
            "a/../b",
            "./a",
            ".glusterfs/a",
            "/.shard/x",
            "a\0b",
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_target_names_volume_and_image() {
        let target: Target = "gv0/vms/one.img".parse().unwrap();
        assert_eq!(
            (target.volume.as_str(), target.image.0.as_str()),
            ("gv0", "/vms/one.img")
        );
        assert!("gv0".parse::<Target>().is_err());
        assert!("../x/y".parse::<Target>().is_err());
    }
}
