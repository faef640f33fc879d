//! Ctrl-C and SIGTERM in the harness' programs: everything made is removed
//! before the program ends.

use std::error::Error;
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{AtPath, chain};
use crate::{Result, Run};

/// Shells add this to the signal's number in the exit status.
const SIGNAL_STATUS: i32 = 128;

static ENDING: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP remove all runs of this process and
/// end it.
pub fn clean_up_when_told_to_end() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).at("catch signals in", "/proc/self")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            ENDING.store(true, Ordering::SeqCst);
            eprintln!("\ncleaning up …");
            // Again, for what the main thread made meanwhile.
            while Run::clean_all() > 0 {}
            process::exit(SIGNAL_STATUS + signal);
        }
    });
    Ok(())
}

/// The exit status of a program whose verdict this is; an error is printed with its causes.
///
/// Never returns once told to end: what fails then fails because everything is
/// being removed, and the exit status is the signal's.
pub fn exit_status(program: &str, verdict: std::result::Result<bool, Box<dyn Error>>) -> ExitCode {
    wait_if_ending();
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{program}: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}
