//! The copy lock on a real brick: who may copy, and whom that keeps waiting.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use bypass_blk::gluster::fops::OpenMode;
use bypass_blk::gluster::{Brick, INTERNAL_PID, Identity, LkOwner, LockKind, Timeouts, glusterd};
use bypass_blk::image::brick_client::heal_peer::GlusterPeer;
use bypass_blk::image::brick_client::session_record::RECORD;
use bypass_blk::image::heal::{HealPeer, PeerError};
use bypass_blk::image::locate::{Catalog, Located};
use bypass_blk::image::replica::holder::Holder;
use bypass_harness::{Cluster, Volume};
use support::daemon::Daemon;
use support::{IMAGE, replica_3};
use uuid::Uuid;

/// The brick that is copied to.
const PEER: usize = 1;

/// Runs `work` in the network of the peer's node.
fn on_node<T: Send + 'static>(
    volume: &Volume,
    work: impl FnOnce(&Located) -> T + Send + 'static,
) -> T {
    let node = volume.brick_node(PEER);
    let netns = File::open(format!("/run/netns/{}", node.netns())).unwrap();
    let (name, address) = (volume.name().to_owned(), node.address().to_owned());
    let thread = std::thread::spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(kind)).unwrap();
        let (timeouts, port) = (Timeouts::default(), glusterd::GLUSTERD_PORT);
        let catalog = Catalog::load(&address, port, &name, &timeouts).unwrap();
        work(&catalog.find(IMAGE, &looker(), &timeouts).unwrap())
    });
    thread.join().unwrap()
}

fn looker() -> Identity {
    Identity {
        process_name: "looker".to_owned(),
        pid: INTERNAL_PID,
        lk_owner: LkOwner::new(b"looker".to_vec()).unwrap(),
    }
}

/// Whose record is on the peer's brick.
fn holder(volume: &Volume) -> Option<Holder> {
    on_node(volume, |located| {
        let spec = &located.set.bricks[PEER];
        let brick = Brick::connect(spec, located.volume_id, &looker(), &Timeouts::default());
        let brick = brick.unwrap();
        let gfid = brick.resolve(IMAGE, &[]).unwrap().gfid();
        let fd = brick.open(gfid, OpenMode::Read).unwrap();
        let lock = brick.lk_conflict(fd, LockKind::Write, RECORD).unwrap();
        brick.close();
        Holder::decode(&lock?.lk_owner)
    })
}

fn connect(volume: &Volume, session: Uuid) -> Result<GlusterPeer, PeerError> {
    on_node(volume, move |located| {
        let layout = Arc::new(located.layout());
        GlusterPeer::connect(located, PEER, &layout, session, &Timeouts::default())
    })
}

#[test]
fn a_healer_copies_for_the_session_that_holds_the_brick_and_keeps_the_next_one_waiting() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    assert!(holder(&volume).is_none());
    let nobody = connect(&volume, Uuid::from_u128(1)).err();
    assert!(matches!(
        nobody,
        Some(PeerError::NotHeld { holder: None, .. })
    ));

    let daemon = Daemon::serve(&volume, 0, &[]);
    let session = holder(&volume).unwrap().session;
    let other = connect(&volume, Uuid::from_u128(1)).err();
    assert!(matches!(
        other,
        Some(PeerError::NotHeld { holder: Some(holder), .. }) if holder.session == session
    ));
    let healer = connect(&volume, session).unwrap();
    let twice = connect(&volume, session).err();
    assert!(matches!(twice, Some(PeerError::CopyLocked { .. })));

    daemon.kill();
    let refused = Daemon::try_serve(&volume, 2, &["--lock-timeout", "1s"])
        .err()
        .expect("a session began while a healer of another copied");
    assert!(refused.log.contains("still copies"), "{}", refused.log);
    assert!(healer.is_connected());
    drop(healer);
    let daemon = Daemon::serve(&volume, 2, &[]);
    let late = connect(&volume, session).err();
    assert!(matches!(
        late,
        Some(PeerError::NotHeld {
            holder: Some(_),
            ..
        })
    ));
    drop(daemon);
}
