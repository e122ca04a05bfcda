//! Believing a brain of which nothing is known but the hash of its CA's certificate.

use gnomon_common::wire::CaPin;
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Trusts one CA: the one in the server's own chain whose SHA-256 is the pin. The rest (its signature on the server's certificate, the
/// name, the time, the purpose) is checked as ever, by webpki.
#[derive(Debug)]
pub(super) struct PinnedCa {
    pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    pub(super) fn new(pin: CaPin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }
}

/// What tokens know a CA's certificate by.
pub(super) fn pin_of(certificate: &CertificateDer<'_>) -> CaPin {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    CaPin(pin)
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| pin_of(certificate) == self.pin);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
    use std::time::{SystemTime, UNIX_EPOCH};

    struct Ca {
        certificate: Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Ca {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
        }

        fn server(&self) -> CertificateDer<'static> {
            let params = CertificateParams::new(vec!["gnomon-brain".to_owned()]).unwrap();
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
        }
    }

    fn verify(pin: &Ca, leaf: &CertificateDer<'_>, chain: &[&Ca], name: &str) -> Result<(), Error> {
        let chain: Vec<_> = chain.iter().map(|ca| ca.certificate.der().clone()).collect();
        let name = ServerName::try_from(name).unwrap();
        let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        PinnedCa::new(pin_of(pin.certificate.der()), Arc::new(rustls::crypto::ring::default_provider()))
            .verify_server_cert(leaf, &chain, &name, &[], now)
            .map(drop)
    }

    #[test]
    fn only_a_server_that_the_pinned_ca_has_signed_is_believed() {
        let (ours, other) = (Ca::new(), Ca::new());
        let server = ours.server();
        assert_eq!(verify(&ours, &server, &[&ours], "gnomon-brain"), Ok(()));
        assert_eq!(verify(&ours, &server, &[&other, &ours], "gnomon-brain"), Ok(()));
        let unknown = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert_eq!(verify(&ours, &server, &[], "gnomon-brain"), unknown, "the pinned CA is not in the chain");
        assert_eq!(verify(&other, &server, &[&ours], "gnomon-brain"), unknown, "another CA is pinned");
        // Our CA's certificate is public: whoever shows it beside a certificate that it never signed gets nowhere.
        assert!(verify(&ours, &other.server(), &[&ours], "gnomon-brain").is_err());
        assert!(verify(&ours, &server, &[&ours], "another-name").is_err());
    }
}
