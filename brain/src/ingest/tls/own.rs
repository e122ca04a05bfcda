//! The certificate that the brain shows, and its renewal.
//!
//! It is a value that changes while the brain runs: new handshakes get the new one, connections that stand keep theirs.
//! On disk, key and certificate are replaced one after the other; a brain that is killed in between finds a pair that does
//! not match when it starts again, and with the CA at hand simply makes the next one.

use super::{TlsError, TlsFiles, certificates};
use crate::ca::{self, Ca, Identity, Issued, Lifetime};
use crate::secret;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::renewal_due;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, PoisonError, RwLock};

/// The brain's own certificate and key.
#[derive(Debug)]
pub struct OwnCertificate {
    files: TlsFiles,
    present: RwLock<Present>,
}

#[derive(Debug, Clone)]
struct Present {
    shown: Arc<CertifiedKey>,
    identity: Identity,
}

impl OwnCertificate {
    /// Reads the files. With a CA at hand, a certificate that is due or whose key is another one's is replaced at once.
    pub fn load(files: TlsFiles, ca: Option<&Ca>, now: Timestamp) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        let identity = ca::identity(&chain[0])?;
        let key = secret::read(&files.key)?;
        let present = match (certified(&files, chain, &key), ca) {
            (Ok(shown), _) => Present { shown: Arc::new(shown), identity },
            (Err(TlsError::Rustls(error)), Some(ca)) => {
                tracing::warn!(%error, "the brain's certificate and key are no pair: making new ones");
                make(&files, ca, &identity)?
            }
            (Err(error), _) => return Err(error),
        };
        let own = Self { files, present: RwLock::new(present) };
        if let Some(ca) = ca
            && own.due() <= now
        {
            own.renew(ca)?;
        }
        Ok(own)
    }

    /// When it ends.
    pub fn valid_to(&self) -> Timestamp {
        self.present().identity.valid_to
    }

    /// When it should be renewed.
    pub fn due(&self) -> Timestamp {
        let Identity { valid_from, valid_to, .. } = self.present().identity;
        renewal_due(valid_from, valid_to)
    }

    /// Makes the next one, for the same names and addresses, writes it and shows it from now on.
    pub fn renew(&self, ca: &Ca) -> Result<(), TlsError> {
        let next = make(&self.files, ca, &self.present().identity)?;
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn present(&self) -> Present {
        // It is only ever replaced as a whole.
        self.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present().shown)
    }
}

fn make(files: &TlsFiles, ca: &Ca, identity: &Identity) -> Result<Present, TlsError> {
    let Issued { certificate, key, .. } = ca.reissue_brain(identity, Lifetime::BY_HAND)?;
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|source| TlsError::Pem { path: files.certificate.clone(), source })?;
    let identity = ca::identity(&leaf)?;
    let shown = Arc::new(certified(files, vec![leaf], &key)?);
    secret::replace(&files.key, &key, 0o600)?;
    secret::replace(&files.certificate, &certificate, 0o644)?;
    let days = identity.valid_to.since(identity.valid_from).as_secs() / 86_400;
    tracing::info!(serial = %identity.serial, days, "the brain has a new certificate of its own");
    Ok(Present { shown, identity })
}

/// The chain ends with the CA's own certificate: a host that joins knows no more of it than its hash.
fn certified(files: &TlsFiles, mut chain: Vec<CertificateDer<'static>>, key: &str) -> Result<CertifiedKey, TlsError> {
    let authority = certificates(&files.ca)?.swap_remove(0);
    if !chain.contains(&authority) {
        chain.push(authority);
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|source| TlsError::Pem { path: files.key.clone(), source })?;
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    fn home(dir: &Path, lifetime: Lifetime) -> (Ca, TlsFiles) {
        let ca = Ca::init(dir).unwrap();
        ca.issue_brain("gnomon-brain", &["192.0.2.1".into()], lifetime).unwrap().write(dir, "brain").unwrap();
        let file = |name| dir.join(name);
        (ca, TlsFiles { ca: file("ca.pem"), certificate: file("brain.pem"), key: file("brain.key") })
    }

    #[test]
    fn a_certificate_that_is_not_due_stays_and_one_that_is_due_is_replaced_on_disk_and_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, files) = home(dir.path(), Lifetime::BY_HAND);
        let before = fs::read_to_string(&files.certificate).unwrap();
        let own = OwnCertificate::load(files.clone(), Some(&ca), clock::now()).unwrap();
        assert_eq!(fs::read_to_string(&files.certificate).unwrap(), before);

        let late = own.due() + Duration::from_secs(1);
        let own = OwnCertificate::load(files.clone(), Some(&ca), late).unwrap();
        assert_ne!(fs::read_to_string(&files.certificate).unwrap(), before);
        // What was written is what is shown, and a brain without the CA can start from it.
        let again = OwnCertificate::load(files, None, clock::now()).unwrap();
        assert_eq!(again.present().identity, own.present().identity);
        assert_eq!(again.present().identity.addresses.len(), 1);
    }

    #[test]
    fn a_pair_that_a_kill_has_parted_is_made_anew_with_the_ca_and_refused_without() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, files) = home(dir.path(), Lifetime::BY_HAND);
        secret::replace(&files.key, &rcgen::KeyPair::generate().unwrap().serialize_pem(), 0o600).unwrap();
        assert!(OwnCertificate::load(files.clone(), None, clock::now()).is_err());
        OwnCertificate::load(files.clone(), Some(&ca), clock::now()).unwrap();
        OwnCertificate::load(files, None, clock::now()).unwrap();
    }
}
