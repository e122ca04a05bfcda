//! Making the CA and issuing from it.

use super::{CA_CERTIFICATE, CA_KEY, CaError};
use crate::secret;
use gnomon_common::wire::HostId;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::{Path, PathBuf};

/// How long a certificate is valid, in days from today. It is valid from yesterday on, so that a clock that is late
/// does not refuse it.
#[derive(Clone, Copy, Debug)]
pub struct Days(pub u16);

impl Days {
    /// The CA: ten years. Replacing it means a new certificate on every host.
    pub const CA: Self = Self(3650);
    /// A brain or an agent: a year, so that a lost key does not serve for ever.
    pub const LEAF: Self = Self(365);
}

/// A CA with its key, ready to issue.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
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

impl Ca {
    /// Makes a CA in `dir` (created if needed); refuses where there is one.
    pub fn init(dir: &Path) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if let Some(existing) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
            return Err(CaError::Exists(existing.clone()));
        }
        fs::create_dir_all(dir).map_err(|source| secret::SecretError::Io { path: dir.to_owned(), source })?;
        let key = KeyPair::generate()?;
        let mut params = validity(CertificateParams::default(), Days::CA);
        params.distinguished_name = named("Gnomon CA");
        // No intermediate CAs: everything is issued from this one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        secret::write_new(&key_path, &key.serialize_pem())?;
        secret::write_new_public(&certificate_path, &certificate_pem)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// Opens the CA in `dir`.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if !certificate_path.exists() || !key_path.exists() {
            return Err(CaError::Missing(dir.to_owned()));
        }
        let key = KeyPair::from_pem(&secret::read(&key_path)?)?;
        let certificate_pem = fs::read_to_string(&certificate_path)
            .map_err(|source| secret::SecretError::Io { path: certificate_path.clone(), source })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// Issues a brain's certificate for `name` and, where given, further DNS names and IP addresses.
    pub fn issue_brain(&self, name: &str, addresses: &[String], days: Days) -> Result<Issued, CaError> {
        let names = std::iter::once(name.to_owned()).chain(addresses.iter().cloned()).collect::<Vec<_>>();
        self.issue(name, names, ExtendedKeyUsagePurpose::ServerAuth, days)
    }

    /// Issues the certificate with which an agent speaks for `host`.
    pub fn issue_agent(&self, host: &HostId, days: Days) -> Result<Issued, CaError> {
        self.issue(host.as_str(), vec![host.as_str().to_owned()], ExtendedKeyUsagePurpose::ClientAuth, days)
    }

    fn issue(
        &self,
        common_name: &str,
        subject_alt_names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        days: Days,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let mut params = validity(CertificateParams::new(subject_alt_names)?, days);
        params.distinguished_name = named(common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { ca: self.certificate_pem.clone(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Issued {
    /// Writes `ca.pem`, `STEM.pem` and `STEM.key` into `dir` (created if needed); overwrites nothing but an identical
    /// `ca.pem`. Returns the paths written.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<Vec<PathBuf>, CaError> {
        fs::create_dir_all(dir).map_err(|source| secret::SecretError::Io { path: dir.to_owned(), source })?;
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

fn validity(mut params: CertificateParams, days: Days) -> CertificateParams {
    let today = Timestamp::now().to_zoned_datetime(TimeZone::UTC).date();
    let day = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(today.saturating_sub(1.day()));
    params.not_after = day(today.saturating_add(i64::from(days.0).days()));
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{describe, dns_names};
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

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
    fn an_agents_certificate_names_its_host_alone_and_is_for_clients_only() {
        let dir = tempfile::tempdir().unwrap();
        Ca::init(dir.path()).unwrap();
        let issued = Ca::open(dir.path()).unwrap().issue_agent(&HostId::new("host-a").unwrap(), Days::LEAF).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        assert_eq!(dns_names(&der).unwrap(), ["host-a"]);
        let facts = describe(&der).unwrap();
        assert!(facts.client && !facts.server && !facts.ca);
        assert!((364..=366).contains(&facts.days_left), "{}", facts.days_left);
    }

    #[test]
    fn issuing_twice_into_one_directory_keeps_the_first_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(&dir.path().join("ca")).unwrap();
        let issued = ca.issue_brain("gnomon-brain", &["127.0.0.1".into()], Days::LEAF).unwrap();
        issued.write(&dir.path().join("out"), "brain").unwrap();
        assert!(issued.write(&dir.path().join("out"), "brain").is_err());
    }
}
