//! Migrations among hosts that are played.

use std::collections::VecDeque;

use super::*;

/// QEMU's answers to `query-migrate` one after the other, the last one for ever, and how
/// the hosts are then.
struct Played {
    begins: bool,
    answers: VecDeque<Result<Value, &'static str>>,
    /// When the migration was cancelled: its status then.
    cancelled: &'static str,
    /// The guest here once QEMU calls the migration completed.
    left: bool,
    arrives: bool,
    /// For so long what the copy misses is sent after that.
    leaving: Duration,
    interrupt_at: Option<Duration>,
    asked: Vec<String>,
    told: Vec<String>,
    ownership: OwnershipStatus,
    guest: &'static str,
    target: (&'static str, OwnershipStatus),
    now: Duration,
    completed_at: Option<Duration>,
}

fn on(status: &str) -> Result<Value, &'static str> {
    Ok(json!({ "status": status, "ram": { "remaining": 5 << 20 } }))
}

fn completed() -> Result<Value, &'static str> {
    Ok(json!({ "status": "completed", "downtime": 42, "ram": {} }))
}

/// As QEMU says it before it has begun to send.
fn setup() -> Result<Value, &'static str> {
    Ok(json!({ "status": "setup" }))
}

fn played(answers: Vec<Result<Value, &'static str>>) -> Played {
    Played {
        begins: true,
        answers: answers.into(),
        cancelled: "cancelled",
        left: true,
        arrives: true,
        leaving: Duration::ZERO,
        interrupt_at: None,
        asked: Vec::new(),
        told: Vec::new(),
        ownership: OwnershipStatus::Held,
        guest: "running",
        target: ("inmigrate", OwnershipStatus::Vacant),
        now: Duration::ZERO,
        completed_at: None,
    }
}

fn plan() -> Plan {
    Plan {
        image: "vms/vm1.img".to_owned(),
        to: "gfs2".to_owned(),
        uri: "tcp:gfs2:4444".to_owned(),
        memory_downtime: 300,
        timeout: Duration::from_secs(600),
        keep: false,
    }
}

fn seen(guest: &str, ownership: OwnershipStatus) -> Seen {
    Seen {
        guest: Some(guest.to_owned()),
        ownership: Some(ownership),
        trouble: None,
    }
}

impl Played {
    fn run(&mut self) -> Outcome {
        migrate(self, &plan()).unwrap()
    }

    fn has_asked(&self, command: &str) -> bool {
        self.asked.iter().any(|asked| asked == command)
    }

    fn complete(&mut self) {
        if self.completed_at.is_none() {
            self.completed_at = Some(self.now);
            if self.left {
                self.guest = "postmigrate";
            }
        }
        let sent = self
            .completed_at
            .is_some_and(|at| self.now >= at + self.leaving);
        self.ownership = match sent {
            true => OwnershipStatus::Vacant,
            false => OwnershipStatus::Leaving,
        };
        if sent && self.arrives {
            self.target = ("running", OwnershipStatus::Held);
        }
    }
}

impl World for Played {
    fn here(&mut self) -> Seen {
        if self.completed_at.is_some() {
            self.complete();
        }
        seen(self.guest, self.ownership)
    }

    fn there(&mut self) -> Seen {
        if self.completed_at.is_some() {
            self.complete();
        }
        seen(self.target.0, self.target.1)
    }

    fn ask(&mut self, command: &str, _arguments: Value) -> Result<Value, String> {
        self.asked.push(command.to_owned());
        match command {
            "query-migrate" => {
                let answer = match self.answers.len() {
                    1 => self.answers.front().cloned(),
                    _ => self.answers.pop_front(),
                };
                let answer = answer.unwrap_or(on("active"));
                if answer
                    .as_ref()
                    .is_ok_and(|answer| answer["status"] == "completed")
                {
                    self.complete();
                }
                answer.map_err(str::to_owned)
            }
            "migrate_cancel" if self.completed_at.is_none() && !self.cancelled.is_empty() => {
                self.answers = [on(self.cancelled)].into();
                if self.cancelled == "completed" {
                    self.answers = [completed()].into();
                }
                Ok(json!({}))
            }
            "migrate" if !self.begins => Err("migrate: no".to_owned()),
            _ => Ok(json!({})),
        }
    }

    fn hand_over(&mut self) -> Result<(), Failure> {
        self.ownership = OwnershipStatus::Armed;
        Ok(())
    }

    fn keep(&mut self) -> Result<(), String> {
        self.asked.push("keep".to_owned());
        self.ownership = OwnershipStatus::Held;
        Ok(())
    }

    fn tell(&mut self, line: &str) {
        self.told.push(line.to_owned());
    }

