//! `qemu/guest-fio`: the demo's workloads in a guest, on disks of the caller's.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bypass_harness::bench::{self, Workload};
use bypass_harness::{Disk, Guest, GuestConfig, GuestImage, Place, signals};
use clap::Parser;

/// As many disks as there are letters for.
const DEVICES: [&str; 6] = [
    "/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd", "/dev/vde", "/dev/vdf",
];

/// Boots a guest with all the disks, runs fio in it on each in turn, in rounds, and prints a
/// table, and JSON if asked for. Reads only, unless told that the data may be destroyed.
#[derive(Parser)]
struct Options {
    /// A vhost-user-blk socket; may be given several times.
    #[arg(long, value_name = "SOCKET")]
    vhost_user: Vec<PathBuf>,
    /// A raw image file, on a brick's file system or on a mount; may be given several times.
    /// All disks are compared with the first one.
    #[arg(long, value_name = "IMAGE")]
    file: Vec<PathBuf>,
    /// A raw image through QEMU's Gluster driver.
    #[arg(long, value_name = "HOST/VOLUME/PATH", value_parser = gluster_disk)]
    gluster: Vec<Disk>,
    /// Virtqueues of each disk, and virtual CPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,
    /// How often everything is measured; the table has medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Time for each workload on each disk in each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    runtime: u64,
    /// Also measure writes, which DESTROY what is on the disks.
    #[arg(long)]
    destroy_data: bool,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

fn file_name(path: &Path) -> String {
    format!("file {}", path.display())
}

/// `HOST/VOLUME/PATH`; the number of queues comes later.
fn gluster_disk(text: &str) -> Result<Disk, String> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(server), Some(volume), Some(image)) if !image.is_empty() => Ok(Disk::Gluster {
            server,
            volume,
            image,
            queues: 1,
        }),
        _ => Err("it must be HOST/VOLUME/PATH".into()),
    }
}

impl Options {
    /// Each disk with its name for the table.
    fn disks(&self) -> Vec<(String, Disk)> {
        let queues = self.num_queues;
        let sockets = self.vhost_user.iter().map(|socket| {
            let disk = Disk::VhostUser {
                socket: socket.clone(),
                queues,
                reconnect: false,
            };
            (format!("vhost-user {}", socket.display()), disk)
        });
        let files = self.file.iter().map(|path| {
            (
                file_name(path),
                Disk::File {
                    path: path.clone(),
                    queues,
                },
            )
        });
        let gluster = self.gluster.iter().filter_map(|disk| match disk.clone() {
            Disk::Gluster {
                server,
                volume,
                image,
                ..
            } => Some((
                format!("gluster {server}/{volume}/{image}"),
                Disk::Gluster {
                    server,
                    volume,
                    image,
                    queues,
                },
            )),
            _ => None,
        });
        sockets.chain(files).chain(gluster).collect()
    }

    /// The disk that all are compared with.
    fn limit(&self) -> Option<String> {
        self.file.first().map(|path| file_name(path))
    }

    fn workloads(&self) -> Vec<Workload> {
        let writes = self
            .destroy_data
            .then_some(Workload::WRITES)
            .into_iter()
            .flatten();
        Workload::READS.into_iter().chain(writes).collect()
    }
}

fn main() -> ExitCode {
    let outcome = run(&Options::parse());
    signals::exit_status("guest-fio", outcome.map(|()| true))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let disks = options.disks();
    if disks.is_empty() {
        return Err("no disk given: --vhost-user, --file or --gluster".into());
    }
    if disks.len() > DEVICES.len() {
        return Err(format!("{} disks at most", DEVICES.len()).into());
    }
    signals::clean_up_when_told_to_end()?;
    let (workloads, runtime) = (options.workloads(), Duration::from_secs(options.runtime));
    let image = GuestImage::prepare()?;
    let place = Place::host()?;
    let (names, disks): (Vec<String>, Vec<Disk>) = disks.into_iter().unzip();
    let named: Vec<_> = names.iter().map(String::as_str).zip(DEVICES).collect();
    let config = GuestConfig {
        cpus: options.num_queues.into(),
        ..GuestConfig::new(disks)
    };
    let guest = Guest::boot(&image, &place, &config)?;
    let all = bench::measure(&guest, &named, &workloads, runtime, options.rounds)?;
    guest.power_off()?;
    if options.json {
        println!("{:#}", bench::json(&all));
    } else {
        println!("{}", bench::table(&all, options.limit().as_deref()));
    }
    Ok(())
}
