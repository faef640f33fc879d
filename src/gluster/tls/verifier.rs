//! Whose certificate is believed: one that is in `glusterfs.ca` itself, byte for byte, or that is
//! signed by one in there. The first kind is what Gluster's documents tell to make (self-signed, and
//! a CA by `openssl req -x509`), which no verifier for the web accepts.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use super::certificate::Facts;
use super::error::{Judgement, PeerFault};
use super::files::Loaded;
use super::revoked::Revoked;

#[derive(Debug)]
pub(super) struct GlusterVerifier {
    ca: PathBuf,
    listed: Vec<CertificateDer<'static>>,
    /// Those of `listed` that can sign.
    anchors: RootCertStore,
    revoked: Revoked,
    algorithms: WebPkiSupportedAlgorithms,
}

impl GlusterVerifier {
    pub fn new(loaded: &Loaded, provider: &CryptoProvider) -> Self {
        let mut anchors = RootCertStore::empty();
        // What cannot sign anybody is in the list for itself.
        let _ = anchors.add_parsable_certificates(loaded.authorities.iter().cloned());
        Self {
            ca: loaded.files.authorities.clone(),
            listed: loaded.authorities.clone(),
            anchors,
            revoked: loaded.revoked.clone(),
            algorithms: provider.signature_verification_algorithms,
        }
    }

    /// What is wrong with what was shown, if anything is.
    pub fn judge(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        facts: &Facts,
        now: UnixTime,
    ) -> Result<(), PeerFault> {
        if facts.is_v1 {
            return Err(PeerFault::OldVersion);
        }
        if let Some(when) = facts.untimely(std::time::Duration::from_secs(now.as_secs())) {
            return Err(PeerFault::Untimely(when));
        }
        let chain = std::iter::once(shown).chain(between);
        if let Some(list) = chain.into_iter().find_map(|one| self.revoked.names(one)) {
            let list = list.to_owned();
            return Err(PeerFault::Revoked { list });
        }
        if self.listed.iter().any(|listed| listed == shown) {
            return Ok(());
        }
        let unknown = |_| PeerFault::Unknown {
            ca: self.ca.clone(),
        };
        let parsed = ParsedCertificate::try_from(shown).map_err(unknown)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.anchors,
            between,
            now,
            self.algorithms.all,
        )
        .map_err(unknown)
    }
}

impl ServerCertVerifier for GlusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let facts = Facts::of(end_entity).ok_or(bad)?;
        match self.judge(end_entity, intermediates, &facts, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(fault) => {
                let name = facts.common_name;
                let judgement = OtherError(Arc::new(Judgement { name, fault }));
                Err(CertificateError::Other(judgement).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
