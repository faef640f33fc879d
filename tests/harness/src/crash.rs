//! Processes of a volume that die, and how they come back.

use crate::node::read_pid;
use crate::process::kill_and_wait;
use crate::volume::BRICK_DEADLINE;
use crate::{Result, Volume, wait_until};

impl Volume {
    /// Kills a brick with SIGKILL and waits until its glusterd has noticed, so
    /// that [`Volume::start_force`] will start it anew.
    pub fn kill_brick(&self, index: usize) -> Result<()> {
        self.crash_brick(index)?;
        let name = self.brick_name(index);
        wait_until(
            format!("brick {name} to be down"),
            BRICK_DEADLINE,
            || match self
                .brick_statuses()?
                .iter()
                .find(|brick| brick.name == name)
            {
                Some(brick) if brick.online => Err("glusterd says it is online".into()),
                _ => Ok(()),
            },
        )
    }

    /// Kills a brick with SIGKILL, and nothing else: glusterd may not have noticed.
    pub fn crash_brick(&self, index: usize) -> Result<()> {
        match self.brick_pid(index)? {
            Some(pid) => kill_and_wait(pid),
            None => Ok(()),
        }
    }

    /// Kills a node's self-heal daemon with SIGKILL; [`Volume::revive`] brings it back.
    pub fn crash_self_heal_daemon(&self, node: usize) -> Result<()> {
        match self.self_heal_pid(node)? {
            Some(pid) => kill_and_wait(pid),
            None => Ok(()),
        }
    }

    /// The process id of a node's self-heal daemon; `None` when it is down.
    fn self_heal_pid(&self, node: usize) -> Result<Option<u32>> {
        // The name is made as in glusterd.h, GLUSTERD_GET_SHD_RUNDIR.
        let file = format!("shd/{0}/{0}-shd.pid", self.name());
        read_pid(&self.cluster().node(node).run_dir().join(file))
    }

    /// Brings back whatever of the volume was crashed: `volume start … force`
    /// until every brick and every self-heal daemon runs. A glusterd that has not
    /// noticed a crash yet starts nothing.
    pub fn revive(&self) -> Result<()> {
        wait_until("everything of the volume to run", BRICK_DEADLINE, || {
            let asked = self.gluster(&["start"], &["force"]);
            for brick in self.bricks() {
                if !matches!(self.brick_pid(brick.index), Ok(Some(_))) {
                    return Err(format!("brick {}: {asked:?}", brick.index));
                }
            }
            for node in self.cluster().nodes() {
                if !matches!(self.self_heal_pid(node.index()), Ok(Some(_))) {
                    return Err(format!("self-heal of node {}: {asked:?}", node.index()));
                }
            }
            Ok(())
        })?;
        self.wait_bricks_up()
    }
}
