//! Certificates that their signers have taken back: the lists (CRLs) in the folder that `ssl.crl-path`
//! names, as OpenSSL wants them, one a file, named `HASH.rNUMBER`.
//!
//! Stricter than a client of Gluster's, which is told of the folder and does not look
//! (`ssl_clear_crl_verify_flags`, rpc/rpc-transport/socket/src/socket.c; bricks do): a revoked key may be a
//! stolen one, and whoever has it could tell us which copy is fresh. But a signer without a list
//! revokes nobody, nor is a list refused for its age. A list is as good as the folder that it is in, like
//! `glusterfs.ca`: who signed it is not looked at.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::{Decode, Encode};

use super::error::{File, TlsError};

/// What was in the folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Revoked(Vec<RevokedCertificate>);

#[derive(Clone, Debug)]
struct RevokedCertificate {
    /// Who signed it, encoded.
    issuer: Vec<u8>,
    /// Its number there.
    serial: Vec<u8>,
    /// Where that is said.
    list: PathBuf,
}

impl Revoked {
    /// Reads all lists in `folder`.
    ///
    /// # Errors
    /// [`TlsError`]: the folder, or a list in it, cannot be read. Not to know who is revoked is not to
    /// know that nobody is.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        let unreadable = |source| unreadable(folder, source);
        let mut revoked = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if is_list(&path) {
                revoked.extend(revoked_by(&path)?);
            }
        }
        Ok(Self(revoked))
    }

    /// The list that names this certificate.
    pub fn names(&self, certificate: &[u8]) -> Option<&Path> {
        let read = Certificate::from_der(certificate).ok()?.tbs_certificate;
        let issuer = read.issuer.to_der().ok()?;
        let serial = read.serial_number.as_bytes();
        let same = |one: &&RevokedCertificate| one.issuer == issuer && one.serial == serial;
        let found = self.0.iter().find(same)?;
        Some(&found.list)
    }
}

/// By its name, as OpenSSL finds one (`by_dir.c`).
fn is_list(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let number = extension.and_then(|extension| extension.strip_prefix('r'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn unreadable(path: &Path, source: std::io::Error) -> TlsError {
    TlsError::Unreadable {
        what: File::Revoked,
        path: path.to_owned(),
        source,
    }
}

fn revoked_by(list: &Path) -> Result<Vec<RevokedCertificate>, TlsError> {
    let empty = || TlsError::Empty {
        what: File::Revoked,
        path: list.to_owned(),
    };
    let text = std::fs::read(list).map_err(|source| unreadable(list, source))?;
    let der = CertificateRevocationListDer::from_pem_slice(&text).map_err(|_| empty())?;
    let parsed = CertificateList::from_der(&der)
        .map_err(|_| empty())?
        .tbs_cert_list;
    let issuer = parsed.issuer.to_der().map_err(|_| empty())?;
    let entries = parsed.revoked_certificates.into_iter().flatten();
    let revoked = entries.map(|entry| RevokedCertificate {
        issuer: issuer.clone(),
        serial: entry.serial_number.as_bytes().to_vec(),
        list: list.to_owned(),
    });
    Ok(revoked.collect())
}
