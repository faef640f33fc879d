//! What others do around an image while it is open: they give it another name, remove
//! it, add bricks to its volume or replace them.
//!
//! Looked at every half minute by a thread of its own, and when a brick has come back, for log
//! and status, and for the session, which goes on with the bricks with which it was opened but counts the others
//! for a quorum. It knows its image by the gfid. Nothing is decided here.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::gluster::{ReplicaSet, Timeouts};

use super::local::Name;
use super::locate::{Catalog, Located};
use super::replica::brick_set::SetChange;
use super::scheduler::Scheduler;
use super::session::bell::Bell;

/// How often it is looked: each time wakes a few threads up, of an idle daemon too.
const PERIOD: Duration = Duration::from_secs(30);

/// The least time between two looks: bricks may come and go all the time.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks for a look before its time: a brick that comes back may have come with a volume that
/// has changed.
#[derive(Clone)]
pub struct Prompt(Arc<Prompted>);

struct Prompted {
    asked: AtomicBool,
    bell: Bell,
}

impl Default for Prompt {
    fn default() -> Self {
        Self(Arc::new(Prompted {
            asked: AtomicBool::new(false),
            bell: Bell::new(Scheduler::default()),
        }))
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prompt").field(&self.0.asked).finish()
    }
}

impl Prompt {
    /// Look soon.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        self.0.bell.ring();
    }

    fn end(&self) {
        self.0.bell.end();
    }

    /// Until the next look is due, [`PERIOD`] after the last one or when it is asked for, but
    /// not sooner than [`PAUSE`]. `false`: there is none.
    fn wait(&self) -> bool {
        let Prompted { asked, bell } = &*self.0;
        let ended = || bell.is_over().then_some(());
        let due = || asked.load(Ordering::SeqCst).then_some(()).or_else(ended);
        let looked = Instant::now();
        bell.wait(PERIOD, due);
        bell.wait(PAUSE.saturating_sub(looked.elapsed()), ended);
        asked.store(false, Ordering::SeqCst);
        !bell.is_over()
    }
}

/// See the module.
pub struct Surroundings {
    located: Located,
    /// Child index of the local brick.
    local: usize,
    /// Host and port of the glusterd to ask.
    server: (String, u16),
    seen: Mutex<Noticed>,
    prompt: Prompt,
}

/// What was seen last.
struct Noticed {
    image: String,
    removed: bool,
    layout: Option<String>,
}

/// As long as it lives it is looked.
pub struct Watching(Prompt);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Surroundings {
    /// Of an image that is opened from child `local`; glusterd is at `host` and `port`, and
    /// is asked early when `prompt` is.
    pub fn new(located: &Located, local: usize, host: &str, port: u16, prompt: Prompt) -> Self {
        Self {
            prompt,
            located: located.clone(),
            local,
            server: (host.to_owned(), port),
            seen: Mutex::new(Noticed {
                image: located.image.clone(),
                removed: false,
                layout: None,
            }),
        }
    }

