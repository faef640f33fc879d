//! Running programs: to their end with a deadline, or in the background until
//! dropped. Does not know what the programs are.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::{Error, Result, wait_until};

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `command` to its end and returns its standard output; a failure status
/// is an error, and so is not being finished by `deadline` (it is killed then).
pub fn run_command(command: &mut Command, deadline: Duration) -> Result<String> {
    let output = finish(command, deadline)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        command: describe(command),
        status: output.status.to_string(),
        output: format!("{} {}", output.stdout.trim(), output.stderr.trim()),
    })
}

/// As [`run_command`], but returns both outputs, and a failure status is for the
/// caller to judge.
pub fn finish(command: &mut Command, deadline: Duration) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait_exit(&mut child, &describe(command), deadline);
    if status.is_err() {
        // Both fail only when it is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(Output {
        status: status?,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait_exit(child: &mut Child, what: &str, deadline: Duration) -> Result<ExitStatus> {
    wait_until(format!("the end of `{what}`"), deadline, || {
        match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it is still running".into()),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|source| Error::Spawn {
        program: describe(command),
        source,
    })
}

pub(crate) fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// A program in the background; killed when dropped.
///
/// It is in a process group of its own, so that Ctrl-C on the terminal goes to
/// the harness alone, which then ends things in order.
#[derive(Debug)]
pub struct Background {
    child: Child,
    what: String,
}

impl Background {
    /// Starts `command`; its standard streams are as the caller set them.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = spawn(command.process_group(0))?;
        Ok(Self {
            child,
            what: describe(command),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait_exit(&mut self.child, &self.what, deadline)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = as_pid(pid) {
        // The only failure left is that it is gone already.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process exists and is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    as_pid(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
        && stat_fields(pid).is_ok_and(|fields| fields.first().is_some_and(|state| state != "Z"))
}

/// Whether the process left even the process table, or is a zombie that is this
/// process' own to wait for. To glusterd, a zombie in a pid file is running.
pub(crate) fn gone(pid: u32) -> bool {
    let Ok(fields) = stat_fields(pid) else {
        return true;
    };
    let mut fields = fields.iter().map(String::as_str);
    let me = std::process::id().to_string();
    fields.next() == Some("Z") && fields.next() == Some(me.as_str())
}

/// Kills with SIGKILL and waits until the process is gone.
pub(crate) fn kill_and_wait(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL);
    let what = format!("the end of process {pid}");
    wait_until(what, Duration::from_secs(30), || {
        if gone(pid) {
            Ok(())
        } else {
            Err("still there after SIGKILL".into())
        }
    })
}

/// When the process started, in clock ticks since boot: with the pid it names
/// one process for good. `None` when there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    // Field 22 of the line, which is the 20th after the name (proc(5)).
    stat_fields(pid).ok()?.get(19)?.parse().ok()
}

/// The fields of /proc/PID/stat after the name, which may hold blanks itself.
fn stat_fields(pid: u32) -> io::Result<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = line.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().map(str::to_owned).collect())
}

/// The ids of all processes there are.
pub(crate) fn all_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
