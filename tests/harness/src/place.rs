//! A place to run programs in: this machine's own network, or the namespace of
//! a node. Owns no process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::run::make_dir;
use crate::{Result, Run};

/// Where a program runs and where its files go.
#[derive(Debug, Clone)]
pub struct Place {
    run: Arc<Run>,
    netns: Option<String>,
    dir: PathBuf,
}

impl Place {
    /// This machine's own network, with a run and a scratch folder of its own.
    pub fn host() -> Result<Place> {
        let run = Run::begin()?;
        let dir = run.dir().to_owned();
        Ok(Place {
            run,
            netns: None,
            dir,
        })
    }

    pub(crate) fn in_netns(run: &Arc<Run>, netns: String, dir: PathBuf) -> Result<Place> {
        make_dir(&dir)?;
        Ok(Place {
            run: Arc::clone(run),
            netns: Some(netns),
            dir,
        })
    }

    /// The run that everything here belongs to.
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// The network namespace's name, `None` for this machine's own network.
    pub fn netns(&self) -> Option<&str> {
        self.netns.as_deref()
    }

    /// A folder for files of this place, removed with the run.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs `program` here. Its process id is the program's own.
    ///
    /// `nsenter` and not `ip netns exec`: that has mounts of its own, so that a
    /// FUSE mount made under it is not seen outside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.netns {
            None => Command::new(program),
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net=/run/netns/{netns}"))
                    .arg(program);
                command
            }
        };
        self.run.mark(&mut command);
        command
    }
}
