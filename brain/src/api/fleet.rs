//! Hosts and VMs: what they are, what they will want, why they have what they have.

use super::{ApiState, Problem};
use crate::drive::{Desk, HistoryPoint};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, VmId};
use gnomon_core::view::{Explanation, Forecast, HostView, VmView};
use serde::Deserialize;

/// Every known host.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "fleet", security(("token" = [])),
    responses((status = 200, description = "A list of hosts: facts, load, holds, losses", body = Vec<Object>),
        (status = 401, body = Problem)))]
pub(super) async fn hosts(State(state): State<ApiState>) -> Result<Json<Vec<HostView>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.hosts()).await?))
}

/// One host.
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "fleet", security(("token" = [])),
    params(("host" = String, Path, description = "The host's name")),
    responses((status = 200, description = "The host", body = Object), (status = 404, body = Problem)))]
pub(super) async fn host(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<HostView>, Problem> {
    let Path(name) = path?;
    let unknown = || Problem::not_found(format!("no host is named {name:?}"));
    let id = HostId::new(name.as_str()).map_err(|_| unknown())?;
    state.ask(move |desk| desk.core.host(&id)).await?.map(Json).ok_or_else(unknown)
}

/// Every known VM.
#[utoipa::path(get, path = "/api/v1/vms", tag = "fleet", security(("token" = [])),
    responses((status = 200, description = "A list of VMs: place, state, demand, allocation", body = Vec<Object>),
        (status = 401, body = Problem)))]
pub(super) async fn vms(State(state): State<ApiState>) -> Result<Json<Vec<VmView>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.vms()).await?))
}

/// One VM.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it")),
    responses((status = 200, description = "The VM", body = Object), (status = 404, body = Problem)))]
pub(super) async fn vm(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<VmView>, Problem> {
    of_vm(&state, path?.0, |desk, id| desk.core.vms().into_iter().find(|view| view.vm == id))
        .await?
        .map(Json)
        .ok_or_else(gone)
}

/// What a VM will want; `null` while there is too little history to say.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/forecast", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it")),
    responses((status = 200, description = "Quantiles of CPU demand, step by step", body = Object),
        (status = 404, body = Problem)))]
pub(super) async fn forecast(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Option<Forecast>>, Problem> {
    Ok(Json(of_vm(&state, path?.0, |desk, id| desk.core.forecast(id)).await?))
}

/// Why a VM has the size it has.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/explain", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it")),
    responses((status = 200, description = "What the planner wants, why, and what it did lately", body = Object),
        (status = 404, body = Problem)))]
pub(super) async fn explain(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Explanation>, Problem> {
    of_vm(&state, path?.0, |desk, id| desk.core.explain(id)).await?.map(Json).ok_or_else(gone)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    #[serde(default)]
    since_ms: u64,
}

/// What a VM wanted and had in its latest windows, oldest first.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/history", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("since_ms" = Option<u64>, Query, description = "Only windows that began then or later, in ms since the epoch")),
    responses((status = 200, body = Vec<HistoryPoint>), (status = 404, body = Problem)))]
pub(super) async fn history(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Json<Vec<HistoryPoint>>, Problem> {
    let since = Timestamp::from_unix_ms(query?.since_ms);
    let points = of_vm(&state, path?.0, move |desk, id| desk.recent.since(id, since)).await?;
    Ok(Json(points.unwrap_or_default()))
}

/// Finds a VM by id or name and looks at it, in one question.
async fn of_vm<R: Send + 'static>(
    state: &ApiState,
    id_or_name: String,
    look: impl FnOnce(&Desk, VmId) -> R + Send + 'static,
) -> Result<R, Problem> {
    let asked = id_or_name.clone();
    let seen = state.ask(move |desk| desk.core.find_vm(&asked).map(|id| look(desk, id))).await?;
    seen.ok_or_else(|| {
        Problem::not_found(format!("no VM, or more than one, is named {id_or_name:?}; see /api/v1/vms for UUIDs"))
    })
}

fn gone() -> Problem {
    Problem::not_found("the VM is gone")
}
