//! bypass-blk's device without the rest of bypass-blk: the same server, rings and io_uring
//! in front of a plain file or of `/dev/zero`, behind a gate that is always open and marks
//! nothing. For measurements: `qemu/device-bench` compares it with the daemon, which has
//! marks and a dirty map, and with an empty device of another program;
//! `qemu/instruction-counts` counts its instructions.
//!
//! It serves one front-end after the other until it is killed. It locks nothing, asks
//! nobody, and knows nothing of Gluster: never point it at an image that somebody needs.

mod file;

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bypass_blk::device::gate::AlwaysOpen;
use bypass_blk::device::{Config, Server};
use clap::Parser;

/// Serves a file over vhost-user-blk with the device of bypass-blk alone: no marks, no
/// dirty map, no locks.
#[derive(Parser)]
struct Options {
    /// The socket to listen on; must not exist.
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,
    /// Request queues, a thread each.
    #[arg(long, value_name = "N", default_value_t = Config::default().num_queues)]
    num_queues: u16,
    /// The disk's size, where the file has none.
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,
    /// A file, or a character device such as /dev/zero: a disk that takes every write and
    /// reads as zeros, at once. It cannot flush.
    file: PathBuf,
}

fn main() -> ExitCode {
    env_logger::init();
    match run(&Options::parse()) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("bare-device: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<std::convert::Infallible, Box<dyn Error>> {
    let disk = file::disk(&options.file, options.size)?;
    let config = Config {
        num_queues: options.num_queues,
        ..Config::default()
    };
    let server = Server::new(disk, Arc::new(AlwaysOpen), config)?;
    let listener = UnixListener::bind(&options.socket_path)
        .map_err(|error| format!("{}: {error}", options.socket_path.display()))?;
    // The file is there a little before connections are taken.
    println!("listening on {}", options.socket_path.display());
    loop {
        let (front_end, _) = listener.accept()?;
        if let Err(error) = server.serve(front_end) {
            eprintln!("bare-device: {error}");
        }
    }
}
