//! A connection that is held, to be handed to another owner or to go on.

use super::*;
use crate::gluster::fake_peer::connect;
use crate::gluster::record;

/// A notice such as bricks send on their own, cut in two within its header.
fn halves_of_a_notice() -> (Vec<u8>, Vec<u8>) {
    let notice = [9u32, 0, 2, 52_743_234, 1, 5, 0, 0, 0, 0].map(u32::to_be_bytes);
    let mark = record::mark(notice.as_flattened().len()).unwrap();
    let record = [&mark[..], notice.as_flattened()].concat();
    let (half, rest) = record.split_at(34);
    (half.to_vec(), rest.to_vec())
}

#[test]
fn a_connection_at_rest_goes_on_with_another_owner_where_it_was() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let first = peer.receive().unwrap();
        // A notice of which a half is there already when it is to rest.
        let (half, rest) = halves_of_a_notice();
        peer.reply_and(first.xid, b"one.", &half);
        let ping = peer.receive().unwrap();
        assert_eq!((ping.xid, ping.procedure), (0, 3));
        for byte in rest {
            // Each is seen on its own: the reader must not rest before the last.
            peer.write(&[byte]);
            thread::sleep(Duration::from_millis(2));
        }
        peer.reply(ping.xid, b"");
        let next = peer.receive().unwrap();
        assert_eq!(next.xid, first.xid + 1);
        // Late, for the owner before.
        peer.reply(first.xid, b"old.");
        peer.reply(next.xid, b"two.");
        peer.drain();
    });
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"one.");
    let (socket, last_xid) = connection.hold(PATIENCE).unwrap();
    let next = Connection::adopt(socket, last_xid, "peer", &patient()).unwrap();
    assert_eq!(answer(ask(&next, b"")).unwrap().results(), b"two.");
}

#[test]
fn a_connection_that_waits_for_an_answer_or_is_silent_does_not_rest_and_goes_on() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let first = peer.receive().unwrap();
        let (ping, second) = (peer.receive().unwrap(), first.xid + 1);
        assert_eq!(ping.xid, second, "no ping while a call is under way");
        peer.reply(first.xid, b"one.");
        // Sent as one with half a notice: whoever has the answer knows that the reader is past
        // the only place where it could rest.
        let (half, rest) = halves_of_a_notice();
        peer.reply_and(second, b"two.", &half);
        let (ping, third) = (peer.receive().unwrap(), peer.receive().unwrap());
        assert_eq!(ping.xid, 0);
        peer.write(&rest);
        peer.reply(third.xid, b"tri.");
        peer.drain();
    });
    let first = ask(&connection, b"");
    assert!(matches!(connection.hold(PATIENCE), Err(HoldError::Busy)));
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"two.");
    assert_eq!(answer(first).unwrap().results(), b"one.");
    let soon = Duration::from_millis(20);
    assert!(matches!(connection.hold(soon), Err(HoldError::Busy)));
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"tri.");
}

#[test]
fn while_a_connection_rests_nothing_is_sent_and_afterwards_it_goes_on() {
    let timeouts = Timeouts {
        // Due at once for who waits for his turn meanwhile, if he sent pings.
        ping_interval: Duration::from_millis(1),
        ..patient()
    };
    let (connection, _peer) = connect(&timeouts, |mut peer| {
        let ping = peer.receive().unwrap();
        peer.reply(ping.xid, b"");
        let call = peer.receive().unwrap();
        assert_ne!(call.xid, ping.xid, "a ping at rest");
        peer.reply(call.xid, b"one.");
        peer.drain();
    });
    let held = connection.hold(PATIENCE).unwrap();
    let refused = connection.call(&ECHO, Weight::Counted, soon());
    assert!(matches!(refused, Err(CallError::TimedOut { .. })));
    connection.go_on();
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"one.");
    drop(held);
}
