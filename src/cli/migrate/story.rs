//! What a migration consists of, and what came of it: all decisions of `migrate`.
//!
//! Hosts, clock and screen are behind [`World`], so that tests can play QEMUs and daemons
//! in every order. Who may write is not decided here: that is locks and marks. What must be
//! right here is what the operator is told, and that nothing is taken back that has moved:
//!
//! ```text
//! check ─► hand over ─► begin ─► follow ──────── completed ───────► arrive ─► Moved
//!   │          │          │         │                                 ▲  │
//!   │ nothing was done    └── not ──┤ failed, too long, interrupted   │  │ not held there
//!   ▼          ▼                    ▼                                 │  ▼
//!  Err        Err                 stay ── it had completed before ────┘ Unclear
//!                                   ├─► Stays: the guest runs here, and this host holds it
//!                                   └─► Unclear
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::serving_status::OwnershipStatus;
use crate::daemon::failure::Failure;

/// How often it is looked how far it is.
const ROUND: Duration = Duration::from_millis(200);
/// How often that is said.
const TELL: Duration = Duration::from_secs(2);
/// For how long QEMU here may not answer, over all tries.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a guest may take to run again here.
const BACK: Duration = Duration::from_secs(30);
/// How long the target may take to hold the image, once the source has given it away.
const ARRIVAL: Duration = Duration::from_secs(60);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `VOLUME/IMAGE`.
    pub image: String,
    /// The target's host.
    pub to: String,
    /// Where its QEMU waits.
    pub uri: String,
    /// QEMU's `downtime-limit`, in milliseconds.
    pub memory_downtime: u64,
    /// How long it may take.
    pub timeout: Duration,
    /// The source's QEMU stays when the guest has moved.
    pub keep: bool,
}

/// How it is with the guest and the image on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// QEMU's run state, such as `running`; absent when it does not answer.
    pub guest: Option<String>,
    /// Of the daemon that serves the image there; absent when there is none that answers.
    pub ownership: Option<OwnershipStatus>,
    /// Why something could not be seen.
    pub trouble: Option<String>,
}

impl Seen {
    fn is(&self, guest: &str, ownerships: &[OwnershipStatus]) -> bool {
        self.guest.as_deref() == Some(guest)
            && self
                .ownership
                .is_some_and(|ownership| ownerships.contains(&ownership))
    }

    fn guest(&self) -> &str {
        self.guest.as_deref().unwrap_or("not to be seen")
    }

    fn ownership(&self) -> String {
        match self.ownership.map(|ownership| json!(ownership)) {
            Some(Value::String(name)) => name,
            _ => "none".to_owned(),
        }
    }

    fn trouble(&self) -> String {
        let trouble = self.trouble.as_ref();
        trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"))
    }
}

/// The guest, or its image, may be used on this host.
const OURS: [OwnershipStatus; 2] = [OwnershipStatus::Held, OwnershipStatus::Armed];

/// What the story happens in.
pub trait World {
    /// How it is on this host.
    fn here(&mut self) -> Seen;
    /// How it is on the target's.
    fn there(&mut self) -> Seen;
    /// Asks the source's QEMU.
    ///
    /// # Errors
    /// Its refusal, or that it does not answer.
    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String>;
    /// Makes the image ready to be given away when the rings stop.
    ///
    /// # Errors
    /// Why it is not.
    fn hand_over(&mut self) -> Result<(), Failure>;
    /// Does not give it away after all.
    ///
    /// # Errors
    /// It is given away already, or nobody answers.
    fn keep(&mut self) -> Result<(), String>;
    /// A line for the operator.
    fn tell(&mut self, line: &str);
    /// Lets time go by.
    fn pause(&mut self, time: Duration);
    /// Since the beginning.
    fn now(&self) -> Duration;
    /// The operator wants it to end.
    fn interrupted(&self) -> bool;
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the target, which holds the image.
    Moved {
        /// As QEMU measures it, in milliseconds.
        downtime: Option<u64>,
    },
    /// It goes on here, and this host holds the image.
    Stays {
        /// Why it did not move.
        why: String,
    },
    /// Nobody can say from here.
    Unclear {
        /// What is known.
        why: String,
    },
}

