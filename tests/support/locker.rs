//! A Gluster client of the test's own that holds a lock on a brick.

use bypass_blk::gluster::locks::domain;
use bypass_blk::gluster::{
    Brick, Glusterd, Identity, LkOwner, LockKind, LockOp, LockRange, Locked, Timeouts,
    Volume as Layout, glusterd,
};
use bypass_harness::Volume;

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
            lk_owner: LkOwner::new(b"locker".to_vec()).unwrap(),
        };
        let brick =
            Brick::connect(&set.bricks[brick], layout.volume_id, &identity, &timeouts).unwrap();
        let gfid = brick.resolve(image, &[]).unwrap().gfid();
        let heal = domain::self_heal(set);
        let locked = brick
            .inodelk(gfid, &heal, LockOp::Try, LockKind::Write, LockRange::WHOLE)
            .unwrap();
        assert_eq!(locked, Locked::Granted);
        Held { brick }
    })
}
