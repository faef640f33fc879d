//! Connections with TLS, to a peer that speaks it as a brick does: it wants a certificate, too.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

use super::*;
use crate::gluster::fake_peer::{Peer, accept, eventually, listen};
use crate::gluster::tls::PeerFault;
use crate::gluster::tls::tests::{data, files};

/// A peer that shows *peer*, and believes whom *ca* signed.
fn config(version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut believed = RootCertStore::empty();
    let certificate = |name| CertificateDer::from_pem_file(data(name)).unwrap();
    believed.add(certificate("ca.pem")).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(believed.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_file(data("peer.key")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate("peer.pem")], key);
    Arc::new(config.unwrap())
}

/// Runs `script` for such a peer.
fn brick<T: Send + 'static>(
    version: &'static SupportedProtocolVersion,
    script: impl FnOnce(Peer) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let config = config(version);
    accept(move |stream: TcpStream| {
        let tls = ServerConnection::new(config).unwrap();
        script(Peer(Box::new(StreamOwned::new(tls, stream))))
    })
}

fn connect(port: u16, files: &TlsFiles) -> Result<Connection, ConnectError> {
    Connection::connect("127.0.0.1", port, &patient(), true, Some(files))
}

#[test]
fn calls_are_answered_in_both_versions_however_long_they_are() {
    for version in [&TLS12, &TLS13] {
        let (port, _peer) = brick(version, |mut peer| {
            while let Some(call) = peer.receive() {
                peer.reply(call.xid, &call.body);
            }
        });
        let connection = connect(port, &files("signed", "peer")).unwrap();
        let calls: Vec<_> = [0, 4, 1 << 20, 12]
            .into_iter()
            .map(|len| (vec![7; len], vec![7; len]))
            .map(|(text, same)| (same, ask(&connection, &text)))
            .collect();
        for (text, call) in calls {
            assert!(answer(call).unwrap().results() == text);
        }
        let threads: Vec<_> = (0..4u8)
            .map(|of| {
                let connection = connection.clone();
                thread::spawn(move || {
                    for round in 0..20 {
                        let text = [of, round, 0, 0].repeat(10_000);
                        let call = ask(&connection, &text);
                        assert!(answer(call).unwrap().results() == text);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|one| one.join().unwrap());
    }
}

/// The plain bytes of the next TLS record.
fn next_plain(tls: &mut ServerConnection, mut stream: &TcpStream) -> Vec<u8> {
    while tls.wants_write() {
        tls.write_tls(&mut stream).unwrap();
    }
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).unwrap();
    let length = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(length), 0);
    stream.read_exact(&mut record[5..]).unwrap();
    let mut unread = &record[..];
    while !unread.is_empty() {
        tls.read_tls(&mut unread).unwrap();
    }
    let decrypted = tls.process_new_packets().unwrap();
    let mut plain = vec![0; decrypted.plaintext_bytes_to_read()];
    tls.reader().read_exact(&mut plain).unwrap();
    plain
}

#[test]
fn calls_that_are_sent_together_come_in_records_of_tls_of_their_own() {
    let config = config(&TLS13);
    let (port, peer) = accept(move |stream| {
        let mut tls = ServerConnection::new(config).unwrap();
        let records = std::iter::repeat_with(|| next_plain(&mut tls, &stream));
        let calls = records.filter(|plain| !plain.is_empty()).take(3);
        let lengths = calls.map(|call| (call.len(), call[..4].try_into().unwrap()));
        lengths.collect::<Vec<(usize, [u8; 4])>>()
    });
    let connection = connect(port, &files("signed", "peer")).unwrap();
    let deadline = Deadline::after(PATIENCE);
    let sent = connection.call_all(&[ECHO, ECHO, ECHO], Weight::Counted, deadline);
    assert_eq!(sent.unwrap().len(), 3);
    for (length, mark) in peer.join().unwrap() {
        // The highest bit says that it is the record's last fragment.
        assert_eq!(length - 4, u32::from_be_bytes(mark) as usize & 0x7fff_ffff);
    }
}

#[test]
fn a_host_that_is_not_accepted_is_told_so() {
    for version in [&TLS12, &TLS13] {
        let (port, _peer) = brick(version, |mut peer| peer.drain());
        // In TLS 1.3 the refusal comes when this side's handshake is over.
        let why = match connect(port, &files("host", "peer")) {
            Err(ConnectError::Tls(why)) => why.to_string(),
            Err(other) => panic!("{other}"),
            Ok(connection) => {
                let deadline = Deadline::after(PATIENCE);
                let sent = connection.call(&ECHO, Weight::Counted, deadline);
                match sent.and_then(answer).unwrap_err() {
                    CallError::Disconnected(why) => match &*why {
                        Disconnect::Tls(why) => why.to_string(),
                        other => panic!("{other}"),
                    },
                    other => panic!("{other}"),
                }
            }
        };
        assert!(why.contains("does not accept"), "{why}");
        assert!(why.contains("host.pem"), "{why}");
    }
}

#[test]
fn a_peer_that_is_not_believed_is_not_talked_to() {
    let (port, peer) = brick(&TLS13, |mut peer| peer.receive().is_none());
    match connect(port, &files("signed", "host")) {
        Err(ConnectError::Tls(why)) => {
            let TlsError::Peer { name, fault } = *why else {
                panic!("{why}");
            };
            assert_eq!(name, "peer");
            assert!(matches!(fault, PeerFault::Unknown { .. }));
        }
        other => panic!("{:?}", other.err()),
    }
    assert!(peer.join().unwrap(), "nothing was said");
}

fn assert_not_spoken(connected: Result<Connection, ConnectError>) {
    match connected.err() {
        Some(ConnectError::Tls(why)) => assert!(matches!(*why, TlsError::NotSpoken), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_without_tls_is_named_as_that() {
    let (port, _peer) = listen(|mut peer| {
        peer.write(b"this is no handshake, but long enough for one");
        peer.drain();
    });
    assert_not_spoken(connect(port, &files("signed", "peer")));
    // One that closes at once, as a brick without TLS does.
    let (port, _peer) = listen(drop);
    assert_not_spoken(connect(port, &files("signed", "peer")));
}

#[test]
fn a_peer_that_does_not_shake_hands_is_waited_for_no_longer_than_a_connection() {
    let (port, _peer) = accept(|stream| {
        let _open = stream;
        thread::park_timeout(PATIENCE);
    });
    let timeouts = Timeouts {
        connect: Duration::from_millis(50),
        ..patient()
    };
    let files = files("signed", "peer");
    let refused = Connection::connect("127.0.0.1", port, &timeouts, true, Some(&files));
    match refused.err() {
        Some(ConnectError::Tls(why)) => assert!(matches!(*why, TlsError::CutOff(_)), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_end_of_either_side_is_the_end_of_both() {
    let (port, peer) = brick(&TLS13, |mut peer| peer.drain());
    let connection = connect(port, &files("signed", "peer")).unwrap();
    connection.close();
    peer.join().unwrap();

    let (port, _peer) = brick(&TLS13, |mut peer| drop(peer.receive()));
    let connection = connect(port, &files("signed", "peer")).unwrap();
    let failed = answer(ask(&connection, b"")).unwrap_err();
    let CallError::Disconnected(why) = failed else {
        panic!("{failed}");
    };
    assert!(matches!(*why, Disconnect::ClosedByPeer), "{why}");
    eventually("the connection to be gone", || !connection.is_connected());
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    let (port, peer) = brick(&TLS13, |mut peer| {
        let first = peer.receive();
        thread::park_timeout(PATIENCE);
        first.is_some()
    });
    let timeouts = Timeouts {
        send: Duration::from_millis(200),
        ..patient()
    };
    let files = files("signed", "peer");
    let connection = Connection::connect("127.0.0.1", port, &timeouts, true, Some(&files)).unwrap();
    let payload = vec![0; 1 << 20];
    let call = Call {
        payload: &payload,
        ..ECHO
    };
    // More than all buffers on the way hold.
    let stuck = (0..MAX_COUNTED_CALLS).find_map(|_| {
        let sent = connection.call(&call, Weight::Counted, Deadline::after(PATIENCE));
        sent.err()
    });
    let Some(CallError::Disconnected(why)) = stuck else {
        panic!("not stuck");
    };
    assert!(matches!(*why, Disconnect::SendStuck { .. }), "{why}");
    peer.thread().unpark();
    assert!(peer.join().unwrap());
}

#[test]
fn a_connection_with_tls_stays_with_its_process() {
    let (port, _peer) = brick(&TLS13, |mut peer| {
        while let Some(call) = peer.receive() {
            peer.reply(call.xid, b"");
        }
    });
    let connection = connect(port, &files("signed", "peer")).unwrap();
    assert!(matches!(connection.hold(PATIENCE), Err(HoldError::Tls)));
    assert!(answer(ask(&connection, b"")).is_ok(), "it goes on");
}