impl Outcome {
    /// For the operator, to act on.
    pub fn verdict(&self, plan: &Plan) -> String {
        let Plan { image, to, .. } = plan;
        match self {
            Self::Moved { downtime } => {
                let downtime = downtime.map_or("not told".to_owned(), |ms| format!("{ms} ms"));
                format!(
                    "VERDICT: the guest runs on {to}, which holds the image. QEMU's downtime was {downtime}."
                )
            }
            Self::Stays { .. } => {
                "VERDICT: the guest goes on here, and this host holds the image. End the target's QEMU before another try."
                    .to_owned()
            }
            Self::Unclear { why } => format!(
                "VERDICT: unclear: {why}.\n  \
                 Who holds the image:  bypass-blk status {image}     (on any host)\n  \
                 Held by the target:   the guest is there. End the QEMU here; do not cont it.\n  \
                 Held here:            end the target's QEMU, then cont the guest here.\n  \
                 Held by nobody:       look at the target's QEMU first. Does it run its guest? Then start\n                        \
                 serve --incoming there again. Else end it, and cont the guest here.\n  \
                 More: docs/migration.md, \"Who owns the image after which failure\""
            ),
        }
    }
}

/// What QEMU says of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// It goes on; bytes of memory that are left, once that is known (not in `setup`).
    On { status: String, left: Option<u64> },
    /// The target has all of the guest.
    Completed { downtime: Option<u64> },
    /// It has ended otherwise.
    Over { status: String, why: String },
}

impl Progress {
    /// Nothing is sent any more.
    fn is_over(&self) -> bool {
        match self {
            Self::On { status, .. } => status == "none",
            Self::Completed { .. } | Self::Over { .. } => true,
        }
    }
}

fn progress(answer: &Value) -> Progress {
    let status = answer["status"].as_str().unwrap_or("none").to_owned();
    match status.as_str() {
        "completed" => Progress::Completed {
            downtime: answer["downtime"].as_u64(),
        },
        "failed" | "cancelled" => Progress::Over {
            status,
            why: answer["error-desc"].as_str().unwrap_or_default().to_owned(),
        },
        _ => Progress::On {
            status,
            left: answer["ram"]["remaining"].as_u64(),
        },
    }
}

/// Moves the guest.
///
/// # Errors
/// Nothing was done, or the image could not be made ready.
pub fn migrate(world: &mut impl World, plan: &Plan) -> Result<Outcome, Failure> {
    world.tell("==> checking both hosts");
    check(world, plan)?;
    world.tell(&format!(
        "==> bringing the copy on {} up to date while the guest runs (handover)",
        plan.to
    ));
    world.hand_over()?;
    if let Err(why) = begin(world, plan) {
        return Ok(stay(world, plan, &why));
    }
    Ok(match follow(world, plan) {
        End::Completed { downtime } => arrive(world, plan, downtime),
        End::Not { why } => stay(world, plan, &why),
        End::Silent { why } => Outcome::Unclear { why },
    })
}

fn check(world: &mut impl World, plan: &Plan) -> Result<(), Failure> {
    let Plan { image, to, .. } = plan;
    let refused = |why: String| Err(Failure::Usage(format!("nothing was done: {why}")));
    let here = world.here();
    if here.ownership != Some(OwnershipStatus::Held) {
        return refused(format!(
            "no daemon of this host holds {image} (ownership: {}); see bypass-blk status",
            here.ownership()
        ));
    }
    if here.guest.as_deref() != Some("running") {
        let (guest, trouble) = (here.guest(), here.trouble());
        return refused(format!(
            "the guest does not run here: it is {guest}{trouble}"
        ));
    }
    let there = world.there();
    if there.ownership != Some(OwnershipStatus::Vacant) {
        return refused(format!(
            "no daemon on {to} waits for {image} (ownership: {}): start serve --incoming there{}",
            there.ownership(),
            there.trouble()
        ));
    }
    if there.guest.as_deref() != Some("inmigrate") {
        let (guest, trouble) = (there.guest(), there.trouble());
        return refused(format!(
            "the target's QEMU does not wait for a guest: it is {guest}{trouble}"
        ));
    }
    Ok(())
}

fn begin(world: &mut impl World, plan: &Plan) -> Result<(), String> {
    // The source then knows that the target has taken all of the guest before it calls it done.
    let return_path = json!({ "capability": "return-path", "state": true });
    world.ask(
        "migrate-set-capabilities",
        json!({ "capabilities": [return_path] }),
    )?;
    world.ask(
        "migrate-set-parameters",
        json!({ "downtime-limit": plan.memory_downtime }),
    )?;
    world.tell(&format!("==> migrating to {}", plan.uri));
    world.ask("migrate", json!({ "uri": plan.uri })).map(drop)
}