    fn pause(&mut self, time: Duration) {
        self.now += time;
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn interrupted(&self) -> bool {
        self.interrupt_at.is_some_and(|at| self.now >= at)
    }
}

const MOVED: Outcome = Outcome::Moved { downtime: Some(42) };

#[test]
fn a_qemu_that_is_still_in_setup_is_waited_for_however_long_that_takes() {
    let mut answers = vec![setup(); 100];
    answers.extend([on("active"), on("device"), completed()]);
    let mut world = played(answers);
    assert_eq!(world.run(), MOVED);
    assert!(world.told.contains(&"    setup".to_owned()));
    assert!(!world.has_asked("migrate_cancel"));
    assert_eq!(world.asked.last().unwrap(), "quit");
}

#[test]
fn a_status_that_is_not_known_here_is_none_to_give_up_for() {
    for status in [
        "wait-unplug",
        "pre-switchover",
        "postcopy-active",
        "tomorrow's",
    ] {
        assert_eq!(played(vec![on(status), completed()]).run(), MOVED);
    }
}

#[test]
fn a_migration_that_fails_or_does_not_begin_leaves_the_guest_here() {
    let failed = json!({ "status": "failed", "error-desc": "no route" });
    let mut world = played(vec![setup(), Ok(failed)]);
    let why = "QEMU says failed no route".to_owned();
    assert_eq!(world.run(), Outcome::Stays { why });
    assert!(world.has_asked("keep") && !world.has_asked("quit"));
    let mut world = played(vec![Ok(json!({}))]);
    (world.begins, world.cancelled) = (false, "");
    let why = "migrate: no".to_owned();
    assert_eq!(world.run(), Outcome::Stays { why });
}

#[test]
fn one_that_takes_too_long_or_is_interrupted_is_cancelled() {
    let mut world = played(vec![on("active")]);
    let why = "no end after 600 s".to_owned();
    assert_eq!(world.run(), Outcome::Stays { why });
    let mut world = played(vec![setup()]);
    world.interrupt_at = Some(Duration::from_secs(3));
    let why = "interrupted".to_owned();
    assert_eq!(world.run(), Outcome::Stays { why });
    assert!(world.has_asked("migrate_cancel"));
}

/// The image is not taken back from under a guest that has gone.
#[test]
fn one_that_completes_while_it_is_cancelled_has_moved() {
    let mut world = played(vec![on("active")]);
    (world.interrupt_at, world.cancelled) = (Some(Duration::from_secs(3)), "completed");
    assert_eq!(world.run(), MOVED);
    assert!(!world.has_asked("keep"));
}

#[test]
fn while_it_is_not_known_to_be_cancelled_the_image_is_not_taken_back() {
    let mut world = played(vec![on("active")]);
    (world.interrupt_at, world.cancelled) = (Some(Duration::ZERO), "cancelling");
    assert!(matches!(world.run(), Outcome::Unclear { .. }));
    assert!(!world.has_asked("keep") && !world.has_asked("quit"));
}

#[test]
fn a_qemu_that_does_not_answer_for_a_while_is_asked_again() {
    let mut answers = vec![setup()];
    answers.extend(vec![Err("silent"); 200]);
    answers.push(completed());
    assert_eq!(played(answers).run(), MOVED);
    let mut world = played(vec![setup(), Err("silent")]);
    let why = "silent".to_owned();
    assert_eq!(world.run(), Outcome::Unclear { why });
    assert!(!world.has_asked("keep") && !world.has_asked("quit"));
}

#[test]
fn the_source_may_send_the_rest_for_long_but_then_the_target_must_hold_the_image() {
    let mut world = played(vec![completed()]);
    world.leaving = Duration::from_secs(500);
    assert_eq!(world.run(), MOVED);
    let mut world = played(vec![completed()]);
    world.arrives = false;
    let outcome = world.run();
    assert!(matches!(&outcome, Outcome::Unclear { why } if why.contains("inmigrate")));
    assert!(outcome.verdict(&plan()).contains("Held by nobody"));
    assert!(!world.has_asked("quit"), "it may have the only guest");
}

#[test]
fn nothing_is_done_unless_both_hosts_are_as_they_must_be() {
    type Spoil = (fn(&mut Played), &'static str);
    let spoil: [Spoil; 4] = [
        (
            |world| world.ownership = OwnershipStatus::Vacant,
            "ownership: vacant",
        ),
        (|world| world.guest = "paused", "it is paused"),
        (
            |world| world.target.1 = OwnershipStatus::Held,
            "on gfs2 waits",
        ),
        (
            |world| world.target.0 = "running",
            "does not wait for a guest",
        ),
    ];
    for (spoil, said) in spoil {
        let mut world = played(vec![completed()]);
        spoil(&mut world);
        let why = migrate(&mut world, &plan()).unwrap_err();
        assert!(
            matches!(&why, Failure::Usage(text) if text.contains(said)),
            "{why}"
        );
        assert_eq!(why.code(), 2);
        assert!(world.asked.is_empty());
    }
}
