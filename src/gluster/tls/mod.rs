//! TLS as Gluster does it: whom this host shows itself as, and whom it believes.
//!
//! Called by [`super::connection`], at each connect anew, so that certificates are exchanged
//! without a restart. There are three files, as every Gluster process has them ([`files`]), in a
//! folder that is compiled into it ([`folder`]). A peer is believed whose certificate is itself in
//! `glusterfs.ca`, or is signed by one that is ([`verifier`]), and not revoked ([`revoked`]); its
//! name is not looked at, by Gluster neither (`ssl_setup_connection_*`,
//! rpc/rpc-transport/socket/src/socket.c). Bytes are the connection's: nothing is sent from here.

mod certificate;
mod error;
mod files;
mod folder;
mod revoked;
mod verifier;

use std::error::Error;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, ClientConnection};

use error::Judgement;
pub use error::{File, PeerFault, TlsError};
use files::Loaded;
pub use files::{SECURE_ACCESS, TlsFiles, management_wants_tls};
use verifier::GlusterVerifier;

/// What TLS has to do with this error, if it or one that it comes from is of TLS.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let boxed = || error.downcast_ref::<Box<TlsError>>().map(|tls| &**tls);
        if let Some(tls) = error.downcast_ref().or_else(boxed) {
            return Some(tls);
        }
        cause = error.source();
    }
    None
}

/// What this host shows and believes, as it was read for one connection.
pub struct TlsIdentity {
    config: Arc<ClientConfig>,
    loaded: Loaded,
}

impl TlsIdentity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: which file is missing or cannot be used, and why.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let loaded = files.load()?;
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let verifier = GlusterVerifier::new(&loaded, &provider);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Protocol)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(loaded.chain.clone(), loaded.key.clone_key());
        let mut config = config.map_err(|source| TlsError::Key {
            key: loaded.files.key.clone(),
            certificate: loaded.files.certificate.clone(),
            source,
        })?;
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            loaded,
        })
    }

    /// The volume does not list this host's name.
    pub(super) fn not_allowed(&self) -> TlsError {
        TlsError::NotAllowed {
            path: self.loaded.files.certificate.clone(),
            name: self.loaded.facts.common_name.clone(),
        }
    }

    /// A connection's state, before its first byte.
    pub(super) fn begin(&self) -> Result<ClientConnection, TlsError> {
        // Nobody asks for the name; there has to be one.
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let config = Arc::clone(&self.config);
        ClientConnection::new(config, nobody).map_err(TlsError::Protocol)
    }

    /// What an error of the protocol means.
    pub(super) fn told(&self, error: rustls::Error) -> TlsError {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<Judgement>() {
                    Some(Judgement { name, fault }) => TlsError::Peer {
                        name: name.clone(),
                        fault: fault.clone(),
                    },
                    None => TlsError::Protocol(rustls::Error::General(other.to_string())),
                }
            }
            rustls::Error::AlertReceived(alert) => TlsError::NotAccepted {
                path: self.loaded.files.certificate.clone(),
                name: self.loaded.facts.common_name.clone(),
                alert,
            },
            rustls::Error::InvalidMessage(_) => TlsError::NotSpoken,
            other => TlsError::Protocol(other),
        }
    }
}

#[cfg(test)]
pub mod tests;