/// How following it ended.
enum End {
    Completed { downtime: Option<u64> },
    Not { why: String },
    Silent { why: String },
}

fn follow(world: &mut impl World, plan: &Plan) -> End {
    let end = world.now().saturating_add(plan.timeout);
    let (mut heard, mut told) = (world.now(), world.now());
    loop {
        let now = world.now();
        match world
            .ask("query-migrate", json!({}))
            .map(|answer| progress(&answer))
        {
            Ok(Progress::Completed { downtime }) => return End::Completed { downtime },
            Ok(Progress::Over { status, why }) => {
                let why = format!("QEMU says {status} {why}");
                return End::Not { why };
            }
            Ok(Progress::On { status, left }) => {
                heard = now;
                if now.saturating_sub(told) >= TELL {
                    told = now;
                    world.tell(&match left {
                        Some(left) => format!("    {status}, {} MiB of memory left", left >> 20),
                        None => format!("    {status}"),
                    });
                }
            }
            Err(why) if now.saturating_sub(heard) > SILENCE => return End::Silent { why },
            Err(_) => {}
        }
        if world.interrupted() {
            let why = "interrupted".to_owned();
            return End::Not { why };
        }
        if now >= end {
            let why = format!("no end after {} s", plan.timeout.as_secs());
            return End::Not { why };
        }
        world.pause(ROUND);
    }
}

/// The guest goes on here, or it has moved all the same, or nobody knows.
fn stay(world: &mut impl World, plan: &Plan, why: &str) -> Outcome {
    world.tell(&format!("==> not moved: {why}"));
    // There may be nothing to cancel.
    let _ = world.ask("migrate_cancel", json!({}));
    let end = world.now().saturating_add(BACK);
    loop {
        let progress = world
            .ask("query-migrate", json!({}))
            .map(|answer| progress(&answer));
        let here = world.here();
        let runs = here.is("running", &OURS);
        match progress {
            Ok(Progress::Completed { downtime }) if here.guest.as_deref() != Some("running") => {
                world.tell("==> it had moved before it could be cancelled");
                return arrive(world, plan, downtime);
            }
            Ok(progress) if runs && progress.is_over() => break,
            // As long as the target may have all of the guest, the image must go to it.
            _ if world.now() >= end => return unclear_here(&here),
            _ => world.pause(ROUND),
        }
    }
    if let Err(why) = world.keep() {
        world.tell(&format!("==> {why}"));
    }
    let here = world.here();
    match here.is("running", &[OwnershipStatus::Held]) {
        true => Outcome::Stays {
            why: why.to_owned(),
        },
        false => unclear_here(&here),
    }
}

fn unclear_here(here: &Seen) -> Outcome {
    let (guest, ownership, trouble) = (here.guest(), here.ownership(), here.trouble());
    Outcome::Unclear {
        why: format!("here the guest is {guest}, its daemon's ownership is {ownership}{trouble}"),
    }
}

/// QEMU has sent all of the guest: the target is to run it, and to hold the image.
fn arrive(world: &mut impl World, plan: &Plan, downtime: Option<u64>) -> Outcome {
    world.tell("==> waiting for the target to hold the image");
    let mut end = world.now().saturating_add(ARRIVAL);
    loop {
        let there = world.there();
        if there.is("running", &OURS) {
            break;
        }
        // What the target's copy misses is sent, however long that takes.
        if world.here().ownership == Some(OwnershipStatus::Leaving) {
            end = world.now().saturating_add(ARRIVAL);
        }
        if world.now() >= end || world.interrupted() {
            let (guest, ownership, trouble) = (there.guest(), there.ownership(), there.trouble());
            let to = &plan.to;
            return Outcome::Unclear {
                why: format!(
                    "QEMU has sent the guest away, on {to} it is {guest}, and the daemon's ownership there is {ownership}{trouble}"
                ),
            };
        }
        world.pause(ROUND);
    }
    if !plan.keep {
        world.tell("==> ending the source's QEMU");
        if let Err(why) = world.ask("quit", json!({})) {
            world.tell(&format!("    {why}: end it by hand"));
        }
    }
    Outcome::Moved { downtime }
}

#[cfg(test)]
mod tests;
