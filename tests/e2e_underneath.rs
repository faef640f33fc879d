//! Stock self-heal underneath a writer: the loss that the session's heal lock
//! prevents, shown with that lock switched off (here, in the test alone), and
//! its absence with the lock as it is. A session whose marks were removed like that
//! notices it when it looks at them, which is the second line of defence.
//!
//! AFR's heal reads the marks at its start and takes exactly those away at its
//! end. A write past the bricks, to a block that this heal has copied already,
//! then is on one copy only, with no mark on it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bypass_blk::device::gate::{Admission, Gate};
use bypass_blk::gluster::glusterd::GLUSTERD_PORT;
use bypass_blk::gluster::{LkOwner, Timeouts};
use bypass_blk::image::brick_client::session_port::{GlusterPort, identity};
use bypass_blk::image::local::{self, LocalTerms};
use bypass_blk::image::locate::Catalog;
use bypass_blk::image::replica::brick_port::{
    BrickPort, CopyState, Counter, Fence, Lock, PortError, Publication,
};
use bypass_blk::image::replica::holder::Holder;
use bypass_blk::image::session::life::{Session, Setup};
use bypass_blk::image::session::map_place::MapPlace;
use bypass_blk::image::session::terms::{FenceWish, HOT_FILES, Terms};
use bypass_blk::image::session::write_gate::WriteGate;
use bypass_harness::{Cluster, Volume, wait_until};
use support::netns::on_node;
use support::{IMAGE, PATIENCE, pattern, replica_3};
use uuid::Uuid;

/// How often the heal may be lucky and copy what is written last.
const ATTEMPTS: usize = 5;
/// The brick that is written past.
const LOCAL: usize = 0;
/// One block at the file's beginning, which a heal copies first.
const BLOCK: usize = 4096;

/// A brick that never takes AFR's heal lock, and says that it did.
struct NoHealLock(Box<dyn BrickPort>);

impl BrickPort for NoHealLock {
    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError> {
        match lock {
            Lock::Heal => Ok(true),
            other => self.0.try_lock(other),
        }
    }

    fn unlock(&mut self, lock: Lock) -> Result<(), PortError> {
        match lock {
            Lock::Heal => Ok(()),
            other => self.0.unlock(other),
        }
    }

    fn connect(&mut self, lost: Box<dyn FnOnce(String) + Send>) -> Result<(), PortError> {
        self.0.connect(lost)
    }

    fn turn_heals_away(&mut self) -> Result<bool, PortError> {
        self.0.turn_heals_away()
    }

    fn holder(&mut self) -> Result<Option<Holder>, PortError> {
        self.0.holder()
    }

    fn publish(&mut self, fence: Fence, read_only: bool) -> Result<Publication, PortError> {
        self.0.publish(fence, read_only)
    }

    fn lift_fence(&mut self) -> Result<(), PortError> {
        self.0.lift_fence()
    }

    fn look(&mut self) -> Result<CopyState, PortError> {
        self.0.look()
    }

    fn probe(&mut self) -> Result<CopyState, PortError> {
        self.0.probe()
    }

    fn is_copied_to_for_others(&mut self, ours: Uuid) -> Result<bool, PortError> {
        self.0.is_copied_to_for_others(ours)
    }

    fn add_to_counters(&mut self, changes: &[(Counter, i32)]) -> Result<(), PortError> {
        self.0.add_to_counters(changes)
    }

    fn truncate(&mut self, size: u64) -> Result<(), PortError> {
        self.0.truncate(size)
    }

    fn set_times(&mut self, time: Duration) -> Result<(), PortError> {
        self.0.set_times(time)
    }

