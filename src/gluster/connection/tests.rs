use std::sync::mpsc;

use super::*;
use crate::gluster::fake_peer::{PATIENCE, Peer, connect, eventually};
use crate::gluster::record;
use crate::gluster::rpc::FILE_OPERATIONS;

const ECHO: Call<'_> = Call {
    program: FILE_OPERATIONS,
    procedure: 1,
    credentials: &Credentials::None,
    arguments: &[],
    payload: &[],
};

/// Nothing but a test's own doing ends a wait or a connection.
fn patient() -> Timeouts {
    Timeouts {
        connect: PATIENCE,
        call: PATIENCE,
        send: PATIENCE,
        ping_interval: PATIENCE,
        idle_interval: PATIENCE,
        ping_timeout: PATIENCE,
    }
}

fn hasty() -> Timeouts {
    Timeouts {
        ping_interval: Duration::from_millis(40),
        idle_interval: Duration::from_millis(40),
        // No multiple of it: who looks at each interval only would look late.
        ping_timeout: Duration::from_millis(60),
        ..patient()
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(20))
}

fn ask(connection: &Connection, arguments: &[u8]) -> PendingCall {
    let call = Call { arguments, ..ECHO };
    let deadline = Deadline::after(PATIENCE);
    connection.call(&call, Weight::Counted, deadline).unwrap()
}

fn answer(call: PendingCall) -> Answer {
    call.wait(Deadline::after(PATIENCE))
}

fn why(answer: Answer) -> Arc<Disconnect> {
    match answer {
        Err(CallError::Disconnected(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn replies_in_any_order_reach_their_calls() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let calls: Vec<_> = (0..3).map(|_| peer.receive().unwrap()).collect();
        for call in calls.iter().rev() {
            peer.reply(call.xid, &call.body);
        }
        peer.drain();
    });
    let calls = [b"one.", b"two.", b"tri."].map(|text| (text, ask(&connection, text)));
    for (text, call) in calls {
        assert_eq!(answer(call).unwrap().results(), text);
    }
}

#[test]
fn notices_between_replies_are_not_taken_for_replies() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let call = peer.receive().unwrap();
        peer.notice(call.xid); // the peer numbers its own calls as it likes
        peer.reply(call.xid + 1, b"nobody's");
        peer.reply(call.xid, b"mine");
        peer.drain();
    });
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"mine");
    assert!(connection.is_connected());
}

#[test]
fn a_payload_follows_the_arguments_in_the_same_record() {
    let (connection, peer) = connect(&patient(), |mut peer| peer.receive().unwrap().body);
    let payload = vec![7; 1 << 20];
    let call = Call {
        arguments: b"args",
        payload: &payload,
        ..ECHO
    };
    let deadline = Deadline::after(PATIENCE);
    connection.call(&call, Weight::Counted, deadline).unwrap();
    assert!(peer.join().unwrap() == [b"args", &payload[..]].concat());
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
fn a_time_out_leaves_the_connection_up() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let _unanswered = peer.receive().unwrap();
        let call = peer.receive().unwrap();
        peer.reply(call.xid, b"here");
        peer.drain();
    });
    let missed = ask(&connection, b"").wait(soon());
    assert!(matches!(missed, Err(CallError::TimedOut { .. })));
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"here");
}

#[test]
fn what_was_taken_too_late_is_given_back() {
    let (go, may_answer) = mpsc::channel();
    let (connection, peer) = connect(&patient(), move |mut peer| {
        let taken = peer.receive().unwrap();
        let refused = peer.receive().unwrap();
        may_answer.recv().unwrap();
        peer.reply(refused.xid, b"no..");
        peer.reply(taken.xid, b"yes.");
        let undo = peer.receive().unwrap();
        (undo.procedure, undo.body)
    });
    for arguments in [b"take", b"miss"] {
        let undo = Undo {
            took: |results| results == b"yes.",
            program: FILE_OPERATIONS,
            procedure: 2,
            credentials: Credentials::None,
            arguments: arguments.to_vec(),
        };
        let missed = ask(&connection, arguments).wait_or_undo(soon(), || false, undo);
        assert!(matches!(missed, Err(CallError::TimedOut { .. })));
    }
    go.send(()).unwrap();
    assert_eq!(peer.join().unwrap(), (2, b"take".to_vec()));
}

