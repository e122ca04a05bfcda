//! A whole brain in this process, on ports of its own, with a CA of its own.

use crate::agent::host;
use gnomon_brain::api::Tokens;
use gnomon_brain::ca::{BRAIN_NAME, Ca, Issued, Lifetime};
use gnomon_brain::config::{Config, EXAMPLE};
use gnomon_brain::service::Service;
use gnomon_brain::store::{SqlStore, Store};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A directory as `gnomon-brain init` makes it.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    ca: Ca,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::init(dir.path()).unwrap();
        ca.issue_brain(BRAIN_NAME, &[], Lifetime::BY_HAND).unwrap().write(dir.path(), "brain").unwrap();
        Tokens::init(&dir.path().join("tokens")).unwrap();
        let home = Self { dir, ca };
        home.write_config(|text| text);
        home
    }

    /// Writes the example configuration with free ports and without hurry, changed by `change`.
    pub(crate) fn write_config(&self, change: impl FnOnce(String) -> String) {
        let text = EXAMPLE
            .replace("0.0.0.0:7443", "127.0.0.1:0")
            .replace("127.0.0.1:7480", "127.0.0.1:0")
            .replace("heartbeat_ms = 5000", "heartbeat_ms = 30000");
        std::fs::write(self.config_path(), change(text)).unwrap();
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("brain.toml")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    pub(crate) fn token(&self) -> String {
        Tokens::open(&self.token_file()).unwrap().first().unwrap().to_owned()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("brain.db")
    }

    pub(crate) fn agent(&self, name: &str) -> Issued {
        self.ca.issue_agent(&host(name), Lifetime::BY_HAND).unwrap()
    }

    /// A brain's certificate of the same CA: good, but not for a client.
    pub(crate) fn brain_certificate(&self, name: &str) -> Issued {
        self.ca.issue_brain(name, &[], Lifetime::BY_HAND).unwrap()
    }
}

/// A brain that runs.
pub(crate) struct Brain {
    pub(crate) service: Service,
    pub(crate) agents: SocketAddr,
    api: SocketAddr,
    token: String,
}

impl Brain {
    /// Starts on the home's database.
    pub(crate) async fn start(home: &Home) -> Self {
        let store = SqlStore::open_sqlite(home.database()).await.unwrap();
        Self::start_on(home, Arc::new(store)).await
    }

    /// Starts on another store.
    pub(crate) async fn start_on(home: &Home, store: Arc<dyn Store>) -> Self {
        let config = Config::load(&home.config_path()).unwrap();
        let service = Service::start(config, store).await.unwrap();
        let (agents, api) = (service.agents_address(), service.api_address());
        let brain = Self { service, agents, api, token: home.token() };
        brain.until("the brain answers", async |brain| brain.status("/healthz", None).await == 200).await;
        brain
    }

    pub(crate) async fn stop(self) {
        self.service.stop().await;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// GETs JSON with the token; panics unless it is there.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, Some(&self.token), None).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// POSTs JSON with the token.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.request("POST", path, Some(&self.token), Some(body.to_string())).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.request("PUT", path, Some(&self.token), Some(body.to_string())).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    pub(crate) async fn status(&self, path: &str, token: Option<&str>) -> u16 {
        self.request("GET", path, token, None).await.0
    }

    pub(crate) async fn request(
        &self,
        method: &'static str,
        path: &str,
        token: Option<&str>,
        body: Option<String>,
    ) -> (u16, String) {
        let url = format!("{}{path}", self.url());
        let token = token.map(str::to_owned);
        tokio::task::spawn_blocking(move || request(method, &url, token.as_deref(), body)).await.unwrap()
    }

    /// The value of a metric without labels, or with exactly these.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let (_, text) = self.request("GET", "/metrics", None, None).await;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until something is true.
    pub(crate) async fn until(&self, what: &str, mut is_true: impl AsyncFnMut(&Self) -> bool) {
        let patience = Instant::now() + crate::agent::PATIENCE;
        while !is_true(self).await {
            assert!(Instant::now() < patience, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn request(method: &str, url: &str, token: Option<&str>, body: Option<String>) -> (u16, String) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = match body {
        Some(body) => agent.run(request.header("content-type", "application/json").body(body).unwrap()),
        None => agent.run(request.body(()).unwrap()),
    }
    .unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

/// What a reader of the database finds, without the brain.
pub(crate) async fn count(database: &Path, sql: &'static str) -> i64 {
    use sqlx::Connection;
    let url = format!("sqlite://{}", database.display());
    let mut db = sqlx::sqlite::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}
