//! Everything that this program reads and did not write, by bytes that nobody meant: an
//! answer or an error, never a panic, and never more memory than a limit allows.
//!
//! In the gate each target runs its corpus and some thousand inputs made from a seed. For hours, with coverage:
//! `cargo install cargo-bolero`, then `cargo bolero test -p bypass-fuzz --test targets NAME`. What
//! it finds goes into `tests/__fuzz__/NAME/corpus`, and stays.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bolero::check;
use bypass_blk::control::socket::Request;
use bypass_blk::daemon::upgrade_state;
use bypass_blk::device::gate::AlwaysOpen;
use bypass_blk::device::guest::chain::Chain;
use bypass_blk::device::guest::memory::Memory;
use bypass_blk::device::{Config, Disk, Server};
use bypass_blk::gluster::dict::Dict;
use bypass_blk::gluster::notice::Notice;
use bypass_blk::gluster::record::{MAX_RECORD, RecordDecoder};
use bypass_blk::gluster::rpc::{self, Message};
use bypass_blk::gluster::volfile::Graph;
use bypass_blk::gluster::volume::Volume;
use bypass_blk::gluster::xdr::Decoder;
use bypass_blk::image::dirty_map::header::Header;
use bypass_blk::image::stream::message::{FromReceiver, FromSender, HEAD_LEN, Head, MAX_BODY};
use vm_memory::{Bytes, GuestAddress};

/// Inputs for each target in the gate.
const INPUTS: usize = 200_000;
/// The same where each input takes system calls.
const FEW_INPUTS: usize = 2_000;

#[test]
fn a_stream_of_records() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let mut decoder = RecordDecoder::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = decoder.space();
            assert!(!space.is_empty());
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            match decoder.advance(count) {
                Ok(Some(record)) => {
                    assert!(record.len() <= MAX_RECORD);
                    if let Ok(Message::Call {
                        program,
                        procedure,
                        arguments,
                    }) = rpc::parse(&record)
                    {
                        let _ = Notice::parse(program, procedure, &record[arguments..]);
                    }
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    });
}

#[test]
fn a_dict() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let _ = Dict::decode(&mut Decoder::new(bytes));
        let _ = bypass_blk::gluster::dict::decode_text(bytes);
    });
}

#[test]
fn a_message_of_a_stream_of_writes() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let Some((head, body)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            return;
        };
        if let Ok(head) = Head::decode(head) {
            assert!(head.body() <= MAX_BODY);
            let _ = FromSender::decode(head, body);
            let _ = FromReceiver::decode(head, body);
        }
    });
}

#[test]
fn a_volfile() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = Graph::parse(text);
            let _ = Volume::parse(text);
        }
    });
}

#[test]
fn the_header_of_a_dirty_map() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let _ = Header::decode(bytes, bytes.len() as u64);
        // As long as a header says that its file is.
        let _ = Header::decode(bytes, 1 << 20);
    });
}

#[test]
fn what_a_process_leaves_at_an_upgrade() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let _ = upgrade_state::read(bytes, &mut []);
    });
}

#[test]
fn a_request_on_the_control_socket() {
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        let Ok(request) = serde_json::from_slice::<Request>(bytes) else {
            return;
        };
        let text = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
    });
}

#[test]
fn a_chain_of_descriptors() {
    const SIZE: usize = 0x4000;
    const TABLE_LEN: u16 = 16;
    let memory = Memory::from_ranges(&[
        (GuestAddress(0), SIZE / 2),
        (GuestAddress(SIZE as u64 / 2), SIZE / 2),
    ]);
    let memory = memory.unwrap();
    check!().with_iterations(INPUTS).for_each(|bytes: &[u8]| {
        memory.write_slice(&[0; SIZE / 2], GuestAddress(0)).unwrap();
        let fitting = &bytes[..bytes.len().min(SIZE)];
        memory.write_slice(fitting, GuestAddress(0)).unwrap();
        let mut chain = Chain::default();
        for head in 0..TABLE_LEN {
            if chain
                .walk(&memory, GuestAddress(0), TABLE_LEN, head)
                .is_ok()
            {
                let _ = chain.take_header::<16>(&memory);
                let _ = chain.take_status(&memory);
            }
        }
    });
}

#[test]
fn messages_of_a_front_end() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let disk = Disk::new(file, "fuzz").unwrap();
    let config = Config {
        num_queues: 1,
        ..Config::default()
    };
    let server = AssertUnwindSafe(Server::new(disk, Arc::new(AlwaysOpen), config).unwrap());
    check!()
        .with_iterations(FEW_INPUTS)
        .for_each(|bytes: &[u8]| {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(bytes).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            let _ = server.serve(far);
        });
}
