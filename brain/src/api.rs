//! HTTP for people and programs: `/api/v1/...`, `/metrics`, `/healthz`.
//!
//! Everything under `/api/v1` but the OpenAPI document wants a bearer token. Errors are problem documents (RFC 9457).
//! Handlers hold no state: they ask the loop that owns the core, or read the store, and answer 503 when neither answers
//! in time.

mod affairs;
mod auth;
mod capacity;
mod fleet;
mod metrics;
mod modes;
mod moves;
mod openapi;
mod operate;
mod problem;
mod proposals;
mod set;
mod shadows;
mod status;

pub use affairs::LIMIT_DEFAULT;
pub use auth::{Tokens, TokensError};
pub use fleet::ArchivedStep;
pub use metrics::ApiMetrics;
pub use modes::ModeBody;
pub use moves::{AbortAnswer, MigrateAnswer, MigrateBody};
pub use operate::{OperateBody, Operated, ScopeBody, TouchedVm};
pub use problem::Problem;
pub use set::{SetAnswer, SetBody};
pub use shadows::{FidelityBody, ShadowAnswer, TrialBody};
pub use status::Status;

use crate::drive::{Desk, DriveHandle};
use crate::role::Role;
use crate::store::Store;
use crate::telemetry::Telemetry;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Largest request body: a scope is a few dozen bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// How long a handler waits for the loop or the store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What handlers share.
#[derive(Clone)]
pub struct ApiState {
    /// Whether this brain leads, and then by which loop.
    pub role: watch::Receiver<Role>,
    /// What this brain is called among those of its database.
    pub name: Arc<str>,
    /// Audit and commands are read from here.
    pub store: Arc<dyn Store>,
    /// Who may ask.
    pub tokens: Arc<Tokens>,
    /// For `/metrics`.
    pub telemetry: Telemetry,
    /// When the process started.
    pub started: gnomon_common::time::Timestamp,
}

impl ApiState {
    fn drive(&self) -> Result<DriveHandle, Problem> {
        match &*self.role.borrow() {
            Role::Leading(drive) => Ok(drive.clone()),
            other => Err(Problem::unavailable(other.excuse())),
        }
    }

    /// Asks the loop, within [`ANSWER_TIMEOUT`].
    async fn ask<R: Send + 'static>(&self, look: impl FnOnce(&Desk) -> R + Send + 'static) -> Result<R, Problem> {
        let drive = self.drive()?;
        within(drive.ask(look)).await?.map_err(Problem::from)
    }
}

async fn within<T>(answer: impl Future<Output = T>) -> Result<T, Problem> {
    timeout(ANSWER_TIMEOUT, answer)
        .await
        .map_err(|_| Problem::unavailable(format!("no answer within {ANSWER_TIMEOUT:?}")))
}

/// The whole of the API.
pub fn router(state: ApiState) -> Router {
    let guarded = Router::new()
        .route("/status", get(status::status))
        .route("/hosts", get(fleet::hosts))
        .route("/hosts/{host}", get(fleet::host))
        .route("/vms", get(fleet::vms))
        .route("/vms/{vm}", get(fleet::vm))
        .route("/vms/{vm}/forecast", get(fleet::forecast))
        .route("/vms/{vm}/explain", get(fleet::explain))
        .route("/vms/{vm}/history", get(fleet::history))
        .route("/vms/{vm}/archive", get(fleet::archive))
        .route("/alerts", get(fleet::alerts))
        .route("/vms/{vm}/set", post(set::set))
        .route("/vms/{vm}/migrate", post(moves::migrate).delete(moves::abort))
        .route("/hosts/{host}/drain", post(moves::drain).delete(moves::undrain))
        .route("/shadows", get(shadows::list))
        .route(
            "/vms/{vm}/shadow",
            get(shadows::show).post(shadows::make).put(shadows::fidelity).delete(shadows::retire),
        )
        .route("/vms/{vm}/shadow/trial", post(shadows::trial))
        .route("/capacity", get(capacity::list))
        .route("/capacity/{key}/approve", post(capacity::approve))
        .route("/capacity/{key}/deny", post(capacity::deny))
        .route("/proposals", get(proposals::list))
        .route("/proposals/{key}/approve", post(proposals::approve))
        .route("/proposals/{key}/deny", post(proposals::deny))
        .route("/audit", get(affairs::audit))
        .route("/commands", get(affairs::commands))
        .route("/pause", post(operate::pause))
        .route("/resume", post(operate::resume))
        .route("/release", post(operate::release))
        .route("/mode", get(modes::list).post(modes::set))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::require_token));
    Router::new()
        .nest("/api/v1", guarded)
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(status::healthz))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), metrics::count))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, state: ApiState, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(state)).with_graceful_shutdown(stop.cancelled_owned()).await
}
