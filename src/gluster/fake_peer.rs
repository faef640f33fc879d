//! A peer for tests: a listening socket and a script.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::connection::{Connection, Timeouts};
use super::dict::{self, Dict};
use super::record;
use super::xdr::{Decoder, Encoder};
use super::{Brick, BrickSpec, Gfid, Iatt, Identity, LkOwner, TlsFiles};

/// A call as the peer received it.
#[derive(Debug)]
pub struct Received {
    pub xid: u32,
    pub program: u32,
    pub procedure: u32,
    pub body: Vec<u8>,
}

/// What a peer reads from and writes to.
pub trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// One accepted connection.
pub struct Peer(pub Box<dyn Wire>);

impl Peer {
    /// The next call, or `None` when the client has closed.
    pub fn receive(&mut self) -> Option<Received> {
        let mut mark = [0; record::MARK_LEN];
        self.0.read_exact(&mut mark).ok()?;
        let length = u32::from_be_bytes(mark) & 0x7fff_ffff;
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).ok()?;
        let mut header = Decoder::new(&bytes);
        let xid = header.u32().unwrap();
        let (_call, _version) = (header.u32(), header.u32());
        let (program, _version) = (header.u32().unwrap(), header.u32());
        let procedure = header.u32().unwrap();
        for _ in ["credentials", "verifier"] {
            header.u32().unwrap();
            header.opaque(400).unwrap();
        }
        let body = header.rest().to_vec();
        Some(Received {
            xid,
            program,
            procedure,
            body,
        })
    }

    /// Sends a record whose bytes are given.
    pub fn send(&mut self, bytes: &[u8]) {
        let mark = record::mark(bytes.len()).unwrap();
        self.write(&[&mark, bytes].concat());
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        // The client may be gone already.
        let _ = self.0.write_all(bytes);
        let _ = self.0.flush();
    }

    /// Answers a call with `results`.
    pub fn reply(&mut self, xid: u32, results: &[u8]) {
        self.reply_and(xid, results, &[]);
    }

    /// Answers a call with `results`, and sends `more` bytes so that both arrive as one.
    pub fn reply_and(&mut self, xid: u32, results: &[u8], more: &[u8]) {
        let mut reply = Encoder::new();
        let (message_type, accepted, verifier, success) = (1, 0, 0, 0);
        reply.u32(xid).u32(message_type).u32(accepted).u32(verifier);
        reply.opaque(&[]).u32(success);
        let reply = [&reply.into_bytes(), results].concat();
        let mark = record::mark(reply.len()).unwrap();
        self.write(&[&mark, &reply[..], more].concat());
    }

    /// A notice such as bricks send on their own: an upcall without arguments that matter here.
    pub fn notice(&mut self, xid: u32) {
        self.call_back(xid, 5);
    }

    /// A call of the callback program, without arguments.
    pub fn call_back(&mut self, xid: u32, procedure: u32) {
        let mut call = Encoder::new();
        for word in [xid, 0, 2, 52_743_234, 1, procedure, 0, 0, 0, 0] {
            call.u32(word);
        }
        self.send(&call.into_bytes());
    }

    /// Reads until the client has closed.
    pub fn drain(&mut self) {
        while self.receive().is_some() {}
    }
}

/// Runs `script` for the one connection made to the returned port.
pub fn listen<T: Send + 'static>(
    script: impl FnOnce(Peer) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    accept(|stream| script(Peer(Box::new(stream))))
}

/// Runs `script` on the socket of the one connection made to the returned port.
pub fn accept<T: Send + 'static>(
    script: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = thread::spawn(move || script(listener.accept().unwrap().0));
    (port, handle)
}

/// A connection to a peer that runs `script`.
pub fn connect<T: Send + 'static>(
    timeouts: &Timeouts,
    script: impl FnOnce(Peer) -> T + Send + 'static,
) -> (Connection, JoinHandle<T>) {
    let (port, handle) = listen(script);
    let connection = Connection::connect("127.0.0.1", port, timeouts, true, None).unwrap();
    (connection, handle)
}

/// What a brick says of a file with this identity and no attributes.
pub fn found(gfid: Gfid) -> Vec<u8> {
    let iatt = Iatt {
        gfid,
        ..Iatt::default()
    };
    let mut results = Encoder::new();
    results.i32(0).i32(0);
    Dict::new().encode(&mut results);
    iatt.encode(&mut results);
    iatt.encode(&mut results);
    results.into_bytes()
}

/// A brick that answers the handshake, and each operation with what `answer` says.
pub fn brick_that(mut answer: impl FnMut(&Received) -> Vec<u8> + Send + 'static) -> Brick {
    let (port, _peer) = listen(move |mut peer: Peer| {
        let welcome = peer.receive().unwrap();
        let mut results = Encoder::new();
        results.i32(0).i32(0).opaque(&dict::encode_text([]));
        peer.reply(welcome.xid, &results.into_bytes());
        while let Some(call) = peer.receive() {
            let results = answer(&call);
            peer.reply(call.xid, &results);
        }
    });
    let spec = BrickSpec {
        client_name: "gv0-client-0".into(),
        host: "127.0.0.1".into(),
        path: "/brick".into(),
        username: None,
        password: None,
        tls: false,
        tls_files: TlsFiles::default(),
    };
    let identity = Identity {
        process_name: "test".into(),
        pid: -9,
        lk_owner: LkOwner::new("me").unwrap(),
    };
    Brick::attach(&spec, port, Uuid::nil(), &identity, &Timeouts::default()).unwrap()
}

/// Long enough for anything that happens at all.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; panics when it never does.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
