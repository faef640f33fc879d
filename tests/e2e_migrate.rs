//! Live migration of real guests between two hosts of a cluster, their disk being two
//! copies of one image. The guest writes and verifies throughout; a witness looks who
//! may write all the time. Several migrations of one guest make one test: clusters and
//! guests take long to come up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bypass_harness::wait_until;
use support::PATIENCE;
use support::migration::Move;

/// Guests are slow here: translated, two cores.
const GUEST_PATIENCE: Duration = Duration::from_secs(120);

/// Keeps what is read in the guest's page cache: it goes when nobody has the disk open.
const KEEP: &str = "exec 9</dev/vda; until [ -e /run/end ]; do sleep 1; done";
/// Reads into it what nobody writes to.
const READ: &str = "dd if=/dev/vda of=/dev/null bs=1M skip=32 count=24 2>&1";
/// Is what was read then what the disk has?
const COMPARE: &str = "
sum() { dd if=/dev/vda bs=1M skip=32 count=24 2>/dev/null | md5sum; }
before=$(sum)
echo 1 >/proc/sys/vm/drop_caches
after=$(sum)
[ \"$before\" = \"$after\" ] || { echo \"in memory $before, on the disk $after\"; exit 1; }";

#[test]
fn a_guest_moves_while_it_writes_and_only_the_target_can_write_from_then_on() {
    let mut to = Move::prepare(&[]);
    to.here.start(KEEP).unwrap();
    // A process that took over knows the guest as the one before did.
    to.source.upgrade();
    to.hand_over();
    to.begin_and_send_all();
    // What the device writes to pages that were sent already must be sent again.
    to.here.run(READ, GUEST_PATIENCE).unwrap();
    to.go_on();
    to.here.wait_migration("completed").unwrap();
    to.arrived();
    to.guest_there().run(COMPARE, GUEST_PATIENCE).unwrap();

    // The target's daemon is replaced, and dies: its guest goes on with the next one.
    to.target.upgrade();
    to.assert_holder(&to.target);
    to.target.again();
    to.target.wait_custody("held");
    to.assert_holder(&to.target);
    to.end_load(true);

    // The target's guest is lost. Even when nobody has the image any more and all copies
    // are equal, the source's QEMU does not get it: its guest remembers an older disk.
    to.there = None;
    to.target.wait_state("clean");
    to.target.crash();
    let resume = to.here.qmp().execute("cont", serde_json::json!({}));
    resume.unwrap();
    let (code, log) = to.source.ended();
    assert_eq!(code, Some(60), "{log}");
    assert!(log.contains("was written to by another host"), "{log}");
    to.end();
}

#[test]
fn whatever_fails_before_the_switch_over_the_guest_goes_on_at_the_source() {
    let mut to = Move::prepare(&[]);
    // Cancelled, by the script, which gives up soon.
    to.slow_down();
    let (code, said) = to.script(&["--timeout", "2"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("the guest goes on here"), "{said}");
    to.source.wait_custody("held");
    to.assert_holder(&to.source);

    // Its QEMU at the target dies, and with it the connection.
    to.new_target();
    to.hand_over();
    to.begin();
    to.there = None;
    to.here.wait_migration("failed").unwrap();
    assert_eq!(to.source.custody(), "armed");
    assert_eq!(to.handover(&["--cancel"]).0, Some(0));

    // The hosts lose each other while the source is armed: nothing moves on.
    to.new_target();
    to.hand_over();
    to.begin();
    to.cluster.part(0, 1).unwrap();
    to.go_on();
    to.cancel();
    // So it is refused to begin again.
    wait_target(&to, false);
    let (code, said) = to.handover(&[]);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("is away"), "{said}");
    to.cluster.rejoin(0, 1).unwrap();
    wait_target(&to, true);

    // They lose each other when the image has been given away already.
    to.new_target();
    to.hand_over_in_the_end();
    to.go_to_the_brink();
    to.source.wait_custody("vacant");
    to.cluster.part(0, 1).unwrap();
    to.cancel();
    to.assert_holder(&to.source);
    to.cluster.rejoin(0, 1).unwrap();
    wait_target(&to, true);

    // The target's daemon dies while it migrates, and comes back.
    to.new_target();
    to.hand_over_in_the_end();
    to.begin();
    to.target.again();
    to.cancel();

    // The third copy is away: it moves, by the script.
    to.new_target();
    to.volume.kill_brick(2).unwrap();
    to.speed_up();
    let (code, said) = to.script(&[]);
    assert_eq!(code, Some(0), "{said}");
    to.volume.start_force().unwrap();
    to.arrived();
    to.end_load(true);
    to.there.take().unwrap().power_off().unwrap();
    to.end();
}

/// QEMU before 9.1 connects to the daemon that was started again, and says nothing: its rings
/// have not started yet. With a later one the guest arrives.
#[test]
fn a_guest_sent_to_a_qemu_that_lost_its_daemon_before_arrives_or_has_its_disk_at_the_source_again()
{
    let mut to = Move::prepare(&[]);
    to.hand_over();
    to.begin_and_send_all();
    to.target.again();
    to.go_on();
    to.here.wait_migration("completed").unwrap();
    to.source.wait_custody("vacant");
    if !arrives(&to) {
        // Nobody has the image, and nobody wrote to it since.
        to.there = None;
        to.here.resume().unwrap();
        to.source.wait_custody("held");
        to.assert_holder(&to.source);

        // With a QEMU of its own the new daemon gets the guest.
        to.new_target();
        to.hand_over();
        to.begin();
        to.go_on();
        to.here.wait_migration("completed").unwrap();
    }
    to.arrived();
    to.end_load(true);
    to.there.take().unwrap().power_off().unwrap();
    to.end();
}

/// Does the target's QEMU ask for the image that the source has given away, or say nothing?
fn arrives(to: &Move) -> bool {
    wait_until("a word of the target's QEMU, or none", PATIENCE, || {
        let silent = to.target.log().contains("sent no message within");
        match (to.target.custody().as_str(), silent) {
            ("held", _) => Ok(true),
            ("vacant", true) => Ok(false),
            (custody, _) => Err(format!("{custody}: {}", to.target.log())),
        }
    })
    .unwrap()
}

#[test]
fn a_source_killed_while_it_sends_the_rest_is_started_again_and_the_guest_goes_on() {
    let mut to = Move::prepare(&["--bandwidth", "512K"]);
    to.go_and_leave_something();
    to.target.wait_custody("opening");
    to.source.crash();
    // Its copy is marked: nobody serves it, and the guest waits for its disk.
    let (code, log) = to.target.ended();
    assert_eq!(code, Some(42), "{log}");

    to.send_at_full_speed();
    to.source.again();
    // For all that is known here, a guest may be about to come back, or be idle: QEMU from 9.1
    // on starts the rings of one that has gone.
    let (code, said) = to.handover(&[]);
    let armed = code == Some(0) && said.contains("no guest has asked for anything");
    assert!(code == Some(74) || armed, "{code:?}: {said}");
    let (code, said) = to.handover(&["--no-guest"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("given away"), "{said}");
    to.source.wait_custody("vacant");
    to.target.again();
    to.arrived();
    to.end_load(true);
    to.there.take().unwrap().power_off().unwrap();
    to.end();
}

#[test]
fn hosts_that_lose_each_other_while_the_rest_is_sent_give_the_image_to_nobody_until_they_meet() {
    let mut to = Move::prepare(&["--bandwidth", "512K"]);
    to.go_and_leave_something();
    to.cluster.part(0, 1).unwrap();
    wait_target(&to, false);
    // All others are equal before long: the target's copy is the one that counts.
    to.send_at_full_speed();
    wait_until("the third copy to be healed", PATIENCE, || {
        let status = to.source.status();
        let behind = &status["copies"][2]["behind"]["bytes"];
        (behind == 0)
            .then_some(())
            .ok_or_else(|| status.to_string())
    })
    .unwrap();
    assert_eq!(to.source.custody(), "leaving");
    assert_eq!(to.target.custody(), "opening");
    to.cluster.rejoin(0, 1).unwrap();
    to.source.wait_custody("vacant");
    to.arrived();
    to.end_load(true);
    to.there.take().unwrap().power_off().unwrap();
    to.end();
}

/// Until the source knows that the target's copy is away, or has it again.
fn wait_target(to: &Move, reached: bool) {
    let what = format!("the target's copy to be reached: {reached}");
    wait_until(what, PATIENCE, || {
        let status = to.source.status();
        let known = status["copies"][1]["reachable"] == reached;
        known.then_some(()).ok_or_else(|| status.to_string())
    })
    .unwrap();
}
