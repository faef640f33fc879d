//! A session that does not come to be leaves nothing behind.

use crate::image::dirty_map::{DirtyMap, ExtentSize};
use crate::image::replica::brick_port::Fence;
use uuid::Uuid;

use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_set::{BrickSet, SetChange};
use crate::image::replica::recording_port::{Change, Journal, RecordingPort};
use crate::image::session::terms::{FenceWish, HOT_FILES};

use super::*;

const SIZE: u64 = 8192;

/// The local file; nothing happens to it, but for a disk that fails.
#[derive(Clone, Copy)]
struct Quiet {
    fails_to_sync: bool,
}

impl Local for Quiet {
    fn size(&self) -> u64 {
        SIZE
    }

    fn watch(&self, _pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError> {
        Ok(Box::new(*self))
    }

    fn durability(&self) -> Arc<Durability> {
        Arc::default()
    }
}

impl CopyWatch for Quiet {
    fn mark(&self, _children: BrickSet, _stamp: i32) -> Result<(), LocalError> {
        Ok(())
    }

    fn accuses(&self, _child: usize) -> bool {
        false
    }

    fn is_untouched(&self) -> bool {
        true
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        Ok(())
    }

    fn resize(&mut self, _from: u64, _to: u64) -> Result<(), LocalError> {
        Ok(())
    }

    fn free(&self) -> Result<u64, LocalError> {
        Ok(SIZE)
    }

    fn sync(&self) -> Result<(), LocalError> {
        match self.fails_to_sync {
            false => Ok(()),
            true => Err(LocalError::Sync {
                path: "/b/a.img".into(),
                source: std::io::Error::from_raw_os_error(libc::EIO),
            }),
        }
    }
}

/// A session on two bricks, in the second of which somebody may have the image open.
fn open(map: &std::path::Path, journal: &Journal, in_use: bool) -> Result<Session, OpenError> {
    let local = Quiet {
        fails_to_sync: false,
    };
    open_on(local, map, journal, in_use)
}

fn open_on(
    local: Quiet,
    map: &std::path::Path,
    journal: &Journal,
    in_use: bool,
) -> Result<Session, OpenError> {
    let copy = CopyState {
        gfid: Uuid::from_u128(1),
        size: SIZE,
        pending: vec![0; 2],
        dirty: 0,
        fenced: false,
    };
    let port = |brick| -> Box<dyn BrickPort> {
        Box::new(RecordingPort {
            brick,
            journal: journal.clone(),
            copy: Arc::new(Mutex::new(Some(copy.clone()))),
            in_use: in_use && brick == 1,
            ..RecordingPort::default()
        })
    };
    let setup = Setup {
        shape: Shape {
            bricks: 2,
            local: 0,
            arbiter: None,
            since: SetChange::NONE,
        },
        names: Names {
            volume: "v".into(),
            bricks: vec!["a:/b".into(), "b:/b".into()],
        },
        ports: vec![port(0), port(1)],
        pending_names: Arc::default(),
        layout: Layout::new(Uuid::nil(), SIZE, None),
        me: Holder::here("a"),
        terms: Terms {
            read_only: false,
            fence: FenceWish::Exactly(Fence::Mandatory),
            lock_timeout: Duration::ZERO,
            urgent: false,
            hot_files: HOT_FILES,
        },
        quorum_timeout: Duration::from_secs(60),
        map: MapPlace {
            path: map.to_owned(),
            extent_size: Some(ExtentSize::new(4096).unwrap()),
        },
        on_end: Box::new(|_, _| {}),
        on_return: Box::new(|| {}),
    };
    let opened = Session::open(setup, &AtomicBool::new(false), |_| Ok(local), |_| {});
    opened.map(|(session, _)| session)
}

#[test]
fn an_image_in_use_elsewhere_is_refused_without_a_fence_and_with_its_map_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (map, journal) = (folder.path().join("map"), Journal::default());
    let is_clean = || DirtyMap::attach(&map).unwrap().header().clean;

    let refused = open(&map, &journal, true);
    assert!(matches!(refused, Err(OpenError::InUse { .. })));
    assert!(is_clean(), "nobody wrote");
    // On the one that refused, too: the fence comes before the locks.
    let journal = journal.lock().unwrap();
    let lifted = journal
        .iter()
        .filter(|(_, change)| *change == Change::Lifted);
    assert_eq!(lifted.map(|(brick, _)| *brick).collect::<Vec<_>>(), [0, 1]);

    let session = open(&map, &Journal::default(), false).unwrap();
    assert!(!is_clean());
    drop(session);
    assert!(is_clean(), "also of one that is only dropped");
}

#[test]
fn a_local_copy_that_cannot_be_made_durable_is_not_opened_and_the_next_session_compares() {
    let folder = tempfile::tempdir().unwrap();
    let map = folder.path().join("map");
    let local = Quiet {
        fails_to_sync: true,
    };
    let refused = open_on(local, &map, &Journal::default(), false).err();
    assert!(matches!(refused, Some(OpenError::Local(_))), "{refused:?}");
    assert!(DirtyMap::attach(&map).unwrap().record().unsynced);
}
