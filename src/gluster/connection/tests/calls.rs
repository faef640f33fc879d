//! Calls and their answers: order, limits, time-outs, and what is sent together.

use std::sync::mpsc;

use super::*;
use crate::gluster::fake_peer::connect;
use crate::gluster::notice::Notice;
use crate::gluster::record;
use crate::gluster::xdr::Encoder;

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

/// A brick's word that somebody wants the lock of this domain, or that but for its end.
fn contention(domain: &[u8], cut: usize) -> Vec<u8> {
    let mut call = Encoder::new();
    for word in [5, 0, 2, 52_743_234, 1, 10, 0, 0, 0, 0] {
        call.u32(word);
    }
    call.fixed(&[7; 16]).u32(1).u32(0).u64(0).u64(0).u32(9);
    call.opaque(b"owner").u32(9).opaque(domain).opaque(&[]);
    let mut bytes = call.into_bytes();
    bytes.truncate(bytes.len() - cut);
    bytes
}

#[test]
fn contention_is_heard_between_replies_and_garbage_of_that_name_ends_the_connection() {
    let (connection, _peer) = connect(&patient(), |mut peer| {
        let call = peer.receive().unwrap();
        peer.send(&contention(b"domain", 0));
        peer.reply(call.xid, b"mine");
        peer.receive().unwrap();
        peer.send(&contention(b"domain", 8));
        peer.drain();
    });
    let (told, heard) = mpsc::channel();
    connection.on_notice(move |notice| {
        let Notice::Contention(contention) = notice else {
            panic!("{notice:?}");
        };
        told.send(contention.domain.clone()).unwrap();
    });
    assert_eq!(answer(ask(&connection, b"")).unwrap().results(), b"mine");
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["domain"]);
    let ended = answer(ask(&connection, b"")).unwrap_err();
    let CallError::Disconnected(why) = ended else {
        panic!("{ended:?}");
    };
    assert!(matches!(*why, Disconnect::Header(_)), "{why:?}");
}
