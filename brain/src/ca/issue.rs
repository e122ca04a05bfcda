//! Making the CA and issuing from it.

use super::{CA_CERTIFICATE, CA_KEY, CaError, Identity, Serial, identity, request};
use crate::clock;
use crate::secret::{self, SecretError};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CaPin, HostId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate is valid from a little before it was made, so that a clock that is late does not refuse it: a day, or
/// [`BACKDATE_SHARE`] of a shorter life.
const BACKDATE_MAX: Duration = Duration::from_secs(86_400);
/// Which part of its life a certificate may be dated back: little enough that "two thirds are over" stays about right.
const BACKDATE_SHARE: u32 = 10;

/// How long a certificate is valid from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(pub Duration);

impl Lifetime {
    /// The CA: ten years. Replacing it means a new certificate on every host.
    pub const CA: Self = Self::days(3650);
    /// A brain, or an agent whose certificate was issued by hand: a year, so that a lost key does not serve for ever.
    pub const BY_HAND: Self = Self::days(365);

    /// That many days.
    pub const fn days(days: u16) -> Self {
        Self(Duration::from_secs(days as u64 * 86_400))
    }
}

/// A CA with its key, ready to issue.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    valid_to: Timestamp,
}

/// A certificate, its key, and the CA's certificate to verify the other side with; all PEM.
pub struct Issued {
    /// The CA's certificate.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// A certificate for a key that somebody else has.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its serial number.
    pub serial: Serial,
    /// When it ends.
    pub valid_to: Timestamp,
}

impl Ca {
    /// Makes a CA in `dir` (created if needed); refuses where there is one.
    pub fn init(dir: &Path) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if let Some(existing) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
            return Err(CaError::Exists(existing.clone()));
        }
        fs::create_dir_all(dir).map_err(|source| SecretError::Io { path: dir.to_owned(), source })?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        date(&mut params, Lifetime::CA, None);
        params.distinguished_name = named("Gnomon CA");
        // No intermediate CAs: everything is issued from this one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        secret::write_new(&key_path, &key.serialize_pem())?;
        secret::write_new_public(&certificate_path, &certificate_pem)?;
        Self::load(&certificate_path, &key_path)
    }

    /// Opens the CA in `dir`.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if !certificate_path.exists() || !key_path.exists() {
            return Err(CaError::Missing(dir.to_owned()));
        }
        Self::load(&certificate_path, &key_path)
    }

    /// Opens the CA with these files; of several certificates in the first, the first one issues.
    pub fn load(certificate_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(&secret::read(key_path)?)?;
        let certificate_pem = fs::read_to_string(certificate_path)
            .map_err(|source| SecretError::Io { path: certificate_path.to_owned(), source })?;
        let unreadable = |reason: String| CaError::Unreadable { path: certificate_path.to_owned(), reason };
        let certificate_pem = first_certificate(&certificate_pem)
            .map(|text| format!("{text}\n"))
            .ok_or_else(|| unreadable("no certificate in it".into()))?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| unreadable(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unreadable(error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Mismatch { key: key_path.to_owned(), certificate: certificate_path.to_owned() });
        }
        let valid_to = identity(&certificate)?.valid_to;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate_pem, certificate, valid_to })
    }

    /// The CA's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// What tokens know this CA by.
    pub fn pin(&self) -> CaPin {
        CaPin(secret::sha256(&self.certificate))
    }

    /// Issues a brain's certificate for `name` and, where given, further DNS names and IP addresses.
    pub fn issue_brain(&self, name: &str, addresses: &[String], lifetime: Lifetime) -> Result<Issued, CaError> {
        let names = std::iter::once(name.to_owned()).chain(addresses.iter().cloned()).collect::<Vec<_>>();
        self.issue(name, names, ExtendedKeyUsagePurpose::ServerAuth, lifetime)
    }

    /// Issues a brain's next certificate, for the names and addresses of its present one.
    pub fn reissue_brain(&self, present: &Identity, lifetime: Lifetime) -> Result<Issued, CaError> {
        let addresses = present.addresses.iter().map(ToString::to_string);
        let names: Vec<String> = present.dns_names.iter().cloned().chain(addresses).collect();
        let name = names.first().map_or(super::BRAIN_NAME, String::as_str).to_owned();
        self.issue(&name, names, ExtendedKeyUsagePurpose::ServerAuth, lifetime)
    }

    /// Makes a key and the certificate with which an agent speaks for `host`: for hosts that cannot join by the network.
    pub fn issue_agent(&self, host: &HostId, lifetime: Lifetime) -> Result<Issued, CaError> {
        self.issue(host.as_str(), vec![host.as_str().to_owned()], ExtendedKeyUsagePurpose::ClientAuth, lifetime)
    }

    /// Certifies the key of a signing request (PKCS #10, DER) for `host`, and for nothing else that the request may ask.
    pub fn sign_agent(&self, host: &HostId, request: &[u8], lifetime: Lifetime) -> Result<Signed, CaError> {
        let key = request::public_key(request)?;
        let names = vec![host.as_str().to_owned()];
        self.certify(&key, host.as_str(), names, ExtendedKeyUsagePurpose::ClientAuth, lifetime)
    }

    fn issue(
        &self,
        common_name: &str,
        subject_alt_names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        lifetime: Lifetime,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let Signed { certificate, .. } = self.certify(&key, common_name, subject_alt_names, usage, lifetime)?;
        Ok(Issued { ca: self.certificate_pem.clone(), certificate, key: key.serialize_pem() })
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        subject_alt_names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        lifetime: Lifetime,
    ) -> Result<Signed, CaError> {
        let (serial, bytes) = Serial::random()?;
        let mut params = CertificateParams::new(subject_alt_names)?;
        date(&mut params, lifetime, Some(self.valid_to));
        params.serial_number = Some(SerialNumber::from_slice(&bytes));
        params.distinguished_name = named(common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let valid_to = identity(certificate.der())?.valid_to;
        Ok(Signed { certificate: certificate.pem(), serial, valid_to })
    }
}

