//! What others do around an image while it is open: they give it another name, remove
//! it, add bricks to its volume or replace them.
//!
//! Looked at every half minute by a thread of its own, when a brick has come back, and when
//! glusterd says that a volume has changed, for log and status, and for the session, which goes on
//! with the bricks with which it was opened but counts the others for a quorum. It knows its image
//! by the gfid. Nothing is decided here.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::gluster::{Glusterd, ReplicaSet, Timeouts};

use super::local::Name;
use super::locate::{Catalog, Located};
use super::replica::brick_set::{SetChange, VolumeChange};
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
    /// volume has changed, again and again: sessions come and go.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn watch(
        self: &Arc<Self>,
        tell: impl Fn(VolumeChange) + Send + 'static,
    ) -> std::io::Result<Watching> {
        let this = self.clone();
        let prompt = self.prompt.clone();
        let look = move || {
            let mut told = VolumeChange::NONE;
            let mut glusterd = None;
            loop {
                this.stay_in_touch(&mut glusterd);
                if let Some(change) = this.look()
                    && [&change, &told] != [&VolumeChange::NONE; 2]
                {
                    tell(change.clone());
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

    /// A connection through which glusterd says that a volume has changed: it is looked then,
    /// not half a minute later. In touch before the look, so that no change is missed.
    fn stay_in_touch(&self, glusterd: &mut Option<Glusterd>) {
        if glusterd.as_ref().is_some_and(Glusterd::is_connected) {
            return;
        }
        let connect = |host| Glusterd::connect(host, self.server.1, &Timeouts::default()).ok();
        // Without one it is looked all the same, but later.
        *glusterd = self.hosts().into_iter().find_map(connect);
        if let Some(glusterd) = glusterd {
            let prompt = self.prompt.clone();
            glusterd.on_change(move || prompt.ask());
        }
    }

    /// Whose glusterd is asked, in this order: this host's own, and if that is down those of the
    /// other bricks. While it is down others can change the volume, and their heals go on.
    fn hosts(&self) -> Vec<&str> {
        let mut hosts = vec![self.server.0.as_str()];
        let own = self.located.set.bricks.get(self.local);
        let own = own.map(|brick| brick.host.as_str());
        for brick in &self.located.set.bricks {
            let host = brick.host.as_str();
            if Some(host) != own && !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts
    }

    /// How the volume has changed; `None` if nobody knows.
    fn look(&self) -> Option<VolumeChange> {
        self.look_at_name();
        let volume = &self.located.volume;
        let load = |host| {
            Catalog::load(host, self.server.1, volume, &Timeouts::default())
                .inspect_err(|error| log::debug!("the volume's layout is not known now: {error}"))
                .ok()
        };
        // If none answers what was seen stands.
        let catalog = self.hosts().into_iter().find_map(load)?;
        let set = catalog.set_with(&self.located.names().one(self.local));
        let change = set.map(|now| Difference::between(&self.located.set, now));
        let spread = spread_warning(&self.located, catalog.sets());
        let spreads = spread.is_some();
        let told = warning(&self.located, self.local, change.as_ref());
        let told: Vec<_> = spread.into_iter().chain(told).collect();
        self.note_layout((!told.is_empty()).then(|| told.join(" ")));
        let change = change?;
        Some(VolumeChange {
            set: change.as_counted(),
            newcomers: change.newcomers,
            spreads,
        })
    }

    fn note_layout(&self, layout: Option<String>) {
        let mut seen = self.seen();
        if seen.layout == layout {
            return;
        }
        match &layout {
            Some(what) => log::error!("{what}"),
            None => {
                log::info!("the volume is again as it was when the image was opened")
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
    /// Names of counters against copies that were not there.
    newcomers: Vec<String>,
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
        let known = &before.pending_names;
        let newcomers = now
            .pending_names
            .iter()
            .filter(|name| !known.contains(name));
        Self {
            newcomers: newcomers.cloned().collect(),
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

/// What to say when an image in shards is served from one of `sets` replica sets.
fn spread_warning(located: &Located, sets: usize) -> Option<String> {
    let volume = &located.volume;
    (located.pieces.is_some() && sets > 1).then(|| {
        format!(
            "the volume {volume} has {sets} replica sets now, and an image in shards can only be served from one. It is served on, and \
             Gluster moves none of its shards as long as it is: a rebalance waits for them, or passes them over. When this daemon has ended it cannot be \
             served again: until then copy it to a volume of one replica set, or let its guest use it through a mount from its \
             next start on."
        )
    })
}

#[cfg(test)]
mod tests;
