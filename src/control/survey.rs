//! The images of this host: what its daemons answer, and those for which no daemon answers,
//! from what killed ones left in the run directory and from the state directory.
//!
//! Called by `status` and for the healer's metrics. It asks no brick, so it is as quick with
//! the network down, and what it says of an image that nobody serves is what was noted last.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::image::error_chain::chain;
use crate::image::state_dir::{Entry, StateDir};

use super::socket::{self, Answer, ControlError, HealQueue, Request};
use super::status::{Fate, Status, Unserved};

/// Daemons that are asked at one time: each that is stuck takes its whole time-out.
const AT_ONCE: usize = 16;

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The images: those whose daemon answered in the order of the sockets, those whose daemon
    /// did not, the others by name.
    pub images: Vec<Status>,
    /// What could not be looked at, in words: there may be more images.
    pub unseen: Vec<String>,
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of the control sockets.
    pub run_dir: PathBuf,
    /// The folder of what is remembered.
    pub state: StateDir,
    /// The healer's own socket.
    pub healer: PathBuf,
}

/// Looks at all of it.
pub fn survey(places: &Places) -> Survey {
    let mut unseen = Vec::new();
    let sockets = socket::list(&places.run_dir).unwrap_or_else(|error| {
        unseen.push(chain(&error));
        Vec::new()
    });
    let known = places.state.read_all().unwrap_or_else(|error| {
        unseen.push(chain(&error));
        Vec::new()
    });
    let mut entries = Vec::new();
    for read in known {
        match read {
            Ok(entry) => entries.push(entry),
            Err(why) => unseen.push(why),
        }
    }
    let known = Known {
        entries,
        queue: queue(&places.healer),
    };
    let (mut images, mut unserved) = (Vec::new(), Vec::new());
    for (path, heard) in hear(&sockets) {
        match (heard, Name::of(&path)) {
            (Heard::Nothing, _) => {}
            (Heard::Status(status), _) => images.push(*status),
            (Heard::Killed, Some(name)) => unserved.push(known.killed(&name, &path)),
            (Heard::Silent(why), Some(name)) => unserved.push(known.silent(&name, &path, &why)),
            (Heard::Killed, None) => unseen.push(format!("nobody answers at {}", path.display())),
            (Heard::Silent(why), None) => {
                unseen.push(format!("nobody answers at {}: {why}", path.display()));
            }
        }
    }
    images.append(&mut unserved);
    let left = known.left(&images);
    images.extend(left);
    Survey { images, unseen }
}

/// What a control socket gave.
enum Heard {
    Status(Box<Status>),
    /// The daemon ended while it was asked.
    Nothing,
    /// Nobody listens there any more.
    Killed,
    /// No answer, for this reason.
    Silent(String),
}

/// Asks them all, some at one time.
fn hear(sockets: &[PathBuf]) -> Vec<(PathBuf, Heard)> {
    let mut heard = Vec::new();
    for some in sockets.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (some.iter())
                .map(|path| (path, scope.spawn(|| hear_one(path))))
                .collect();
            heard.extend(asked.into_iter().map(|(path, answer)| {
                let stuck = |_| Heard::Silent("this program failed to ask it".to_owned());
                (path.clone(), answer.join().unwrap_or_else(stuck))
            }));
        });
    }
    heard
}

fn hear_one(path: &Path) -> Heard {
    let status = |status| Heard::Status(Box::new(status));
    socket::status(path).map_or_else(without_answer, status)
}

fn without_answer(error: ControlError) -> Heard {
    match error {
        ControlError::Ask { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused => Heard::Killed,
            io::ErrorKind::NotFound => Heard::Nothing,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Heard::Silent("it takes too long; is it stopped, or its disk stuck?".to_owned())
            }
            _ => Heard::Silent(source.to_string()),
        },
        ControlError::Refused { why, .. } | ControlError::Ended { why, .. } => Heard::Silent(why),
        error => Heard::Silent(chain(&error)),
    }
}

/// What the name of a daemon's control socket says: `VOLUME-GFID-PID.control`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    volume: String,
    gfid: Uuid,
    pid: u32,
}

impl Name {
    fn of(path: &Path) -> Option<Self> {
        const GFID: usize = uuid::fmt::Hyphenated::LENGTH;
        let (rest, pid) = path.file_stem()?.to_str()?.rsplit_once('-')?;
        let (volume, gfid) = rest.split_at_checked(rest.len().checked_sub(GFID)?)?;
        Some(Self {
            volume: volume.strip_suffix('-')?.to_owned(),
            gfid: gfid.parse().ok()?,
            pid: pid.parse().ok()?,
        })
    }
}

/// What this host remembers.
struct Known {
    entries: Vec<Entry>,
    /// Of the healer, if one runs.
    queue: Option<HealQueue>,
}

