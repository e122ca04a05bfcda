//! How the brain itself is.

use super::{ApiState, Problem};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use gnomon_core::Mode;
use serde::{Deserialize, Serialize};

/// The brain at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// Its release.
    pub version: String,
    /// What this brain, which leads, is called: host, agents' port and a mark of this process.
    pub leader: String,
    /// Its lease term.
    pub term: u64,
    /// What it does with plans at most, wherever: what policy says, or less by an operator's word about the fleet.
    pub mode: Mode,
    /// When the process started, in milliseconds since the epoch.
    pub started_ms: u64,
    /// Whether the store accepts writes; while it does not, nothing is acknowledged and no command is sent.
    pub store_writable: bool,
    /// Hosts known.
    pub hosts: usize,
    /// Hosts whose agent is connected.
    pub hosts_connected: usize,
    /// VMs known.
    pub vms: usize,
    /// VMs with an operator's hold on them, or on a means of theirs.
    pub vms_held: usize,
    /// VMs that their agents stand down for, because someone else changed their limits.
    pub vms_stood_down: usize,
    /// Commands sent and not yet answered.
    pub commands_in_flight: usize,
    /// Planned actions that wait for an operator's approval.
    pub proposals_open: usize,
}

/// The brain at a glance.
#[utoipa::path(get, path = "/api/v1/status", tag = "brain", security(("token" = [])),
    responses((status = 200, body = Status), (status = 401, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<Status>, Problem> {
    let term = state.drive()?.term();
    let (mode, hosts, vms, proposals_open) = state
        .ask(|desk| (desk.core.mode_of_fleet().mode, desk.core.hosts(), desk.core.vms(), desk.core.proposals_open()))
        .await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leader: state.name.to_string(),
        term,
        mode,
        started_ms: state.started.unix_ms(),
        store_writable: !state.telemetry.journal.is_failing(),
        hosts: hosts.len(),
        hosts_connected: hosts.iter().filter(|host| host.connected).count(),
        vms: vms.len(),
        vms_held: vms.iter().filter(|vm| vm.hold.is_some() || !vm.held.is_empty()).count(),
        vms_stood_down: vms.iter().filter(|vm| vm.stood_down).count(),
        commands_in_flight: vms.iter().filter(|vm| vm.in_flight.is_some()).count(),
        proposals_open,
    }))
}

/// 200 while this brain leads, its loop answers and the store accepts writes, else 503 with the reason. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "brain",
    responses((status = 200, body = String), (status = 503, body = Problem)))]
pub(super) async fn healthz(State(state): State<ApiState>) -> Result<&'static str, Problem> {
    state.ask(|_| ()).await?;
    if state.telemetry.journal.is_failing() {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store does not accept writes; see the brain's log",
        ));
    }
    Ok("ok\n")
}
