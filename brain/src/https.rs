//! HTTP clients, with TLS by the authorities that the system trusts.

use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// A client whose requests take this long at most. It follows no redirect and takes no status for an error.
pub fn agent(url: &str, timeout: Duration) -> Agent {
    // Reading the system's authorities takes a moment, and plain HTTP needs none of them.
    let is_tls = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    let authorities = if is_tls { rustls_native_certs::load_native_certs().certs } else { Vec::new() };
    let authorities: Vec<_> = authorities.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls);
    config.build().new_agent()
}
