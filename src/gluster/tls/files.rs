//! The files that every Gluster process with TLS has, three and a folder that few have: where they
//! are, and what is in them.

use std::cell::LazyCell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::certificate::Facts;
use super::error::{File, TlsError};
use super::folder::default_folder;
use super::revoked::Revoked;

/// With this file, glusterd and whoever asks it speak TLS on its port too. Its place is
/// compiled into Gluster (`SECURE_ACCESS_FILE`, libglusterfs/src/glusterfs/common-utils.h).
pub const SECURE_ACCESS: &str = "/var/lib/glusterd/secure-access";

/// Does this host speak TLS to glusterd?
pub fn management_wants_tls() -> bool {
    Path::new(SECURE_ACCESS).exists()
}

/// Where the files are, as far as the volume says so (`ssl.own-cert`, `ssl.private-key`,
/// `ssl.ca-list`, `ssl.crl-path`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// What this host shows.
    pub certificate: Option<PathBuf>,
    /// What proves that it is its own.
    pub key: Option<PathBuf>,
    /// Whom it believes.
    pub authorities: Option<PathBuf>,
    /// A folder of lists of those that it does not believe any more.
    #[serde(default)]
    pub revoked: Option<PathBuf>,
}

/// The paths that are used.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authorities: PathBuf,
}

/// What was in them.
pub(super) struct Loaded {
    pub files: Paths,
    /// This host's certificate, and those between it and who is believed.
    pub chain: Vec<CertificateDer<'static>>,
    pub facts: Facts,
    pub key: PrivateKeyDer<'static>,
    pub authorities: Vec<CertificateDer<'static>>,
    pub revoked: Revoked,
}

impl TlsFiles {
    fn paths(&self) -> Paths {
        let folder = LazyCell::new(default_folder);
        let path = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => path.clone(),
            None => folder.join(name),
        };
        Paths {
            certificate: path(&self.certificate, "glusterfs.pem"),
            key: path(&self.key, "glusterfs.key"),
            authorities: path(&self.authorities, "glusterfs.ca"),
        }
    }

    pub(super) fn load(&self) -> Result<Loaded, TlsError> {
        let files = self.paths();
        let chain = certificates(File::Certificate, &files.certificate)?;
        let facts = chain.first().and_then(|own| Facts::of(own));
        let facts = facts.ok_or_else(|| TlsError::Empty {
            what: File::Certificate,
            path: files.certificate.clone(),
        })?;
        if facts.is_v1 {
            return Err(TlsError::OldVersion {
                path: files.certificate.clone(),
            });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        if let Some(when) = facts.untimely(now.unwrap_or_default()) {
            return Err(TlsError::Untimely {
                path: files.certificate.clone(),
                when,
            });
        }
        let key = read(File::Key, &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::Empty {
            what: File::Key,
            path: files.key.clone(),
        })?;
        let authorities = certificates(File::Authorities, &files.authorities)?;
        let revoked = self.revoked.as_deref().map(Revoked::read).transpose()?;
        Ok(Loaded {
            files,
            chain,
            facts,
            key,
            authorities,
            revoked: revoked.unwrap_or_default(),
        })
    }
}

fn read(what: File, path: &Path) -> Result<Vec<u8>, TlsError> {
    let path = path.to_owned();
    std::fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TlsError::Missing { what, path },
        _ => TlsError::Unreadable { what, path, source },
    })
}

fn certificates(what: File, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    match found.is_empty() {
        false => Ok(found),
        true => Err(TlsError::Empty {
            what,
            path: path.to_owned(),
        }),
    }
}
