//! Hosts and VMs: what they are, what they will want, why they have what they have.

use super::{ApiState, Problem, within};
use crate::drive::{Desk, HistoryPoint};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, VmId};
use gnomon_core::archive::Kpi;
use gnomon_core::view::{Alert, Explanation, Forecast, HostView, VmView};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How far forecasts reach.
const AHEAD_MAX: Duration = Duration::from_hours(30 * 24);

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
    responses((status = 200, description = "A list of VMs: place, state, demand, allocation", body = Vec<VmView>),
        (status = 401, body = Problem)))]
pub(super) async fn vms(State(state): State<ApiState>) -> Result<Json<Vec<VmView>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.vms()).await?))
}

/// One VM.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it")),
    responses((status = 200, description = "The VM", body = VmView), (status = 404, body = Problem)))]
pub(super) async fn vm(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<VmView>, Problem> {
    of_vm(&state, path?.0, |desk, id| desk.core.vms().into_iter().find(|view| view.vm == id))
        .await?
        .map(Json)
        .ok_or_else(gone)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ahead {
    ahead_s: Option<u64>,
}

/// What a VM will want; `null` while there is too little history to say.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/forecast", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("ahead_s" = Option<u64>, Query, description = "How far ahead, in seconds, up to 30 days; beyond the policy's horizon in steps of \
            5 minutes, beyond a day in hours. By default the policy's horizon")),
    responses((status = 200, description = "Quantiles of CPU demand, step by step, and the models behind them", body = Object),
        (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn forecast(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Ahead>, QueryRejection>,
) -> Result<Json<Option<Forecast>>, Problem> {
    let ahead = query?.ahead_s.map(Duration::from_secs);
    if ahead.is_some_and(|ahead| ahead > AHEAD_MAX) {
        return Err(Problem::bad_request(format!("ahead_s is over {}: forecasts reach 30 days", AHEAD_MAX.as_secs())));
    }
    let look = move |desk: &Desk, id| match ahead {
        Some(ahead) => desk.core.forecast_for(id, ahead),
        None => desk.core.forecast(id),
    };
    Ok(Json(of_vm(&state, path?.0, look).await?))
}

/// What was out of the ordinary in the last seven days, the latest first; what many VMs had at once is one alert.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "fleet", security(("token" = [])),
    responses((status = 200, description = "Alerts: since when, which VMs, what was expected and what came", body = Vec<Object>),
        (status = 401, body = Problem)))]
pub(super) async fn alerts(State(state): State<ApiState>) -> Result<Json<Vec<Alert>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.alerts()).await?))
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    kpi: Kpi,
    #[serde(default)]
    since_ms: u64,
    #[serde(default = "resolution_default")]
    resolution_s: u64,
}

fn resolution_default() -> u64 {
    300
}

/// One step of a VM's long history.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ArchivedStep {
    /// When it began, in ms since the epoch.
    start_ms: u64,
    /// Mean over the step, in the KPI's unit.
    mean: f64,
    /// The largest window's mean in it.
    max: f64,
}

/// A VM's long history of one KPI, oldest first; steps that were not measured are left out.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/archive", tag = "fleet", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("kpi" = String, Query, description = "cpu (cores), memory (bytes) or cpu_unknown (cores that may have been wanted on top)"),
        ("since_ms" = Option<u64>, Query, description = "Only steps that began then or later, in ms since the epoch"),
        ("resolution_s" = Option<u64>, Query, description = "A multiple of 10; 300 by default. Steps under 5 min are kept for 6 h, under an \
            hour for 5 weeks, others for 400 days")),
    responses((status = 200, body = Vec<ArchivedStep>), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn archive(
    State(state): State<ApiState>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Span>, QueryRejection>,
) -> Result<Json<Vec<ArchivedStep>>, Problem> {
    let Query(Span { kpi, since_ms, resolution_s }) = query?;
    let look = |desk: &Desk, id| desk.core.archive(id).map(|archive| (id, archive));
    let (id, mut archive) = of_vm(&state, path?.0, look).await?.ok_or_else(gone)?;
    let (since, until) = (Timestamp::from_unix_ms(since_ms), Timestamp::from_unix_ms(u64::MAX / 4));
    let resolution = Duration::from_secs(resolution_s);
    let away = archive.away(kpi, since, until, resolution);
    for block in within(state.store.blocks(id, away)).await?? {
        // One that is damaged is a gap.
        if let Err(error) = archive.restore(block) {
            tracing::warn!(vm = %id, %error, "a stored block of history is left out");
        }
    }
    let read = archive.read(kpi, since, until, resolution).map_err(|error| Problem::bad_request(error.to_string()))?;
    let starts_ms =
        (read.start.unix_ms()..).step_by(usize::try_from(read.resolution.as_millis()).unwrap_or(usize::MAX));
    let known = starts_ms.zip(read.steps).filter_map(|(start_ms, step)| {
        let step = step?;
        Some(ArchivedStep { start_ms, mean: step.mean, max: step.max })
    });
    Ok(Json(known.collect()))
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
