use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    Identity {
        gfid: Uuid::from_u128(7),
        size: 10 << 20,
        extent_size: ExtentSize::new(65536).unwrap(),
        local: "a:/brick".into(),
        peers: vec!["b:/brick".into(), "c:/brick".into()],
    }
}

fn header() -> Header {
    let identity = identity();
    let geometry = Geometry::new(identity.size, identity.extent_size, 2).unwrap();
    Header::new(&identity, geometry, Uuid::from_u128(1))
}

fn decode(bytes: &[u8]) -> Result<Header, Distrust> {
    Header::decode(bytes, header().geometry.file_len())
}

/// The bytes with another value at one place and the checksum made right again.
fn forged(change: impl FnOnce(&mut Raw)) -> [u8; LEN] {
    let mut raw = Raw::read_from_bytes(&header().encode()).unwrap();
    change(&mut raw);
    raw.checksum = raw.sum();
    zerocopy::transmute!(raw)
}

#[test]
fn what_is_encoded_is_decoded() {
    for clean in [false, true] {
        let mut header = header();
        header.clean = clean;
        assert_eq!(decode(&header.encode()), Ok(header));
    }
}

#[test]
fn a_header_fits_before_the_words() {
    assert!(LEN as u64 <= crate::image::dirty_map::geometry::WORDS_AT);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = header().encode();
    for bit in 0..LEN * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn each_kind_of_damage_has_its_reason() {
    let reason = |bytes: &[u8]| decode(bytes).unwrap_err();
    let good = header().encode();
    assert_eq!(reason(&good[..LEN - 1]), Distrust::Truncated);
    assert_eq!(reason(&[0; LEN]), Distrust::Magic);
    assert_eq!(
        reason(&forged(|raw| raw.version = 99.into())),
        Distrust::Version { found: 99 }
    );
    for impossible in [
        forged(|raw| raw.extent_size = 5000.into()),
        forged(|raw| raw.size = 0.into()),
        forged(|raw| raw.peer_count = 5),
    ] {
        assert_eq!(reason(&impossible), Distrust::Impossible);
    }
    let mut damaged = good;
    damaged[LEN - 1] ^= 1;
    assert_eq!(reason(&damaged), Distrust::Checksum);
    let short = header().geometry.file_len() - 1;
    assert_eq!(Header::decode(&good, short), Err(Distrust::Truncated));
}

#[test]
fn any_other_identity_is_named() {
    let header = header();
    let differs = |change: fn(&mut Identity)| {
        let mut other = identity();
        change(&mut other);
        header.check_identity(&other).unwrap_err()
    };
    assert_eq!(header.check_identity(&identity()), Ok(()));
    let found = Uuid::from_u128(7);
    assert_eq!(differs(|i| i.gfid = Uuid::nil()), Distrust::Gfid { found });
    assert_eq!(
        differs(|i| i.size += 512),
        Distrust::Size { found: 10 << 20 }
    );
    assert_eq!(
        differs(|i| i.extent_size = ExtentSize::new(4096).unwrap()),
        Distrust::ExtentSize { found: 65536 }
    );
    assert_eq!(differs(|i| i.local.push('x')), Distrust::Local);
    assert_eq!(differs(|i| i.peers.reverse()), Distrust::Peers);
    assert_eq!(
        differs(|i| i.peers = vec!["b:/brickc:/brick".into(), String::new()]),
        Distrust::Peers
    );
}

#[test]
fn a_restart_of_the_host_is_survived_only_by_a_closed_map() {
    let (this, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut header = header();
    assert_eq!(header.check_boot(this), Ok(()));
    assert_eq!(header.check_boot(other), Err(Distrust::HostRestarted));
    header.clean = true;
    assert_eq!(header.check_boot(other), Ok(()));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2 * LEN), len: u64) {
        let _ = Header::decode(&bytes, len);
    }

    #[test]
    fn no_values_under_a_right_checksum_make_it_panic(
        size: u64, extent: u32, peers: u8, clean: u8, len: u64,
    ) {
        let bytes = forged(|raw| {
            raw.size = size.into();
            raw.extent_size = extent.into();
            raw.peer_count = peers;
            raw.clean = clean;
        });
        let _ = Header::decode(&bytes, len);
    }
}
