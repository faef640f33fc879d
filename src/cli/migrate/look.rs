//! How it is with a guest and its image on a host: on this one, or on another by a command
//! that runs this program there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::control::serving_status::OwnershipStatus;
use crate::control::socket;
use crate::daemon::failure::Failure;
use crate::daemon::target::Target;

use super::story::Seen;
use super::{MigrateArgs, qmp};
use crate::cli::arguments::RunDirArgs;

/// How long another host may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether it has.
const ROUND: Duration = Duration::from_millis(10);

/// Arguments of `migrate-look`.
#[derive(Args, Debug)]
pub struct LookArgs {
    /// The image
    #[arg(long, value_name = "VOLUME/IMAGE")]
    image: Target,

    /// QEMU's QMP socket
    #[arg(long, value_name = "PATH")]
    qmp: PathBuf,

    #[command(flatten)]
    run_dir: RunDirArgs,
}

/// Prints what [`look`] sees, for `migrate` on another host.
pub fn run(args: LookArgs) -> Result<(), Failure> {
    let seen = look(&args.run_dir.run_dir, &args.image, &args.qmp);
    println!("{}", json!(seen));
    Ok(())
}

/// How it is on this host.
pub fn look(run_dir: &Path, image: &Target, qmp: &Path) -> Seen {
    let (guest, no_guest) = match qmp::ask(qmp, "query-status", json!({})) {
        Ok(answer) => (answer["status"].as_str().map(str::to_owned), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Seen {
        guest,
        ownership: ownership(run_dir, image),
        trouble: no_guest,
    }
}

fn ownership(run_dir: &Path, image: &Target) -> Option<OwnershipStatus> {
    let Target { volume, image } = image;
    let serves = |status: &crate::control::status::Status| status.serving.is_some();
    let socket = socket::find(run_dir, volume, &image.0, serves).ok()??;
    let status = socket::status(&socket).ok()?;
    status.serving.map(|serving| serving.ownership)
}

/// The other host.
pub struct Remote {
    /// What runs a command there, and the command.
    words: Vec<String>,
}

impl Remote {
    /// The target's host.
    pub fn new(args: &MigrateArgs) -> Self {
        let remote = args.remote.clone();
        let remote = remote.unwrap_or_else(|| format!("ssh {}", args.to));
        let qmp = args.target_qmp.as_ref().unwrap_or(&args.qmp);
        let image = format!("{}{}", args.image.volume, args.image.image.0);
        let mut look = vec![args.program.clone(), "migrate-look".to_owned()];
        look.push(format!("--image={image}"));
        look.push(format!("--qmp={}", qmp.display()));
        if let Some(run_dir) = &args.target_run_dir {
            look.push(format!("--run-dir={}", run_dir.display()));
        }
        Self {
            words: words(&remote, look),
        }
    }

    /// How it is there.
    pub fn look(&self) -> Seen {
        self.ask().unwrap_or_else(|trouble| Seen {
            trouble: Some(trouble),
            ..Seen::default()
        })
    }

    fn ask(&self) -> Result<Seen, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            format!("{what} {}: {error}", self.words.join(" "))
        };
        let [program, args @ ..] = &self.words[..] else {
            return Err("--remote is empty".to_owned());
        };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| failed("cannot run", &error))?;
        let begin = Instant::now();
        // What it says is short, and fits a pipe.
        while matches!(child.try_wait(), Ok(None)) {
            if begin.elapsed() > PATIENCE {
                // It may have ended just now.
                let _ = child.kill();
                break;
            }
            std::thread::sleep(ROUND);
        }
        let output = child
            .wait_with_output()
            .map_err(|error| failed("no answer of", &error))?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            failed(
                "no answer of",
                &format!("{}, {}", output.status, said.trim()),
            )
        })
    }
}

/// `command` run by `remote`. ssh joins its arguments, and a shell reads them again there.
fn words(remote: &str, command: Vec<String>) -> Vec<String> {
    let mut words: Vec<String> = remote.split_whitespace().map(str::to_owned).collect();
    match words.first().is_some_and(|word| word.ends_with("ssh")) {
        true => {
            let quoted: Vec<_> = command.iter().map(|word| quoted(word)).collect();
            words.push(quoted.join(" "));
        }
        false => words.extend(command),
    }
    words
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_the_same_behind_ssh_and_its_shell() {
        let command = || {
            vec![
                "bypass-blk".to_owned(),
                "--image=vms/it's one.img".to_owned(),
            ]
        };
        assert_eq!(
            words("ssh -p 22 gfs2", command()),
            [
                "ssh",
                "-p",
                "22",
                "gfs2",
                "'bypass-blk' '--image=vms/it'\\''s one.img'"
            ]
        );
        assert_eq!(
            words("nsenter --net=/run/netns/x", command()),
            [
                "nsenter",
                "--net=/run/netns/x",
                "bypass-blk",
                "--image=vms/it's one.img"
            ]
        );
        let echo = words("ssh gfs2", command()).pop().unwrap();
        let output = Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {echo}")])
            .output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(said.lines().collect::<Vec<_>>(), command());
    }
}
