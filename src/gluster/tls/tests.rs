//! The certificates in testdata/tls are valid for a hundred years, but for *late*, which was in
//! January 2020. *host*, *peer*, *ca* and *signer* sign themselves, *signed* is signed by *ca*, *kept* and *stolen* by
//! *signer*, *old* is of version 1. *signer* has revoked *stolen*: `openssl ca -gencrl` made revoked/HASH.r0.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;

/// A file of the test data.
pub fn data(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gluster/testdata/tls");
    folder.join(name)
}

/// The files of a host that shows `own` and believes `listed`.
pub fn files(own: &str, listed: &str) -> TlsFiles {
    TlsFiles {
        certificate: Some(data(&format!("{own}.pem"))),
        key: Some(data(&format!("{own}.key"))),
        authorities: Some(data(&format!("{listed}.pem"))),
        revoked: None,
    }
}

fn why_not(files: &TlsFiles) -> TlsError {
    TlsIdentity::read(files).err().unwrap()
}

#[test]
fn what_is_wrong_with_this_hosts_files_is_told_with_the_file() {
    assert!(TlsIdentity::read(&files("host", "peer")).is_ok());
    let missing = why_not(&files("nobody", "peer"));
    assert!(matches!(
        &missing,
        TlsError::Missing {
            what: File::Certificate,
            ..
        }
    ));
    assert!(missing.to_string().contains("nobody.pem"), "{missing}");
    let folder = TlsFiles {
        key: Some(data("")),
        ..files("host", "peer")
    };
    let unreadable = why_not(&folder);
    assert!(matches!(
        unreadable,
        TlsError::Unreadable {
            what: File::Key,
            ..
        }
    ));
    let no_list = TlsFiles {
        authorities: Some(data("host.key")),
        ..files("host", "peer")
    };
    let empty = why_not(&no_list);
    assert!(matches!(
        empty,
        TlsError::Empty {
            what: File::Authorities,
            ..
        }
    ));
    let late = why_not(&files("late", "peer"));
    assert!(late.to_string().contains("expired at 2020-02-01"), "{late}");
    assert!(matches!(
        why_not(&files("old", "peer")),
        TlsError::OldVersion { .. }
    ));
    let no_pair = TlsFiles {
        key: Some(data("peer.key")),
        ..files("host", "peer")
    };
    assert!(matches!(why_not(&no_pair), TlsError::Key { .. }));
}

/// What a host that believes `listed` finds about a peer that shows `shown`.
fn judge(listed: &str, shown: &str) -> Result<(), PeerFault> {
    judge_by(&files("host", listed), shown)
}

fn judge_by(files: &TlsFiles, shown: &str) -> Result<(), PeerFault> {
    let loaded = files.load().unwrap();
    let verifier = GlusterVerifier::new(&loaded, &ring::default_provider());
    let shown = CertificateDer::from_pem_slice(&fs::read(data(&format!("{shown}.pem"))).unwrap());
    let shown = shown.unwrap();
    let facts = certificate::Facts::of(&shown).unwrap();
    verifier.judge(&shown, &[], &facts, UnixTime::now())
}

#[test]
fn a_peer_is_believed_that_is_listed_or_signed_by_who_is() {
    assert!(judge("peer", "peer").is_ok());
    assert!(judge("ca", "signed").is_ok());
    assert!(matches!(
        judge("ca", "peer"),
        Err(PeerFault::Unknown { .. })
    ));
    assert!(matches!(
        judge("host", "signed"),
        Err(PeerFault::Unknown { .. })
    ));
    // Listed, but not as one that may sign others.
    assert!(matches!(
        judge("signed", "peer"),
        Err(PeerFault::Unknown { .. })
    ));
    assert!(matches!(judge("late", "late"), Err(PeerFault::Untimely(_))));
    assert!(matches!(judge("old", "old"), Err(PeerFault::OldVersion)));
}

#[test]
fn a_peer_that_its_signer_has_revoked_is_not_believed_though_it_be_listed() {
    for listed in ["signer", "stolen"] {
        let knowing = TlsFiles {
            revoked: Some(data("revoked")),
            ..files("host", listed)
        };
        let stolen = judge_by(&knowing, "stolen").unwrap_err();
        assert!(matches!(stolen, PeerFault::Revoked { .. }), "{stolen}");
        assert!(stolen.to_string().contains(".r0 says"), "{stolen}");
        assert!(judge(listed, "stolen").is_ok(), "who is told of no list");
    }
    let knowing = |listed| TlsFiles {
        revoked: Some(data("revoked")),
        ..files("host", listed)
    };
    assert!(judge_by(&knowing("signer"), "kept").is_ok());
    // Of other signers there is no list.
    assert!(judge_by(&knowing("ca"), "signed").is_ok());
    assert!(judge_by(&knowing("peer"), "peer").is_ok());
}

#[test]
fn a_folder_or_list_of_the_revoked_that_cannot_be_read_is_told() {
    let with = |folder: &Path| TlsFiles {
        revoked: Some(folder.to_owned()),
        ..files("host", "peer")
    };
    let missing = why_not(&with(&data("nowhere")));
    assert!(missing.to_string().contains("ssl.crl-path"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("README"), "no list").unwrap();
    assert!(TlsIdentity::read(&with(folder.path())).is_ok());
    fs::write(folder.path().join("0a1b2c3d.r0"), "no list").unwrap();
    let empty = why_not(&with(folder.path()));
    let revoked = File::Revoked;
    assert!(matches!(&empty, TlsError::Empty { what, .. } if *what == revoked));
}

#[test]
fn a_certificate_has_a_name_and_a_time() {
    let text = fs::read(data("late.pem")).unwrap();
    let facts = certificate::Facts::of(&CertificateDer::from_pem_slice(&text).unwrap()).unwrap();
    assert_eq!(facts.common_name, "late");
    let january = Duration::from_secs(1_577_836_800);
    assert_eq!(facts.from, january);
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(facts.until, january + 31 * day);
    assert!(facts.untimely(january - day).is_some());
    assert_eq!(facts.untimely(january + day), None);
    assert!(facts.untimely(january + 32 * day).is_some());
    assert_eq!(certificate::Facts::of(b"no certificate"), None);
}
