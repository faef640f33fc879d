//! Messages, said and heard.

use proptest::prelude::*;

use super::*;

fn head_of(bytes: &[u8]) -> (Head, &[u8]) {
    let (head, body) = bytes.split_first_chunk().unwrap();
    let head = Head::decode(head).unwrap();
    assert_eq!(head.body(), body.len());
    (head, body)
}

fn item(kind: EntryKind, offset: u64, len: u64) -> Item {
    Item { kind, offset, len }
}

#[test]
fn what_a_sender_says_is_what_is_heard() {
    let hello = Hello {
        version: VERSION,
        volume: Uuid::from_u128(1),
        image: Uuid::from_u128(2),
        session: Uuid::from_u128(3),
        size: 1 << 40,
        child: 2,
        nonce: [7; 32],
    };
    let items = vec![
        item(EntryKind::Write, 512, 4096),
        item(EntryKind::Discard, 0, 1 << 40),
        item(EntryKind::Flush, 0, 0),
    ];
    for said in [
        FromSender::Hello(hello),
        FromSender::Proof([9; 32]),
        FromSender::Items(items),
        FromSender::Whole,
        FromSender::Consistent,
        FromSender::AsOf(1_764_000_000_000),
        FromSender::Sync,
    ] {
        let bytes = said.encode();
        let (head, body) = head_of(&bytes);
        assert_eq!(FromSender::decode(head, body), Ok(said));
        assert!(FromReceiver::decode(head, body).is_err());
    }
}

#[test]
fn what_a_receiver_says_is_what_is_heard() {
    for said in [
        FromReceiver::Challenge {
            nonce: [1; 32],
            proof: [2; 32],
        },
        FromReceiver::Welcome,
        FromReceiver::Refused("no".to_owned()),
        FromReceiver::Progress {
            applied: 9,
            durable: 3,
        },
    ] {
        let bytes = said.encode();
        let (head, body) = head_of(&bytes);
        assert_eq!(FromReceiver::decode(head, body), Ok(said));
        assert!(FromSender::decode(head, body).is_err());
    }
    let long = FromReceiver::Refused("ü".repeat(2000)).encode();
    let (head, body) = head_of(&long);
    let heard = FromReceiver::decode(head, body).unwrap();
    assert_eq!(heard, FromReceiver::Refused("ü".repeat(512)));
}

#[test]
fn what_is_too_long_or_makes_no_sense_is_garbage() {
    let decode = |items: Vec<Item>| {
        let bytes = FromSender::Items(items).encode();
        let (head, body) = head_of(&bytes);
        FromSender::decode(head, body)
    };
    assert!(decode(vec![]).is_err());
    assert!(decode(vec![item(EntryKind::Write, 0, MAX_DATA)]).is_ok());
    for wrong in [
        item(EntryKind::Write, 0, MAX_DATA + 1),
        item(EntryKind::Write, 0, 0),
        item(EntryKind::Flush, 0, 1),
        item(EntryKind::Zeroes, u64::MAX, 2),
    ] {
        assert!(matches!(decode(vec![wrong]), Err(Garbage::Item { .. })));
    }
    let half = item(EntryKind::Write, 0, MAX_DATA / 2 + 1);
    assert_eq!(decode(vec![half; 2]), Err(Garbage::Data(MAX_DATA + 2)));
    let mut bytes: [u8; HEAD_LEN] = FromSender::Whole.encode().try_into().unwrap();
    bytes[4..8].copy_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
    assert!(matches!(Head::decode(&bytes), Err(Garbage::Length { .. })));
    bytes[0] = 0;
    assert_eq!(Head::decode(&bytes), Err(Garbage::Magic));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = message(kind, &body);
        let (head, body) = head_of(&bytes);
        let _ = FromSender::decode(head, body);
        let _ = FromReceiver::decode(head, body);
    }
}