/// An older healer does not tell its queue, and not everybody may ask it.
fn queue(healer: &Path) -> Option<HealQueue> {
    if socket::is_gone(healer) {
        return None;
    }
    match socket::ask(healer, &Request::Queue) {
        Ok(Answer::Queue(queue)) => Some(queue),
        _ => Some(HealQueue::default()),
    }
}

impl Known {
    fn entry(&self, name: &Name) -> Option<&Entry> {
        let is_it = |entry: &&Entry| entry.gfid == name.gfid && entry.volume == name.volume;
        self.entries.iter().find(is_it)
    }

    fn killed(&self, name: &Name, socket: &Path) -> Status {
        let entry = self.entry(name);
        let copies = match entry {
            None => "what its copies miss is not known here".to_owned(),
            Some(entry) if entry.settled => "all copies were made equal since".to_owned(),
            Some(entry) if entry.handed_over => "another host took the image over".to_owned(),
            Some(entry) => format!("its other copies may miss data: {}", self.healing(entry)),
        };
        let detail = format!(
            "its daemon (pid {}) was killed. Start it again, or remove {} if it is not to come back; {copies}",
            name.pid,
            socket.display()
        );
        of_name(name, entry, socket, Fate::Killed, detail)
    }

    fn silent(&self, name: &Name, socket: &Path, why: &str) -> Status {
        let detail = format!("its daemon (pid {}) does not answer: {why}", name.pid);
        of_name(name, self.entry(name), socket, Fate::Silent, detail)
    }

    /// The images that are not settled and not among `seen`.
    fn left(&self, seen: &[Status]) -> Vec<Status> {
        let is_seen = |entry: &Entry| {
            let gfid = entry.gfid.to_string();
            let mut seen = seen.iter();
            seen.any(|image| image.gfid == gfid && image.volume == entry.volume)
        };
        let left = self.entries.iter();
        left.filter(|entry| !entry.settled && !entry.handed_over && !is_seen(entry))
            .map(|entry| {
                let detail = match local_size(entry) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => format!(
                        "nobody serves it, and its file is not on {} any more",
                        entry.brick
                    ),
                    _ => format!(
                        "nobody serves it, and its last session left copies that may miss data: {}",
                        self.healing(entry)
                    ),
                };
                let unserved = Unserved {
                    daemon: Fate::Ended,
                    pid: None,
                    socket: None,
                    settled: Some(false),
                };
                of_entry(entry, unserved, detail)
            })
            .collect()
    }

    /// Who heals the copies of an image that nobody serves.
    fn healing(&self, entry: &Entry) -> String {
        let Some(HealQueue { queued, .. }) = &self.queue else {
            return "NO healer runs on this host, start bypass-blk heald".to_owned();
        };
        match queued.iter().position(|name| *name == entry.name()) {
            Some(before) => format!(
                "it waits for its turn to be healed, as number {} of {} (heald --jobs)",
                before + 1,
                queued.len()
            ),
            None => {
                "the healer of this host is to heal them, its log says what it waits for".to_owned()
            }
        }
    }
}

fn of_name(
    name: &Name,
    entry: Option<&Entry>,
    socket: &Path,
    daemon: Fate,
    detail: String,
) -> Status {
    let unserved = Unserved {
        daemon,
        pid: Some(name.pid),
        socket: Some(socket.display().to_string()),
        settled: entry.map(|entry| entry.settled),
    };
    match entry {
        Some(entry) => of_entry(entry, unserved, detail),
        None => {
            let image = format!("/<gfid:{}>", name.gfid);
            Status::unserved(&name.volume, &image, name.gfid, unserved, detail)
        }
    }
}

fn of_entry(entry: &Entry, unserved: Unserved, detail: String) -> Status {
    let Entry {
        volume,
        image,
        gfid,
        ..
    } = entry;
    Status {
        size: local_size(entry).unwrap_or_default(),
        last_verified: entry.verified.as_ref().map(Into::into),
        ..Status::unserved(volume, image, *gfid, unserved, detail)
    }
}

/// Of the copy on this host, in bytes; found by its gfid, as it may have another name by now.
fn local_size(entry: &Entry) -> io::Result<u64> {
    let brick = entry.brick.split_once(":/").map(|(_, path)| path);
    let brick = Path::new("/").join(brick.unwrap_or_default());
    let gfid = entry.gfid.to_string();
    let folder = brick.join(".glusterfs");
    // A brick whose disk is not mounted has lost nothing.
    std::fs::metadata(&folder).map_err(|error| io::Error::other(error.to_string()))?;
    let file = folder.join(&gfid[..2]).join(&gfid[2..4]).join(&gfid);
    Ok(std::fs::metadata(file)?.size())
}

#[cfg(test)]
mod tests;
