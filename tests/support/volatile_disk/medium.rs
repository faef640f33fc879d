//! What a volatile disk was asked, in order, and what is on it after which cut.
//!
//! Durable is what was answered before a sync was asked for that was answered before the cut. Of
//! the rest each change may be there, or not, or some sectors of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::run_command;

use super::super::PATIENCE;
use super::super::power::FileSystem;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// Numbers that only a seed decides.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}

/// Pages that are not zeros.
#[derive(Clone, Default)]
struct Pages(HashMap<u64, Box<[u8; PAGE as usize]>>);

impl Pages {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, range) in pieces(offset, len) {
            if let Some(page) = self.0.get(&(at / PAGE)) {
                let from = (at % PAGE) as usize;
                bytes[range.clone()].copy_from_slice(&page[from..from + range.len()]);
            }
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, range) in pieces(offset, bytes.len()) {
            let page = self
                .0
                .entry(at / PAGE)
                .or_insert(Box::new([0; PAGE as usize]));
            let from = (at % PAGE) as usize;
            page[from..from + range.len()].copy_from_slice(&bytes[range]);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        for (at, range) in pieces(offset, len as usize) {
            if range.len() as u64 == PAGE {
                self.0.remove(&(at / PAGE));
            } else if let Some(page) = self.0.get_mut(&(at / PAGE)) {
                let from = (at % PAGE) as usize;
                page[from..from + range.len()].fill(0);
            }
        }
    }

    fn apply(&mut self, change: &Change, part: std::ops::Range<usize>) {
        let at = change.offset + part.start as u64;
        match &change.bytes {
            Some(bytes) => self.write(at, &bytes[part]),
            None => self.zero(at, part.len() as u64),
        }
    }
}

/// The parts of a range in each page: where, and which bytes of it.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let piece = (len - done).min((PAGE - at % PAGE) as usize);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((at, range))
    })
}

#[derive(Clone)]
struct Change {
    offset: u64,
    len: usize,
    /// `None`: zeros.
    bytes: Option<Vec<u8>>,
    /// The moment in which it was answered.
    answered: Option<usize>,
}

#[derive(Clone, Copy)]
enum Event {
    /// A change was asked for, which is visible from then on.
    Change(usize),
    Answer,
    /// Asked for and answered.
    Sync,
}

/// The disk's contents and its past.
#[derive(Clone)]
pub struct Medium {
    size: u64,
    original: Pages,
    now: Pages,
    changes: Vec<Change>,
    events: Vec<Event>,
}

impl Medium {
    /// What `file` holds, of `size` bytes.
    pub fn load(file: &Path, size: u64) -> Self {
        let file = File::open(file).unwrap();
        let mut original = Pages::default();
        let mut bytes = vec![0; PAGE as usize];
        for at in (0..size).step_by(PAGE as usize) {
            file.read_exact_at(&mut bytes, at).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                original.write(at, &bytes);
            }
        }
        Self {
            size,
            now: original.clone(),
            original,
            changes: Vec::new(),
            events: Vec::new(),
        }
    }

    pub fn moment(&self) -> usize {
        self.events.len()
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.now.read(offset, len)
    }

    /// Returns the change's number, for [`Medium::answered`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> usize {
        self.change(offset, bytes.len(), Some(bytes.to_vec()))
    }

    pub fn zero(&mut self, offset: u64, len: u64) -> usize {
        self.change(offset, len as usize, None)
    }

    fn change(&mut self, offset: u64, len: usize, bytes: Option<Vec<u8>>) -> usize {
        let change = Change {
            offset,
            len,
            bytes,
            answered: None,
        };
        self.now.apply(&change, 0..len);
        self.changes.push(change);
        self.events.push(Event::Change(self.changes.len() - 1));
        self.changes.len() - 1
    }

    pub fn answered(&mut self, change: usize) {
        self.changes[change].answered = Some(self.events.len());
        self.events.push(Event::Answer);
    }

    pub fn sync(&mut self) {
        self.events.push(Event::Sync);
    }
}

/// A disk that has lost its power, and what was on it at each moment.
pub struct PastCuts {
    medium: Medium,
    kind: FileSystem,
    /// What is durable of the changes before `seen`.
    durable: Pages,
    /// Changes that were asked for, and are not durable yet.
    volatile: Vec<usize>,
    /// Moments that were looked at.
    seen: usize,
}

impl PastCuts {
    pub fn new(medium: Medium, kind: FileSystem) -> Self {
        Self {
            durable: medium.original.clone(),
            medium,
            kind,
            volatile: Vec::new(),
            seen: 0,
        }
    }

    /// Moments there are.
    pub fn moments(&self) -> usize {
        self.medium.moment()
    }

    /// The file system after a cut at `moment`, not before an earlier one that was asked for,
    /// mounted in `folder`; `dice` say what is left of what was not durable.
    pub fn cut(&mut self, moment: usize, dice: &mut Dice, folder: &Path) -> CutDisk {
        self.advance(moment);
        let mut left = self.durable.clone();
        let likely = [0, 10, 50, 90, 100][dice.below(5)];
        for &change in &self.volatile {
            let change = &self.medium.changes[change];
            let there = dice.below(100) < likely;
            match dice.below(4) {
                // Torn.
                0 => (0..change.len).step_by(SECTOR).for_each(|at| {
                    if dice.below(100) < likely {
                        left.apply(change, at..change.len.min(at + SECTOR));
                    }
                }),
                _ if there => left.apply(change, 0..change.len),
                _ => {}
            }
        }
        CutDisk::mount(&left, self.medium.size, self.kind, folder)
    }

    fn advance(&mut self, moment: usize) {
        assert!(moment >= self.seen, "cuts are asked for in their order");
        for at in self.seen..moment {
            match self.medium.events[at] {
                Event::Change(change) => self.volatile.push(change),
                Event::Answer => {}
                Event::Sync => {
                    let changes = &self.medium.changes;
                    let (durable, volatile) = std::mem::take(&mut self.volatile)
                        .into_iter()
                        .partition::<Vec<_>, _>(|change| {
                            changes[*change].answered.is_some_and(|then| then < at)
                        });
                    for change in durable {
                        let change = &changes[change];
                        self.durable.apply(change, 0..change.len);
                    }
                    self.volatile = volatile;
                }
            }
        }
        self.seen = moment;
    }
}

/// What a cut has left, mounted. Unmounted when dropped.
pub struct CutDisk {
    image: PathBuf,
    mounted: PathBuf,
}

impl CutDisk {
    fn mount(pages: &Pages, size: u64, kind: FileSystem, folder: &Path) -> Self {
        let image = folder.with_extension("cut");
        let file = File::create(&image).unwrap();
        file.set_len(size).unwrap();
        for (page, bytes) in &pages.0 {
            file.write_all_at(&bytes[..], page * PAGE).unwrap();
        }
        std::fs::create_dir_all(folder).unwrap();
        run_command(
            kind.mount_command(&image, folder).args(["-o", "loop"]),
            PATIENCE,
        )
        .unwrap();
        Self {
            image,
            mounted: folder.to_owned(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        let done = run_command(Command::new("umount").arg(&self.mounted), PATIENCE);
        if let Err(error) = done {
            eprintln!("{} stays mounted: {error}", self.mounted.display());
        }
        let _ = std::fs::remove_file(&self.image);
    }
}
