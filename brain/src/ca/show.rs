//! Reading certificates: for people (`gnomon-brain ca show`) and for the identity check of a connection.

use super::{CaError, Serial};
use gnomon_common::time::Timestamp;
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

/// What a person wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it names.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its DNS names.
    pub dns_names: Vec<String>,
    /// It may sign others.
    pub ca: bool,
    /// It may be shown by a server (a brain).
    pub server: bool,
    /// It may be shown by a client (an agent).
    pub client: bool,
    /// Its serial number.
    pub serial: Serial,
    /// Last instant of validity, as text.
    pub not_after: String,
    /// Days until then; negative once expired.
    pub days_left: i64,
}

impl fmt::Display for CertificateFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match (self.ca, self.server, self.client) {
            (true, ..) => "certificate authority",
            (_, true, _) => "brain (server)",
            (_, _, true) => "agent (client)",
            _ => "neither brain nor agent",
        };
        writeln!(f, "subject    {}", self.subject)?;
        writeln!(f, "issuer     {}", self.issuer)?;
        writeln!(f, "role       {role}")?;
        writeln!(f, "names      {}", if self.dns_names.is_empty() { "-".into() } else { self.dns_names.join(", ") })?;
        writeln!(f, "serial     {}", self.serial)?;
        write!(f, "valid to   {} ({} days)", self.not_after, self.days_left)
    }
}

/// What a certificate says of its bearer: what programs decide by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The DNS names in its subject alternative name, in its order.
    pub dns_names: Vec<String>,
    /// The IP addresses there.
    pub addresses: Vec<IpAddr>,
    /// Which certificate of its CA it is.
    pub serial: Serial,
    /// Valid from.
    pub valid_from: Timestamp,
    /// Valid to.
    pub valid_to: Timestamp,
}

/// Reads a certificate's identity. It verifies nothing: that is TLS's task.
pub fn identity(der: &CertificateDer<'_>) -> Result<Identity, CaError> {
    let certificate = parse(der)?;
    let (dns_names, addresses) = names(&certificate)?;
    Ok(Identity {
        dns_names,
        addresses,
        serial: Serial::of(certificate.raw_serial()),
        valid_from: timestamp(certificate.validity().not_before),
        valid_to: timestamp(certificate.validity().not_after),
    })
}

/// Everything worth showing of a certificate.
pub fn describe(der: &CertificateDer<'_>) -> Result<CertificateFacts, CaError> {
    let certificate = parse(der)?;
    let usage = certificate.extended_key_usage().map_err(unreadable)?.map(|extension| extension.value);
    let not_after = certificate.validity().not_after;
    Ok(CertificateFacts {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        dns_names: names(&certificate)?.0,
        ca: certificate.is_ca(),
        server: usage.is_some_and(|usage| usage.server_auth),
        client: usage.is_some_and(|usage| usage.client_auth),
        serial: Serial::of(certificate.raw_serial()),
        not_after: not_after.to_string(),
        days_left: (not_after.timestamp() - jiff::Timestamp::now().as_second()).div_euclid(86_400),
    })
}

fn names(certificate: &X509Certificate<'_>) -> Result<(Vec<String>, Vec<IpAddr>), CaError> {
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
    let extension = certificate.subject_alternative_name().map_err(unreadable)?;
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    Ok((dns_names, addresses))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A certificate's times have whole seconds; those before 1970 are as good as 1970.
fn timestamp(time: ASN1Time) -> Timestamp {
    Timestamp::from_unix_ms(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(unreadable)
}

fn unreadable(error: impl fmt::Display) -> CaError {
    CaError::Unreadable { path: Path::new("certificate").to_owned(), reason: error.to_string() }
}
