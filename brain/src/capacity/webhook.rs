//! A provider that is an HTTP service: the document is posted to it, signed by a secret that both have.
//!
//! The signature is over `TIMESTAMP.BODY`, so that nobody can change a request or send an old one as a new one.

use super::{ANSWER_BYTES_MAX, Provider, ProviderError, document, first_line};
use crate::clock;
use crate::https;
use crate::secret;
use gnomon_core::{CapacityAnswer, CapacityRequest};
use ring::hmac;
use serde::Deserialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::Agent;
use url::Url;

pub(super) struct Webhook {
    agent: Agent,
    url: String,
    secret_file: PathBuf,
}

/// What a provider may answer.
#[derive(Deserialize)]
struct Answer {
    reference: String,
}

impl Webhook {
    /// Fails where the secret cannot be read: better now than when it is needed.
    pub(super) fn open(url: &Url, secret_file: &Path, timeout: Duration) -> Result<Self, ProviderError> {
        secret_of(secret_file)?;
        let agent = https::agent(url.as_str(), timeout);
        Ok(Self { agent, url: url.to_string(), secret_file: secret_file.to_owned() })
    }

    fn post(&self, request: &CapacityRequest) -> Result<CapacityAnswer, Box<dyn std::error::Error>> {
        let body = document(request);
        let timestamp = (clock::now().unix_ms() / 1000).to_string();
        // Read anew each time, so that it can be replaced.
        let signature = sign(secret_of(&self.secret_file)?.as_bytes(), &timestamp, &body);
        let posted = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("idempotency-key", request.key.to_string())
            .header("x-gnomon-timestamp", timestamp)
            .header("x-gnomon-signature", format!("sha256={signature}"))
            .send(body);
        let mut response = posted?;
        let status = response.status();
        let said = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        if status.is_success() {
            let answer = said.ok().and_then(|said| serde_json::from_str::<Answer>(&said).ok());
            return Ok(CapacityAnswer::Accepted(answer.map_or_else(String::new, |answer| answer.reference)));
        }
        let line = said.map_or_else(|_| String::new(), |said| first_line(&said).to_owned());
        let said = format!("it answers {status} {line}").trim_end().to_owned();
        let is_for_good = status.is_client_error() && ![408, 429].contains(&status.as_u16());
        Ok(if is_for_good { CapacityAnswer::Refused(said) } else { CapacityAnswer::Unreachable(said) })
    }
}

impl Provider for Webhook {
    fn ask(&self, request: &CapacityRequest) -> CapacityAnswer {
        self.post(request).unwrap_or_else(|error| CapacityAnswer::Unreachable(error.to_string()))
    }
}

fn secret_of(file: &Path) -> Result<String, ProviderError> {
    let secret = secret::read(file)?.trim_end().to_owned();
    if secret.is_empty() { Err(ProviderError::EmptySecret(file.to_owned())) } else { Ok(secret) }
}

/// HMAC-SHA-256 (RFC 2104) of `TIMESTAMP.BODY`, as hexadecimal digits.
fn sign(secret: &[u8], timestamp: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{timestamp}.{body}").as_bytes());
    tag.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_what_other_programs_make_of_the_same() {
        // printf '1700000000.{"cores":1}' | openssl dgst -sha256 -hmac secret
        let expected = "adbcffa0bf006cc66e3e2b7de74b267867398f65c3d32b17b48f3daf7b61b7ea";
        assert_eq!(sign(b"secret", "1700000000", "{\"cores\":1}"), expected);
    }
}
