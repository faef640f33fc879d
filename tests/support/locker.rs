//! A Gluster client of the test's own that holds a lock on a brick.

use std::fs::File;
use std::thread::JoinHandle;

use bypass_blk::gluster::locks::domain;
use bypass_blk::gluster::{
    Brick, Glusterd, Identity, LkOwner, LockKind, LockOp, LockRange, Locked, Timeouts,
    Volume as Layout, glusterd,
};
use bypass_harness::Volume;

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
    let netns = File::open(format!("/run/netns/{}", node.netns())).unwrap();
    let (name, address) = (volume.name().to_owned(), node.address().to_owned());
    let image = image.to_owned();
    // A thread of its own: it stays in the node's network namespace.
    let connecting: JoinHandle<Held> = std::thread::spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(kind))
            .unwrap();
        let timeouts = Timeouts::default();
        let glusterd = Glusterd::connect(&address, glusterd::GLUSTERD_PORT, &timeouts).unwrap();
        let layout = Layout::parse(&glusterd.volfile(&name).unwrap()).unwrap();
        let set = &layout.replica_sets[0];
        let identity = Identity {
            process_name: "locker".to_owned(),
            pid: 1,
            lk_owner: LkOwner::new(b"locker".to_vec()).unwrap(),
        };
        let brick =
            Brick::connect(&set.bricks[brick], layout.volume_id, &identity, &timeouts).unwrap();
        let gfid = brick.resolve(&image, &[]).unwrap().gfid();
        let heal = domain::self_heal(set);
        let locked = brick
            .inodelk(gfid, &heal, LockOp::Try, LockKind::Write, LockRange::WHOLE)
            .unwrap();
        assert_eq!(locked, Locked::Granted);
        Held { brick }
    });
    connecting.join().unwrap()
}
