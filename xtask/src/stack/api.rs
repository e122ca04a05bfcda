//! A client of the brain's API, as far as demo and tests need one.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ureq::Body;
use ureq::http::Response;

use crate::lab::Published;

/// No request of the lab takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The brain's API.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    /// What makes the address lead to the brain, where it lives in a network of its own.
    _published: Option<Published>,
    token: String,
    client: ureq::Agent,
}

impl Api {
    pub(super) fn new(published: Published, token: String) -> Self {
        let address = published.address();
        Self { _published: Some(published), ..Self::at(address, token) }
    }

    /// A brain that this process reaches by itself.
    pub(super) fn at(address: SocketAddr, token: String) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Self { address, _published: None, token, client: config.into() }
    }

    /// Where it is, reachable from this process.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The answer to a GET; text that is not JSON comes as a string.
    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.client.get(self.url(path)).header("authorization", self.bearer());
        answer("GET", path, request.call())
    }

    /// The answer to a POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.post(self.url(path)).header("authorization", self.bearer());
        answer("POST", path, request.send_json(body))
    }

    /// The answer to a PUT of JSON.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.put(self.url(path)).header("authorization", self.bearer());
        answer("PUT", path, request.send_json(body))
    }

    /// The answer to a DELETE.
    pub fn delete(&self, path: &str) -> Result<Value> {
        let request = self.client.delete(self.url(path)).header("authorization", self.bearer());
        answer("DELETE", path, request.call())
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

fn answer(verb: &str, path: &str, response: Result<Response<Body>, ureq::Error>) -> Result<Value> {
    let mut response = response.with_context(|| format!("{verb} {path}"))?;
    let text = response.body_mut().read_to_string()?;
    ensure!(response.status().is_success(), "{verb} {path}: {} {text}", response.status());
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