    fn fsync(&mut self) -> Result<(), PortError> {
        self.0.fsync()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

/// A session of the library and a guest that writes one block again and again.
struct Writer {
    session: Session,
    gate: Arc<WriteGate>,
    file: File,
    version: u64,
}

impl Writer {
    /// Opens the image on brick [`LOCAL`]; `wrap` is put around every brick's port.
    fn open(volume: &Volume, wrap: fn(Box<dyn BrickPort>) -> Box<dyn BrickPort>) -> Writer {
        let node = volume.brick_node(LOCAL);
        let (session, local) = on_node(node, || {
            let timeouts = Timeouts::default();
            let me = Holder::here("underneath");
            let owner = LkOwner::new(me.encode()).unwrap();
            let catalog =
                Catalog::load(node.address(), GLUSTERD_PORT, volume.name(), &timeouts).unwrap();
            let located = catalog
                .find(IMAGE, &identity(owner.clone()), &timeouts)
                .unwrap();
            let ports = GlusterPort::for_set(&located, &owner, timeouts, None);
            let setup = Setup {
                shape: located.shape(LOCAL),
                names: located.names(),
                ports: ports.into_iter().map(wrap).collect(),
                pending_names: located.set.pending_names.clone().into(),
                layout: located.layout(),
                me,
                terms: Terms {
                    read_only: false,
                    fence: FenceWish::Auto,
                    lock_timeout: PATIENCE,
                    urgent: false,
                    hot_files: HOT_FILES,
                },
                quorum_timeout: PATIENCE,
                map: MapPlace {
                    path: node.place().dir().join("underneath.map"),
                    extent_size: None,
                },
                on_end: Box::new(|_, _| {}),
                on_return: Box::new(|| {}),
            };
            let terms = LocalTerms {
                read_only: false,
                force_raw: true,
            };
            let path = located.local_path(LOCAL);
            let open_local = |copy: &CopyState| local::open(&path, copy.gfid, terms);
            Session::open(setup, &AtomicBool::new(false), open_local, |reason| {
                panic!("the session stopped: {reason:?}")
            })
            .unwrap()
        });
        let file = OpenOptions::new().write(true).open(&local.path).unwrap();
        Writer {
            gate: session.gate(),
            session,
            file,
            version: 0,
        }
    }

    /// Writes the block's next version, as the device would: through the gate.
    fn write(&mut self) {
        wait_until("the gate to open", PATIENCE, || {
            match self.gate.begin_write(0, BLOCK as u64) {
                Admission::Go => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap();
        self.version += 1;
        let block = pattern(self.version, 0, BLOCK);
        self.file.write_all_at(&block, 0).unwrap();
        self.file.sync_data().unwrap();
        self.gate.end_write(0, BLOCK as u64);
    }

    /// Ends the session.
    fn close(self) {
        self.session.close();
    }
}

/// The block's version on a brick.
fn version_on(volume: &Volume, brick: usize) -> u64 {
    let mut start = [0; 8];
    let file = File::open(volume.brick_file(brick, IMAGE)).unwrap();
    file.read_exact_at(&mut start, 0).unwrap();
    u64::from_le_bytes(start)
}

fn trigger_heal(volume: &Volume) {
    // Refused until the self-heal daemons are connected to every brick.
    wait_until("the heal to be asked for", PATIENCE, || {
        volume.trigger_heal().map_err(|error| error.to_string())
    })
    .unwrap();
}

/// Writes until `healed` says that the heal is over; returns the last version
/// after which marks were still seen.
fn write_while_marked(volume: &Volume, writer: &mut Writer) -> u64 {
    let begin = Instant::now();
    let mut under_marks = 0;
    loop {
        writer.write();
        let marks = volume.marks(IMAGE).unwrap();
        if marks.is_clean() {
            return under_marks;
        }
        if marks.accuses(LOCAL, 1) && marks.accuses(LOCAL, 2) {
            under_marks = writer.version;
        }
        assert!(begin.elapsed() < PATIENCE, "no heal: {marks}");
    }
}

/// How many rounds over their indices the self-heal daemons have finished.
fn finished_crawls(volume: &Volume) -> usize {
    let node = volume.brick(LOCAL).node;
    let report = volume
        .cluster()
        .gluster(node, &["volume", "heal", volume.name(), "statistics"])
        .unwrap();
    report.matches("Ending time of crawl").count()
}

#[test]
fn without_the_heal_lock_a_heal_underneath_the_writer_leaves_unmarked_copies_that_differ_until_it_looks()
 {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    for _ in 0..ATTEMPTS {
        let mut writer = Writer::open(&volume, |port| Box::new(NoHealLock(port)));
        writer.write();
        trigger_heal(&volume);
        // All marks are gone now.
        let under_marks = write_while_marked(&volume, &mut writer);
        let lost = version_on(&volume, 1) < under_marks && version_on(&volume, 2) < under_marks;
        // The session finds its marks gone when it looks, here at its end.
        let last = writer.version;
        writer.close();
        let marks = volume.marks(IMAGE).unwrap();
        assert!(
            marks.accuses(LOCAL, 1) && marks.accuses(LOCAL, 2),
            "{marks}"
        );
        volume.wait_healed(IMAGE, PATIENCE).unwrap();
        assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
        assert_eq!(version_on(&volume, 1), last);
        if lost {
            return;
        }
    }
    panic!("{ATTEMPTS} heals underneath a writer lost nothing: is the heal lock still needed?");
}

#[test]
fn with_the_heal_lock_the_heal_waits_for_the_session_to_end_and_loses_nothing() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mut writer = Writer::open(&volume, |port| port);
    writer.write();
    let before = finished_crawls(&volume);
    let begin = Instant::now();
    // Two rounds of every daemon: the second began after the marks stood.
    while finished_crawls(&volume) < before + 2 * volume.bricks().len() {
        trigger_heal(&volume);
        writer.write();
        let marks = volume.marks(IMAGE).unwrap();
        assert!(
            marks.accuses(LOCAL, 1) && marks.accuses(LOCAL, 2),
            "{marks}"
        );
        assert!(begin.elapsed() < PATIENCE, "the daemons do not work");
    }
    assert!(volume.heal_info(LOCAL).unwrap().lists(IMAGE));
    let last = writer.version;
    writer.close();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert_eq!(version_on(&volume, 1), last);
}