impl Issued {
    /// Writes `ca.pem`, `STEM.pem` and `STEM.key` into `dir` (created if needed); overwrites nothing but an identical
    /// `ca.pem`. Returns the paths written.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<Vec<PathBuf>, CaError> {
        fs::create_dir_all(dir).map_err(|source| SecretError::Io { path: dir.to_owned(), source })?;
        let ca_path = dir.join(CA_CERTIFICATE);
        let certificate_path = dir.join(format!("{stem}.pem"));
        let key_path = dir.join(format!("{stem}.key"));
        let mut written = Vec::new();
        if fs::read_to_string(&ca_path).ok().as_deref() != Some(&self.ca) {
            secret::write_new_public(&ca_path, &self.ca)?;
            written.push(ca_path);
        }
        secret::write_new(&key_path, &self.key)?;
        secret::write_new_public(&certificate_path, &self.certificate)?;
        written.extend([certificate_path, key_path]);
        Ok(written)
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Gnomon");
    name.push(DnType::CommonName, common_name);
    name
}

/// Sets the validity: never beyond `ca_valid_to`, which no verifier would look beyond either.
fn date(params: &mut CertificateParams, Lifetime(lifetime): Lifetime, ca_valid_to: Option<Timestamp>) {
    let now = Duration::from_millis(clock::now().unix_ms());
    let from = now.saturating_sub(BACKDATE_MAX.min(lifetime / BACKDATE_SHARE));
    let to = now.saturating_add(lifetime);
    let to = ca_valid_to.map_or(to, |latest| to.min(Duration::from_millis(latest.unix_ms())));
    // Whole seconds are all that a certificate can say.
    let at = |since_1970: Duration| date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970.as_secs());
    (params.not_before, params.not_after) = (at(from), at(to));
}