    /// Looks at once and from then on, until the answer is dropped. `tell` is told how the
    /// replica set has changed, again and again: sessions come and go.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn watch(
        self: &Arc<Self>,
        tell: impl Fn(SetChange) + Send + 'static,
    ) -> std::io::Result<Watching> {
        let this = self.clone();
        let prompt = self.prompt.clone();
        let look = move || {
            let mut told = SetChange::NONE;
            loop {
                if let Some(change) = this.look()
                    && [change, told] != [SetChange::NONE; 2]
                {
                    tell(change);
                    told = change;
                }
                if !prompt.wait() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("surroundings".to_owned());
        thread.spawn(look)?;
        Ok(Watching(self.prompt.clone()))
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

    fn seen(&self) -> MutexGuard<'_, Noticed> {
        // Nothing in it is half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the replica set has changed; `None` if nobody knows.
    fn look(&self) -> Option<SetChange> {
        self.look_at_name();
        let (host, port) = &self.server;
        let volume = &self.located.volume;
        let catalog = Catalog::load(host, *port, volume, &Timeouts::default())
            // glusterd may be restarting; what was seen stands.
            .inspect_err(|error| log::debug!("the volume's layout is not known now: {error}"))
            .ok()?;
        let set = catalog.set_with(&self.located.names().one(self.local));
        let change = set.map(|now| Difference::between(&self.located.set, now));
        self.note_layout(warning(&self.located, self.local, change.as_ref()));
        change.map(|change| change.as_counted())
    }

    fn note_layout(&self, layout: Option<String>) {
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

/// How a replica set differs from what it was.
struct Difference {
    /// Names of bricks that were not there.
    came: Vec<String>,
    /// Bricks that are not there any more: child index and name.
    gone: Vec<(usize, String)>,
    /// The bricks are in another order, are marked by other names, or another number of
    /// them are arbiters.
    rules: bool,
}

impl Difference {
    fn between(before: &ReplicaSet, now: &ReplicaSet) -> Self {
        let names = |set: &ReplicaSet| -> Vec<String> {
            set.bricks.iter().map(ToString::to_string).collect()
        };
        let (old, new) = (names(before), names(now));
        let came = new.iter().filter(|name| !old.contains(name)).cloned();
        let gone = old.iter().cloned().enumerate();
        Self {
            came: came.collect(),
            gone: gone.filter(|(_, name)| !new.contains(name)).collect(),
            rules: old != new
                || before.pending_names != now.pending_names
                || before.arbiter_count != now.arbiter_count,
        }
    }

    /// What it means for a quorum.
    fn as_counted(&self) -> SetChange {
        SetChange {
            came: self.came.len(),
            gone: self.gone.iter().map(|(child, _)| *child).collect(),
        }
    }

    /// In words; `None` if there is no difference.
    fn said(&self) -> Option<String> {
        let gone: Vec<_> = self.gone.iter().map(|(_, name)| name.clone()).collect();
        let each = [(&self.came, "came"), (&gone, "went")];
        let said = each.into_iter().filter(|(names, _)| !names.is_empty());
        let said: Vec<_> = said
            .map(|(names, what)| format!("{} {what}", names.join(", ")))
            .collect();
        match said.is_empty() {
            true if self.rules => Some("they have another order, or other marks".to_owned()),
            true => None,
            false => Some(said.join("; ")),
        }
    }
}

/// What to say when the replica set is not what it was; `None` for `difference`: it has not
/// even the local brick any more.
fn warning(located: &Located, local: usize, difference: Option<&Difference>) -> Option<String> {
    let volume = &located.volume;
    match difference {
        None => Some(format!(
            "{}, from which the image is served, is no brick of the volume {volume} any more: what the guest writes is in none of \
             the volume's copies. Shut the guest down, and copy {} into the volume",
            located.names().one(local),
            located.local_path(local).display()
        )),
        Some(difference) => difference.said().map(|what| {
            format!(
                "the bricks of {volume} are not those that the image was opened with: {what}. Copies there are not healed. Start the \
                 daemon anew, its guest may run on: then it has all of them"
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::{BrickSpec, Volume};
    use crate::image::replica::brick_set::BrickSet;
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
            pieces: None,
        }
    }

    #[test]
    fn bricks_that_came_or_went_are_counted_and_named_with_what_to_do() {
        let located = opened();
        let with = |change: &dyn Fn(&mut ReplicaSet)| {
            let mut set = located.set.clone();
            change(&mut set);
            let difference = Difference::between(&located.set, &set);
            let warning = warning(&located, 0, Some(&difference)).unwrap_or_default();
            (difference.as_counted(), warning)
        };
        assert_eq!(with(&|_| {}), (SetChange::NONE, String::new()));
        let (counted, added) = with(&|set| {
            let more = BrickSpec {
                path: "/bricks/4/gv0".to_owned(),
                ..set.bricks[0].clone()
            };
            set.bricks.push(more);
        });
        assert_eq!((counted.came, counted.gone), (1, BrickSet::EMPTY));
        assert!(added.contains("127.1.1.1:/bricks/4/gv0 came."), "{added}");
        let (counted, replaced) = with(&|set| set.bricks[2].path = "/new".to_owned());
        assert_eq!((counted.came, counted.gone), (1, BrickSet::only(2)));
        let both = "127.1.1.3:/new came; 127.1.1.3:/bricks/3/gv0 went.";
        assert!(replaced.contains(both), "{replaced}");
        let (counted, marks) =
            with(&|set| set.pending_names[1] = "trusted.afr.gv0-client-9".to_owned());
        assert_eq!(counted, SetChange::NONE);
        assert!(marks.contains("other marks"), "{marks}");
        let gone = warning(&located, 0, None).unwrap();
        assert!(gone.contains("copy /bricks/1/gv0/vm1.img into"), "{gone}");
    }

    #[test]
    fn a_look_that_is_asked_for_comes_before_its_time_and_the_end_at_once() {
        let prompt = Prompt::default();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| prompt.wait());
            prompt.ask();
            assert!(waits.join().unwrap());
        });
        assert!(begin.elapsed() >= PAUSE, "not one after the other");
        // It was answered.
        assert!(!prompt.0.asked.load(Ordering::SeqCst));
        drop(Watching(prompt.clone()));
        assert!(!prompt.wait());
        assert!(begin.elapsed() < PERIOD);
    }
}