#[test]
fn counted_calls_wait_for_their_turn_and_locks_pass_them() {
    let (go, may_answer) = mpsc::channel();
    let (connection, _peer) = connect(&patient(), move |mut peer| {
        let calls: Vec<_> = (0..=MAX_COUNTED_CALLS)
            .map(|_| peer.receive().unwrap())
            .collect();
        may_answer.recv().unwrap();
        for call in calls {
            peer.reply(call.xid, &[]);
        }
        peer.drain();
    });
    let calls: Vec<_> = (0..MAX_COUNTED_CALLS)
        .map(|_| ask(&connection, b""))
        .collect();
    let over = connection.call(&ECHO, Weight::Counted, soon());
    assert!(matches!(over, Err(CallError::TimedOut { .. })));
    let lock = connection.call(&ECHO, Weight::Uncounted, soon()).unwrap();
    go.send(()).unwrap();
    answer(lock).unwrap();
    let next = ask(&connection, b"");
    for call in calls {
        answer(call).unwrap();
    }
    drop(next);
}

#[test]
fn a_call_over_the_limit_is_refused_and_takes_no_room() {
    let (connection, _peer) = connect(&patient(), |mut peer| peer.drain());
    let payload = vec![0; record::MAX_RECORD];
    let call = Call {
        payload: &payload,
        ..ECHO
    };
    for _ in 0..=MAX_COUNTED_CALLS {
        let refused = connection.call(&call, Weight::Counted, soon());
        assert!(matches!(refused, Err(CallError::TooLong)));
    }
    assert!(connection.is_connected());
}

#[test]
fn calls_sent_together_arrive_whole_and_in_order() {
    let (connection, peer) = connect(&patient(), |mut peer| {
        let calls: Vec<_> = (0..MAX_BATCH).map(|_| peer.receive().unwrap()).collect();
        for call in &calls {
            peer.reply(call.xid, &call.body);
        }
        calls.into_iter().map(|call| call.body).collect::<Vec<_>>()
    });
    let payloads: Vec<_> = (0..MAX_BATCH as u8).map(|i| vec![i; 4096]).collect();
    let call = |payload| Call { payload, ..ECHO };
    let calls: Vec<_> = payloads.iter().map(|payload| call(payload)).collect();
    let deadline = Deadline::after(PATIENCE);
    let sent = connection.call_all(&calls, Weight::Counted, deadline);
    for (call, payload) in sent.unwrap().into_iter().zip(&payloads) {
        assert!(answer(call).unwrap().results() == payload);
    }
    assert!(peer.join().unwrap() == payloads);
}

#[test]
fn calls_sent_together_are_sent_all_or_none() {
    let (connection, peer) = connect(&patient(), |mut peer| {
        let alone = peer.receive().unwrap();
        peer.reply(alone.xid, b"here");
    });
    let payload = vec![0; record::MAX_RECORD];
    let mut calls = vec![ECHO; MAX_BATCH + 1];
    let send = |calls: &[_]| connection.call_all(calls, Weight::Counted, soon());
    assert!(matches!(send(&calls), Err(CallError::TooLong)));
    calls.truncate(MAX_BATCH);
    calls[MAX_BATCH - 1].payload = &payload;
    for _ in 0..=MAX_COUNTED_CALLS / MAX_BATCH {
        assert!(matches!(send(&calls), Err(CallError::TooLong)));
    }
    answer(ask(&connection, b"")).unwrap();
    peer.join().unwrap();
}

#[test]
fn a_caller_who_gives_up_waits_no_longer() {
    let (connection, _peer) = connect(&patient(), |mut peer| peer.drain());
    let undo = Undo {
        took: |_| true,
        program: FILE_OPERATIONS,
        procedure: 2,
        credentials: Credentials::None,
        arguments: Vec::new(),
    };
    let (begun, deadline) = (Instant::now(), Deadline::after(PATIENCE));
    let missed = ask(&connection, b"").wait_or_undo(deadline, || true, undo);
    assert!(matches!(missed, Err(CallError::TimedOut { .. })));
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn an_unreachable_peer_is_an_error_in_time() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let refused = Connection::connect("127.0.0.1", port, &patient(), true);
    assert!(matches!(refused, Err(ConnectError::Connect(_))));
    let nameless = Connection::connect("no\0name", 1, &patient(), true);
    assert!(matches!(nameless, Err(ConnectError::Resolve(_))));
}

/// A notice such as bricks send on their own, cut in two within its header.
fn halves_of_a_notice() -> (Vec<u8>, Vec<u8>) {
    let notice = [9u32, 0, 2, 52_743_234, 1, 10, 0, 0, 0, 0].map(u32::to_be_bytes);
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