/// The first certificate of a PEM file, without what may stand around it.
fn first_certificate(text: &str) -> Option<&str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let begin = text.find(BEGIN)?;
    let length = text[begin..].find(END)? + END.len();
    Some(&text[begin..begin + length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::describe;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn host() -> HostId {
        HostId::new("host-a").unwrap()
    }

    #[test]
    fn a_second_init_refuses_to_overwrite_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        Ca::init(dir.path()).unwrap();
        let before = fs::read(dir.path().join(CA_KEY)).unwrap();
        assert!(matches!(Ca::init(dir.path()), Err(CaError::Exists(_))));
        assert_eq!(fs::read(dir.path().join(CA_KEY)).unwrap(), before);
    }

    #[test]
    fn a_missing_ca_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let message = Ca::open(dir.path()).err().unwrap().to_string();
        assert!(message.contains("ca init"), "{message}");
    }

    #[test]
    fn a_key_of_another_ca_is_refused_before_it_signs_anything() {
        let dir = tempfile::tempdir().unwrap();
        Ca::init(&dir.path().join("one")).unwrap();
        Ca::init(&dir.path().join("two")).unwrap();
        let mixed = Ca::load(&dir.path().join("one/ca.pem"), &dir.path().join("two/ca.key"));
        assert!(matches!(mixed, Err(CaError::Mismatch { .. })));
    }

    #[test]
    fn an_agents_certificate_names_its_host_alone_and_is_for_clients_only() {
        let dir = tempfile::tempdir().unwrap();
        Ca::init(dir.path()).unwrap();
        let issued = Ca::open(dir.path()).unwrap().issue_agent(&host(), Lifetime::BY_HAND).unwrap();
        assert_eq!(identity(&der(&issued.certificate)).unwrap().dns_names, ["host-a"]);
        let facts = describe(&der(&issued.certificate)).unwrap();
        assert!(facts.client && !facts.server && !facts.ca);
        assert!((364..=366).contains(&facts.days_left), "{}", facts.days_left);
    }

    #[test]
    fn a_signing_request_gets_the_brains_idea_of_its_host_and_nothing_that_it_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(vec!["gnomon-brain".to_owned(), "host-b".to_owned()]).unwrap();
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let request = wanted.serialize_request(&key).unwrap();
        let lifetime = Lifetime(Duration::from_secs(40));
        let signed = ca.sign_agent(&host(), request.der(), lifetime).unwrap();
        let certificate = der(&signed.certificate);
        let facts = describe(&certificate).unwrap();
        assert!(facts.client && !facts.server && !facts.ca, "{facts}");
        let identity = identity(&certificate).unwrap();
        assert_eq!((identity.dns_names, identity.serial), (vec!["host-a".to_owned()], signed.serial));
        // Dated back by a tenth, and seconds are cut off.
        let life = signed.valid_to.since(identity.valid_from);
        assert!((43..=45).contains(&life.as_secs()), "{life:?}");
        let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    }

    #[test]
    fn no_certificate_outlives_its_ca() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(dir.path()).unwrap();
        let issued = ca.issue_agent(&host(), Lifetime::days(u16::MAX)).unwrap();
        assert_eq!(identity(&der(&issued.certificate)).unwrap().valid_to, ca.valid_to);
    }

    #[test]
    fn a_brains_next_certificate_keeps_its_names_and_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(dir.path()).unwrap();
        let addresses = ["192.0.2.7".to_owned(), "2001:db8::1".to_owned(), "brain.example".to_owned()];
        let present =
            identity(&der(&ca.issue_brain("gnomon-brain", &addresses, Lifetime::BY_HAND).unwrap().certificate))
                .unwrap();
        let next = identity(&der(&ca.reissue_brain(&present, Lifetime::BY_HAND).unwrap().certificate)).unwrap();
        assert_eq!((&next.dns_names, &next.addresses), (&present.dns_names, &present.addresses));
        assert_eq!(next.addresses.len(), 2);
        assert_ne!(next.serial, present.serial);
    }

    #[test]
    fn issuing_twice_into_one_directory_keeps_the_first_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(&dir.path().join("ca")).unwrap();
        let issued = ca.issue_brain("gnomon-brain", &["127.0.0.1".into()], Lifetime::BY_HAND).unwrap();
        issued.write(&dir.path().join("out"), "brain").unwrap();
        assert!(issued.write(&dir.path().join("out"), "brain").is_err());
    }
}
