//! What can be wrong with certificates, and what to do about each.

use std::path::PathBuf;
use std::{fmt, io};

use rustls::AlertDescription;
use thiserror::Error;

use super::certificate::Untimely;

/// Why there is no TLS connection.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not there.
    #[error(
        "this host has no {what} for TLS: {} is missing. Gluster's own processes on this host need it too: make it, or copy it there",
        .path.display()
    )]
    Missing {
        /// Which.
        what: File,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("the {what} for TLS, {}, cannot be read", .path.display())]
    Unreadable {
        /// Which.
        what: File,
        /// Where it is.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file has something else in it.
    #[error("{} holds no {what} in PEM format. Write it anew", .path.display())]
    Empty {
        /// What should be there.
        what: File,
        /// Where.
        path: PathBuf,
    },
    /// This host's certificate is not valid now.
    #[error(
        "this host's certificate {} {when}. Make a new one, and put it into glusterfs.ca of all hosts",
        .path.display()
    )]
    Untimely {
        /// Where it is.
        path: PathBuf,
        /// Since when, or until when.
        when: Untimely,
    },
    /// This host's certificate is of version 1.
    #[error(
        "this host's certificate {} is of X.509 version 1, which is not supported. Make one of version 3: openssl req -x509 -new -key glusterfs.key -subj /CN=NAME -out glusterfs.pem",
        .path.display()
    )]
    OldVersion {
        /// Where it is.
        path: PathBuf,
    },
    /// Key and certificate are no pair, or of an unknown kind.
    #[error(
        "the private key {} does not do for the certificate {}: they are no pair, or of a kind that is not supported (RSA, ECDSA and Ed25519 are)",
        .key.display(), .certificate.display()
    )]
    Key {
        /// Where the key is.
        key: PathBuf,
        /// Where the certificate is.
        certificate: PathBuf,
        /// The library's reason.
        #[source]
        source: rustls::Error,
    },
    /// The other end's certificate does not do.
    #[error("the other end's certificate (CN {name:?}) {fault}")]
    Peer {
        /// Its common name.
        name: String,
        /// Why not.
        fault: PeerFault,
    },
    /// The other end does not believe this host's certificate.
    #[error(
        "the other end does not accept this host's certificate {} (CN {name:?}; it says {alert:?}). Put it, or who signed it, into glusterfs.ca there",
        .path.display()
    )]
    NotAccepted {
        /// Where it is.
        path: PathBuf,
        /// Its common name.
        name: String,
        /// What the other end said.
        alert: AlertDescription,
    },
    /// The volume does not list this host's name.
    #[error(
        "the volume does not allow this host's certificate {} (CN {name:?}). Add that name to the others: gluster volume set VOLUME auth.ssl-allow NAMES",
        .path.display()
    )]
    NotAllowed {
        /// Where it is.
        path: PathBuf,
        /// Its common name.
        name: String,
    },
    /// What came is no TLS, or nothing came.
    #[error(
        "the other end speaks no TLS: is server.ssl on for the volume and its bricks started since (for glusterd: is there a secure-access file on both hosts)?"
    )]
    NotSpoken,
    /// The connection failed in the handshake.
    #[error("the TLS handshake was cut off")]
    CutOff(#[source] io::Error),
    /// Something else.
    #[error("TLS failed")]
    Protocol(#[source] rustls::Error),
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// What this host shows.
    Certificate,
    /// What proves that it is its own.
    Key,
    /// Whom it believes.
    Authorities,
    /// Whom it does not believe any more.
    Revoked,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authorities => "list of certificates to trust",
            Self::Revoked => "list of revoked certificates (ssl.crl-path)",
        })
    }
}

/// What is wrong with the other end's certificate.
#[derive(Clone, Debug, Error)]
pub enum PeerFault {
    /// Nobody vouches for it.
    #[error("is not in {}, nor signed by one that is. Add it there if it is right", .ca.display())]
    Unknown {
        /// This host's list.
        ca: PathBuf,
    },
    /// It is not valid now.
    #[error("{0}. Make a new one there, and put it into glusterfs.ca of all hosts")]
    Untimely(Untimely),
    /// Who signed it has taken it back.
    #[error("was revoked, as {} says. Make a new one there", .list.display())]
    Revoked {
        /// This host's copy of the signer's list.
        list: PathBuf,
    },
    /// It is of version 1.
    #[error(
        "is of X.509 version 1, which is not supported. Make one of version 3 there (openssl req -x509)"
    )]
    OldVersion,
}

/// What the verifier found, on its way through the library.
#[derive(Debug, Error)]
#[error("{name:?} {fault}")]
pub(super) struct Judgement {
    pub name: String,
    pub fault: PeerFault,
}
