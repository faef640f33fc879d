//! The `bypass-blk` program: the command line, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    bypass_blk::cli::run()
}
