//! A Gluster client of the test's own that holds a lock on a brick.

use bypass_blk::gluster::locks::domain;
use bypass_blk::gluster::{
    Brick, BrickError, Gfid, Glusterd, Identity, LkOwner, LockKind, LockOp, LockRange, Locked,
    OpenMode, ReplicaSet, Timeouts, Volume as Layout, glusterd,
};
use bypass_blk::image::brick_client::session_record::{RECORD, SESSION_DOMAIN};
use bypass_blk::image::replica::holder::Holder;
use bypass_harness::{Volume, wait_until};

use super::PATIENCE;
use super::netns::on_node;

/// Gives the lock back when dropped.
pub struct Held {
    brick: Brick,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.brick.close();
    }
}

/// Holds AFR's heal lock of `image` on child `brick`, as a self-heal at work does.
pub fn hold_heal_lock(volume: &Volume, brick: usize, image: &str) -> Held {
    hold(volume, brick, image, b"locker", |brick, set, gfid| {
        let heal = domain::self_heal(set);
        brick.inodelk(gfid, &heal, LockOp::Try, LockKind::Write, LockRange::WHOLE)
    })
}

/// Holds `image` on child `brick` as a session does, or one that is dead while the brick
/// has not given its connection up.
pub fn hold_session_lock(volume: &Volume, brick: usize, image: &str) -> Held {
    let record = Holder::here("dead").encode();
    hold(volume, brick, image, &record, |brick, _, gfid| {
        let domain = SESSION_DOMAIN;
        let locked = brick.inodelk(gfid, domain, LockOp::Try, LockKind::Write, LockRange::WHOLE)?;
        assert_eq!(locked, Locked::Granted);
        let fd = brick.open(gfid, OpenMode::ReadWrite)?;
        brick.lk(fd, LockOp::Try, LockKind::Write, RECORD, false)
    })
}

fn hold(
    volume: &Volume,
    brick: usize,
    image: &str,
    owner: &[u8],
    lock: impl FnOnce(&Brick, &ReplicaSet, Gfid) -> Result<Locked, BrickError> + Send,
) -> Held {
    let node = volume.brick_node(brick);
    on_node(node, || {
        let timeouts = Timeouts::default();
        let glusterd =
            Glusterd::connect(node.address(), glusterd::GLUSTERD_PORT, &timeouts).unwrap();
        let layout = Layout::parse(&glusterd.volfile(volume.name()).unwrap()).unwrap();
        let set = &layout.replica_sets[0];
        let identity = Identity {
            process_name: "locker".to_owned(),
            pid: 1,
            lk_owner: LkOwner::new(owner.to_vec()).unwrap(),
        };
        let brick = wait_until("the brick to answer", PATIENCE, || {
            Brick::connect(&set.bricks[brick], layout.volume_id, &identity, &timeouts)
                .map_err(|error| error.to_string())
        })
        .unwrap();
        let gfid = brick.resolve(image, &[]).unwrap().gfid();
        assert_eq!(lock(&brick, set, gfid).unwrap(), Locked::Granted);
        Held { brick }
    })
}

/// Whether a stock heal waits on child `brick` for AFR's heal lock of `image`, which a
/// session has.
pub fn heal_waits(volume: &Volume, brick: usize, image: &str) -> bool {
    let mut waits = false;
    let held = hold(volume, brick, image, b"looker", |brick, set, gfid| {
        waits = brick.inodelk_count(gfid, &domain::self_heal(set))? > 1;
        Ok(Locked::Granted)
    });
    drop(held);
    waits
}
