//! What operators ask for: pause, resume, release.

use super::auth::Actor;
use super::{ApiState, Problem, within};
use crate::drive::{Desk, Event};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use gnomon_common::wire::{CommandId, HostId, VmId};
use gnomon_core::view::VmView;
use gnomon_core::{OperatorRequest, Scope};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Where a request applies: `"fleet"`, `{"host": "NAME"}` or `{"vm": "UUID or NAME"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ScopeBody {
    /// Everything.
    Fleet,
    /// One host, by name, with every VM on it now and later.
    Host(String),
    /// One VM, by UUID, or by name where only one VM has it.
    Vm(String),
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperateBody {
    /// Where.
    pub scope: ScopeBody,
}

/// What a request did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Operated {
    /// The scope, with a VM as its UUID.
    #[schema(value_type = Object)]
    pub scope: Scope,
    /// `true` when it was only asked what would happen.
    pub dry_run: bool,
    /// The VMs within the scope now.
    pub vms: Vec<TouchedVm>,
}

/// A VM within a request's scope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TouchedVm {
    /// Its UUID.
    #[schema(value_type = String)]
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it is.
    #[schema(value_type = String)]
    pub host: HostId,
    /// Its CPU quota now, in cores; `null` is unlimited. A release restores what its agent noted before the first
    /// change.
    pub quota_cores: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DryRun {
    #[serde(default)]
    pub(super) dry_run: bool,
}

type Body = Result<Json<OperateBody>, JsonRejection>;
type Ask = Result<Query<DryRun>, QueryRejection>;
type Answer = Result<Json<Operated>, Problem>;

/// Plan nothing within the scope until resumed; observing and forecasting go on.
#[utoipa::path(post, path = "/api/v1/pause", tag = "operate", security(("token" = [])), request_body = OperateBody,
    params(("dry_run" = Option<bool>, Query, description = "Only tell what it would touch")),
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn pause(State(state): State<ApiState>, actor: Extension<Actor>, ask: Ask, body: Body) -> Answer {
    operate(&state, actor.0, ask, body, |scope| OperatorRequest::Pause { scope }).await
}

/// End a pause, the standing down after a release, what operators set by hand, and what agents stand down for.
#[utoipa::path(post, path = "/api/v1/resume", tag = "operate", security(("token" = [])), request_body = OperateBody,
    params(("dry_run" = Option<bool>, Query, description = "Only tell what it would touch")),
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn resume(State(state): State<ApiState>, actor: Extension<Actor>, ask: Ask, body: Body) -> Answer {
    operate(&state, actor.0, ask, body, |scope| OperatorRequest::Resume { scope }).await
}

/// Restore what every VM within the scope had before Gnomon's first change, and stand down there until resumed.
#[utoipa::path(post, path = "/api/v1/release", tag = "operate", security(("token" = [])), request_body = OperateBody,
    params(("dry_run" = Option<bool>, Query, description = "Only tell what it would touch")),
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn release(State(state): State<ApiState>, actor: Extension<Actor>, ask: Ask, body: Body) -> Answer {
    operate(&state, actor.0, ask, body, |scope| OperatorRequest::Release { scope }).await
}

/// Resolves the scope and, unless it is a dry run, returns once the core has taken the request and all that follows is
/// synced.
async fn operate(
    state: &ApiState,
    Actor(actor): Actor,
    ask: Ask,
    body: Body,
    request: impl FnOnce(Scope) -> OperatorRequest,
) -> Answer {
    let Query(DryRun { dry_run }) = ask?;
    let Json(OperateBody { scope }) = body?;
    let (scope, vms) = state.ask(move |desk| resolve(desk, &scope)).await??;
    if !dry_run {
        carry_out(state, actor, request(scope.clone())).await?;
    }
    Ok(Json(Operated { scope, dry_run, vms }))
}

/// Returns the commands that came of a request, once the core has taken it and all that follows is synced.
pub(super) async fn carry_out(
    state: &ApiState,
    actor: String,
    request: OperatorRequest,
) -> Result<Vec<CommandId>, Problem> {
    let (synced, done) = oneshot::channel();
    let event = Event::Operator { actor, request, synced };
    let drive = state.drive()?;
    let carried_out = async {
        drive.events().send(event).await.map_err(|_| ())?;
        done.await.map_err(|_| ())
    };
    let pending =
        "the request may have been taken but is not stored yet: the store or the brain is in trouble; ask again";
    within(carried_out)
        .await
        .and_then(|done| done.map_err(|()| Problem::unavailable("")))
        .map_err(|_| Problem::unavailable(pending))
}

pub(super) fn resolve(desk: &Desk, scope: &ScopeBody) -> Result<(Scope, Vec<TouchedVm>), Problem> {
    let scope = match scope {
        ScopeBody::Fleet => Scope::Fleet,
        ScopeBody::Host(name) => {
            let host = HostId::new(name.as_str())
                .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
            desk.core.host(&host).ok_or_else(|| Problem::not_found(format!("no host is named {name:?}")))?;
            Scope::Host(host)
        }
        ScopeBody::Vm(name) => {
            let vm = desk.core.find_vm(name);
            Scope::Vm(vm.ok_or_else(|| Problem::not_found(format!("no VM, or more than one, is named {name:?}")))?)
        }
    };
    let within = |view: &VmView| match &scope {
        Scope::Fleet => true,
        Scope::Host(host) => view.host == *host,
        Scope::Vm(vm) => view.vm == *vm,
    };
    let touched = desk.core.vms().into_iter().filter(within).map(|view| TouchedVm {
        vm: view.vm,
        name: view.name,
        host: view.host,
        quota_cores: view.allocation.quota_cores,
    });
    let vms = touched.collect();
    Ok((scope, vms))
}
