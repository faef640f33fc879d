//! What others do around an image while it is open: they give it another name, remove
//! it, add bricks to its volume or replace them.
//!
//! Looked at every few seconds by a thread of its own, for log and status. The session
//! goes on with the bricks with which it was opened, and knows its image by the gfid:
//! nothing is decided here.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::local::Name;
use super::locate::{Catalog, LocateError, Located};
use crate::gluster::{ReplicaSet, Timeouts};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(15);

/// See the module.
pub struct Surroundings {
    located: Located,
    /// Child index of the local brick.
    local: usize,
    /// Host and port of the glusterd to ask.
    server: (String, u16),
    seen: Mutex<Seen>,
}

/// What was seen last.
struct Seen {
    image: String,
    removed: bool,
    layout: Option<String>,
}

/// As long as it lives it is looked.
pub struct Watching {
    _end: Sender<()>,
}

impl Surroundings {
    /// Of an image that is opened from child `local`; glusterd is at `host` and `port`.
    pub fn new(located: &Located, local: usize, host: &str, port: u16) -> Self {
        Self {
            located: located.clone(),
            local,
            server: (host.to_owned(), port),
            seen: Mutex::new(Seen {
                image: located.image.clone(),
                removed: false,
                layout: None,
            }),
        }
    }

    /// Looks at once and from then on, until the answer is dropped.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn watch(self: &Arc<Self>) -> std::io::Result<Watching> {
        let (end, ended) = mpsc::channel::<()>();
        let this = self.clone();
        let look = move || {
            loop {
                this.look();
                match ended.recv_timeout(PERIOD) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        };
        let thread = std::thread::Builder::new().name("surroundings".to_owned());
        thread.spawn(look)?;
        Ok(Watching { _end: end })
    }

    /// The image's path in the volume, as it is now.
    pub fn image(&self) -> String {
        self.look_at_name();
        self.seen().image.clone()
    }

    /// What somebody should know and do.
    pub fn warnings(&self) -> Vec<String> {
        self.look_at_name();
        let seen = self.seen();
        let removed = seen.removed.then(removed);
        removed.into_iter().chain(seen.layout.clone()).collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing in it is half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        self.look_at_name();
        let (host, port) = &self.server;
        let volume = &self.located.volume;
        match Catalog::load(host, *port, volume, &Timeouts::default()) {
            Ok(catalog) => self.note_layout(&catalog),
            // It may be restarting; what was seen stands.
            Err(error) => self.note_trouble(&error),
        }
    }

    fn note_trouble(&self, error: &LocateError) {
        log::debug!("the volume's layout is not known now: {error}");
    }

    fn note_layout(&self, catalog: &Catalog) {
        let brick = self.located.names().one(self.local);
        let layout = changed(&self.located, self.local, catalog.set_with(&brick));
        let mut seen = self.seen();
        if seen.layout == layout {
            return;
        }
        match &layout {
            Some(what) => log::error!("{what}"),
            None => {
                log::info!("the volume's bricks are again those that the image was opened with")
            }
        }
        seen.layout = layout;
    }

    fn look_at_name(&self) {
        let mut seen = self.seen();
        let was_removed = seen.removed;
        match self.located.name_now(self.local, &seen.image) {
            Name::Unknown => return,
            Name::Same => seen.removed = false,
            Name::Gone => seen.removed = true,
            Name::Other(image) => {
                let (volume, old) = (&self.located.volume, &seen.image);
                log::warn!(
                    "{volume}{old} was renamed: it is {volume}{image} now, served on, and to be served by that name from its next start on"
                );
                seen.removed = false;
                seen.image = image;
            }
        }
        if seen.removed && !was_removed {
            log::error!("{}", removed());
        }
    }
}

fn removed() -> String {
    "the image was removed from the volume: the guest goes on with a file that has no name, and all is lost when this \
     daemon ends. Copy the disk from inside the guest"
        .to_owned()
}

/// What to say when `now`, the replica set that has the local brick, is not the one with
/// which the image was opened.
fn changed(located: &Located, local: usize, now: Option<&ReplicaSet>) -> Option<String> {
    let volume = &located.volume;
    let Some(now) = now else {
        let brick = located.names().one(local);
        let path = located.local_path(local);
        return Some(format!(
            "{brick}, from which the image is served, is no brick of the volume {volume} any more: what the guest writes is in none of \
             the volume's copies. Shut the guest down, and copy {} into the volume",
            path.display()
        ));
    };
    let names =
        |set: &ReplicaSet| -> Vec<String> { set.bricks.iter().map(ToString::to_string).collect() };
    let (before, after) = (names(&located.set), names(now));
    let not_in = |these: &[String], those: &[String]| -> Vec<String> {
        let missing = these.iter().filter(|name| !those.contains(name));
        missing.cloned().collect()
    };
    let said = |names: Vec<String>, what: &str| match names.is_empty() {
        true => None,
        false => Some(format!("{} {what}", names.join(", "))),
    };
    let came = said(not_in(&after, &before), "came");
    let went = said(not_in(&before, &after), "went");
    let what: Vec<_> = came.into_iter().chain(went).collect();
    let same_rules = located.set.pending_names == now.pending_names
        && located.set.arbiter_count == now.arbiter_count;
    if what.is_empty() && before == after && same_rules {
        return None;
    }
    let what = match what.is_empty() {
        true => "they have another order, or other marks".to_owned(),
        false => what.join("; "),
    };
    Some(format!(
        "the bricks of {volume} are not those that the image was opened with: {what}. Copies there are not healed, and do not count for a \
         quorum. Start the daemon anew, its guest may run on: then it has all of them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::{BrickSpec, Volume};
    use uuid::Uuid;

    const REPLICA3: &str = include_str!("../gluster/testdata/replica3.vol");

    fn opened() -> Located {
        let volume = Volume::parse(REPLICA3).unwrap();
        Located {
            volume: "gv0".to_owned(),
            volume_id: volume.volume_id,
            image: "/vm1.img".to_owned(),
            set: volume.replica_sets[0].clone(),
            gfid: Uuid::from_u128(7),
            size: 4096,
        }
    }

    #[test]
    fn bricks_that_came_or_went_are_named_with_what_to_do() {
        let located = opened();
        assert_eq!(changed(&located, 0, Some(&located.set)), None);
        let with = |change: &dyn Fn(&mut ReplicaSet)| {
            let mut set = located.set.clone();
            change(&mut set);
            changed(&located, 0, Some(&set)).unwrap()
        };
        let added = with(&|set| {
            let more = BrickSpec {
                path: "/bricks/4/gv0".to_owned(),
                ..set.bricks[0].clone()
            };
            set.bricks.push(more);
        });
        assert!(added.contains("127.1.1.1:/bricks/4/gv0 came."), "{added}");
        let replaced = with(&|set| set.bricks[2].path = "/new".to_owned());
        let both = "127.1.1.3:/new came; 127.1.1.3:/bricks/3/gv0 went.";
        assert!(replaced.contains(both), "{replaced}");
        let marks = with(&|set| set.pending_names[1] = "trusted.afr.gv0-client-9".to_owned());
        assert!(marks.contains("other marks"), "{marks}");
        let gone = changed(&located, 0, None).unwrap();
        assert!(gone.contains("copy /bricks/1/gv0/vm1.img into"), "{gone}");
    }
}
