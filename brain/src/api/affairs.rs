//! What was done: the audit log and the commands, from the store.

use super::{ApiState, Problem, within};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use gnomon_core::{Audit, CommandRecord};
use serde::Deserialize;

/// Lines returned when the request does not say.
pub const LIMIT_DEFAULT: u32 = 100;
/// Most lines returned at a time.
const LIMIT_MAX: u32 = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    #[serde(default = "limit_default")]
    limit: u32,
}

fn limit_default() -> u32 {
    LIMIT_DEFAULT
}

/// The latest lines of the audit log, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "affairs", security(("token" = [])),
    params(("limit" = Option<u32>, Query, description = "At most this many, 100 by default, 10000 at most")),
    responses((status = 200, description = "Who did what to what, when", body = Vec<Object>), (status = 401, body = Problem)))]
pub(super) async fn audit(
    State(state): State<ApiState>,
    query: Result<Query<Limit>, QueryRejection>,
) -> Result<Json<Vec<Audit>>, Problem> {
    state.drive()?;
    Ok(Json(within(state.store.audit(query?.limit.min(LIMIT_MAX))).await??))
}

/// The latest commands, newest first, each with its outcome as far as there is one.
#[utoipa::path(get, path = "/api/v1/commands", tag = "affairs", security(("token" = [])),
    params(("limit" = Option<u32>, Query, description = "At most this many, 100 by default, 10000 at most")),
    responses((status = 200, description = "Commands", body = Vec<Object>), (status = 401, body = Problem)))]
pub(super) async fn commands(
    State(state): State<ApiState>,
    query: Result<Query<Limit>, QueryRejection>,
) -> Result<Json<Vec<CommandRecord>>, Problem> {
    state.drive()?;
    Ok(Json(within(state.store.commands(query?.limit.min(LIMIT_MAX))).await??))
}
