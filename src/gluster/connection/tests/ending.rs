//! How a connection ends, or never begins: closed, broken, silent, stuck, senseless; and who hears of it.

use std::sync::mpsc;

use super::*;
use crate::gluster::fake_peer::{Peer, connect, eventually};

fn hasty() -> Timeouts {
    Timeouts {
        ping_interval: Duration::from_millis(40),
        idle_interval: Duration::from_millis(40),
        // No multiple of it: who looks at each interval only would look late.
        ping_timeout: Duration::from_millis(60),
        ..patient()
    }
}

fn why(answer: Answer) -> Arc<Disconnect> {
    match answer {
        Err(CallError::Disconnected(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn closing_fails_waiting_calls_at_once() {
    let (connection, _peer) = connect(&patient(), |mut peer| peer.drain());
    let call = ask(&connection, b"");
    connection.close();
    assert!(matches!(*why(answer(call)), Disconnect::Closed));
    assert!(!connection.is_connected());
    let refused = connection.call(&ECHO, Weight::Counted, soon());
    assert!(matches!(refused, Err(CallError::Disconnected(_))));
}

#[test]
fn a_peer_that_closes_is_told_to_callers_and_listeners() {
    let (connection, _peer) = connect(&patient(), |mut peer| drop(peer.receive()));
    let (told, reason) = mpsc::channel();
    connection.on_disconnect(move |reason| told.send(Arc::clone(reason)).unwrap());
    assert!(matches!(
        *why(answer(ask(&connection, b""))),
        Disconnect::ClosedByPeer
    ));
    let reason = reason.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(*reason, Disconnect::ClosedByPeer));
    let (late, heard) = mpsc::channel();
    connection.on_disconnect(move |_| late.send(()).unwrap());
    heard.try_recv().unwrap();
}

#[test]
fn the_last_handle_ends_connection_and_thread() {
    let (connection, peer) = connect(&patient(), |mut peer| peer.drain());
    let link = Arc::downgrade(connection.link());
    let other = connection.clone();
    let call = ask(&connection, b"");
    drop(connection);
    assert!(other.is_connected());
    drop(other);
    peer.join().unwrap();
    assert!(matches!(*why(answer(call)), Disconnect::Closed));
    eventually("the reader thread ends", || link.strong_count() == 0);
}

#[test]
fn a_silent_peer_is_given_up_although_nobody_calls() {
    let (connection, _peer) = connect(&hasty(), |mut peer| {
        let ping = peer.receive().unwrap();
        assert_eq!((ping.program, ping.procedure), (14_398_633, 3));
        peer.drain();
    });
    let (told, reason) = mpsc::channel();
    connection.on_disconnect(move |reason| told.send(Arc::clone(reason)).unwrap());
    let reason = reason.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(*reason, Disconnect::Silent { .. }), "{reason:?}");
}

/// An idle connection would not notice for as long as a test may take.
fn hasty_with_callers() -> Timeouts {
    Timeouts {
        idle_interval: PATIENCE,
        ..hasty()
    }
}

#[test]
fn a_silent_peer_that_owes_an_answer_is_given_up_by_who_waits_for_it() {
    let (connection, _peer) = connect(&hasty_with_callers(), |mut peer| peer.drain());
    let reason = why(answer(ask(&connection, b"")));
    assert!(matches!(*reason, Disconnect::Silent { .. }), "{reason:?}");
    assert!(!connection.is_connected());
}

#[test]
fn a_silent_peer_is_given_up_by_who_waits_for_his_turn() {
    let (connection, _peer) = connect(&hasty_with_callers(), |mut peer| peer.drain());
    let calls: Vec<_> = (0..MAX_COUNTED_CALLS)
        .map(|_| ask(&connection, b""))
        .collect();
    let over = connection.call(&ECHO, Weight::Counted, Deadline::after(PATIENCE));
    let reason = match over {
        Err(CallError::Disconnected(reason)) => reason,
        other => panic!("{:?}", other.err()),
    };
    assert!(matches!(*reason, Disconnect::Silent { .. }), "{reason:?}");
    drop(calls);
}

#[test]
fn a_peer_that_answers_pings_may_take_its_time_with_calls() {
    let timeouts = Timeouts {
        ping_timeout: PATIENCE,
        ..hasty()
    };
    let (connection, _peer) = connect(&timeouts, |mut peer| {
        let call = peer.receive().unwrap();
        for _ in 0..6 {
            let ping = peer.receive().unwrap();
            peer.reply(ping.xid, &[0; 12]);
        }
        peer.reply(call.xid, b"at last.");
        peer.drain();
    });
    let reply = answer(ask(&connection, b"")).unwrap();
    assert_eq!(reply.results(), b"at last.");
}

#[test]
fn a_peer_that_reads_nothing_blocks_nobody_for_ever() {
    let timeouts = Timeouts {
        send: Duration::from_millis(50),
        ..patient()
    };
    let (stop, stopped) = mpsc::channel::<()>();
    let (connection, _peer) = connect(&timeouts, move |peer: Peer| {
        let _ = stopped.recv();
        drop(peer);
    });
    let payload = vec![0; 1 << 20];
    let call = Call {
        payload: &payload,
        ..ECHO
    };
    let send_until_stuck = || {
        loop {
            if let Err(error) = connection.call(&call, Weight::Counted, Deadline::after(PATIENCE)) {
                return why(Err(error));
            }
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(send_until_stuck);
        assert!(matches!(*send_until_stuck(), Disconnect::SendStuck { .. }));
        assert!(matches!(
            *other.join().unwrap(),
            Disconnect::SendStuck { .. }
        ));
    });
    drop(stop);
}

#[test]
fn an_oversized_record_ends_the_connection() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        use std::io::Write;
        peer.receive().unwrap();
        peer.0.write_all(&[0xff; 4]).unwrap();
        peer.drain();
    });
    let reason = why(answer(ask(&connection, b"")));
    assert!(matches!(*reason, Disconnect::Record(_)), "{reason:?}");
}

#[test]
fn a_record_that_is_no_message_ends_the_connection() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        peer.receive().unwrap();
        peer.send(&[0xff; 8]);
        peer.drain();
    });
    let reason = why(answer(ask(&connection, b"")));
    assert!(matches!(*reason, Disconnect::Header(_)), "{reason:?}");
}

#[test]
fn an_unreachable_peer_is_an_error_in_time() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let refused = Connection::connect("127.0.0.1", port, &patient(), true, None);
    assert!(matches!(refused, Err(ConnectError::Connect(_))));
    let nameless = Connection::connect("no\0name", 1, &patient(), true, None);
    assert!(matches!(nameless, Err(ConnectError::Resolve(_))));
}
