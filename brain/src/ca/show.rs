//! Reading certificates: for people (`gnomon-brain ca show`) and for the identity check of a connection.

use super::CaError;
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::path::Path;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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
    /// Last day of validity, as text.
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
        write!(f, "valid to   {} ({} days)", self.not_after, self.days_left)
    }
}

/// The DNS names in a certificate's subject alternative name, in its order.
pub fn dns_names(der: &CertificateDer<'_>) -> Result<Vec<String>, CaError> {
    names(&parse(der)?)
}

/// Everything worth showing of a certificate.
pub fn describe(der: &CertificateDer<'_>) -> Result<CertificateFacts, CaError> {
    let certificate = parse(der)?;
    let usage = certificate.extended_key_usage().map_err(unreadable)?.map(|extension| extension.value);
    let not_after = certificate.validity().not_after;
    Ok(CertificateFacts {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        dns_names: names(&certificate)?,
        ca: certificate.is_ca(),
        server: usage.is_some_and(|usage| usage.server_auth),
        client: usage.is_some_and(|usage| usage.client_auth),
        not_after: not_after.to_string(),
        days_left: (not_after.timestamp() - jiff::Timestamp::now().as_second()).div_euclid(86_400),
    })
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, CaError> {
    let Some(extension) = certificate.subject_alternative_name().map_err(unreadable)? else { return Ok(Vec::new()) };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    Ok(extension.value.general_names.iter().filter_map(dns).collect())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(unreadable)
}

fn unreadable(error: impl fmt::Display) -> CaError {
    CaError::Unreadable { path: Path::new("certificate").to_owned(), reason: error.to_string() }
}
