//! Moves by hand: one VM to another host, or all that are on one elsewhere.

use super::auth::Actor;
use super::operate::{DryRun, Operated, carry_out, resolve};
use super::{ApiState, Problem, ScopeBody};
use crate::drive::Desk;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use gnomon_common::wire::{CommandId, HostId, VmId};
use gnomon_core::{MoveRefusal, OperatorRequest, PlannedAction};
use serde::{Deserialize, Serialize};

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateBody {
    /// The host to go to.
    pub to: String,
}

/// What a request did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MigrateAnswer {
    /// Which VM.
    #[schema(value_type = String)]
    pub vm: VmId,
    /// Where it is.
    #[schema(value_type = String)]
    pub host: HostId,
    /// Where it is to go.
    #[schema(value_type = String)]
    pub to: HostId,
    /// `true` when it was only asked what would happen.
    pub dry_run: bool,
    /// The command that was sent, `TERM-NUMBER`; none in a dry run. What becomes of it: `/api/v1/vms/{vm}/explain` and
    /// `/api/v1/commands`.
    #[schema(value_type = Option<String>)]
    pub command: Option<CommandId>,
    /// What is worth knowing of it, one line each: that it leaves its zone, say.
    pub remarks: Vec<String>,
}

/// Move a running VM to another host now, in any mode. The rules that keep a plan safe hold for it as well; to undo it, move it back.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/migrate", tag = "operate", security(("token" = [])), request_body = MigrateBody,
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell what it would do")),
    responses((status = 200, body = MigrateAnswer), (status = 404, body = Problem),
        (status = 409, description = "A command is on its way to this VM: ask again", body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn migrate(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Result<Json<MigrateBody>, JsonRejection>,
) -> Result<Json<MigrateAnswer>, Problem> {
    let Path(name) = path?;
    let Query(DryRun { dry_run }) = query?;
    let Json(MigrateBody { to }) = body?;
    let to = host_id(&to)?;
    let (asked, target) = (name.clone(), to.clone());
    let look = move |desk: &Desk| {
        let told = |action: PlannedAction| (desk.core.remarks_on_move(&action), action);
        desk.core.find_vm(&asked).map(|vm| desk.core.may_migrate(vm, &target).map(told))
    };
    let (remarks, action) = state.ask(look.clone()).await?.ok_or_else(|| unknown(&name))??;
    let mut command = None;
    if !dry_run {
        let commands = carry_out(&state, actor, OperatorRequest::Migrate { vm: action.vm, to: to.clone() }).await?;
        command = commands.first().copied();
        if command.is_none() {
            // Something came between the look and the request; say what.
            state.ask(look).await?.ok_or_else(|| unknown(&name))??;
            return Err(Problem::new(StatusCode::CONFLICT, "something else was sent to this VM meanwhile; ask again"));
        }
    }
    Ok(Json(MigrateAnswer { vm: action.vm, host: action.host, to, dry_run, command, remarks }))
}

/// What a request to give a move up did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AbortAnswer {
    /// Which VM.
    #[schema(value_type = String)]
    pub vm: VmId,
    /// Where it is, and stays.
    #[schema(value_type = String)]
    pub host: HostId,
    /// The command that began the move, `TERM-NUMBER`: its result tells where the VM is in the end.
    #[schema(value_type = String)]
    pub migration: CommandId,
    /// `true` when it was only asked what would happen.
    pub dry_run: bool,
    /// The command that was sent, `TERM-NUMBER`; none in a dry run.
    #[schema(value_type = Option<String>)]
    pub command: Option<CommandId>,
}

/// Give up the move of a VM that is under way: it stays where it is, unless it has arrived already. A host that is being emptied sends it
/// again after a while; pause the VM, or end the emptying, if it shall stay.
#[utoipa::path(delete, path = "/api/v1/vms/{vm}/migrate", tag = "operate", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell what it would do")),
    responses((status = 200, body = AbortAnswer), (status = 404, body = Problem),
        (status = 409, description = "It has been told to already", body = Problem),
        (status = 422, description = "No move of it is under way", body = Problem), (status = 503, body = Problem)))]
pub(super) async fn abort(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<AbortAnswer>, Problem> {
    let Path(name) = path?;
    let Query(DryRun { dry_run }) = query?;
    let asked = name.clone();
    let look = move |desk: &Desk| desk.core.find_vm(&asked).map(|vm| desk.core.may_abort_migration(vm));
    let (migration, action) = state.ask(look.clone()).await?.ok_or_else(|| unknown(&name))??;
    let mut command = None;
    if !dry_run {
        command = carry_out(&state, actor, OperatorRequest::AbortMigration { vm: action.vm }).await?.first().copied();
        if command.is_none() {
            state.ask(look).await?.ok_or_else(|| unknown(&name))??;
            return Err(Problem::new(StatusCode::CONFLICT, "the move ended meanwhile; ask again"));
        }
    }
    Ok(Json(AbortAnswer { vm: action.vm, host: action.host, migration, dry_run, command }))
}

fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("no VM, or more than one, is named {name:?}; see /api/v1/vms for UUIDs"))
}

/// Empty a host: its VMs go elsewhere one after the other, as far as there is room, and none comes. Holds until it is ended.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/drain", tag = "operate", security(("token" = [])),
    params(("host" = String, Path, description = "The host's name"),
        ("dry_run" = Option<bool>, Query, description = "Only tell what it would touch")),
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn drain(
    state: State<ApiState>,
    actor: Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<Operated>, Problem> {
    maintain(state, actor, path, query, |host| OperatorRequest::Drain { host }).await
}

/// The host may have VMs again. What has left stays where it went.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}/drain", tag = "operate", security(("token" = [])),
    params(("host" = String, Path, description = "The host's name"),
        ("dry_run" = Option<bool>, Query, description = "Only tell what it would touch")),
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn undrain(
    state: State<ApiState>,
    actor: Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<Operated>, Problem> {
    maintain(state, actor, path, query, |host| OperatorRequest::Undrain { host }).await
}

async fn maintain(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    request: impl FnOnce(HostId) -> OperatorRequest,
) -> Result<Json<Operated>, Problem> {
    let Path(name) = path?;
    let Query(DryRun { dry_run }) = query?;
    let host = host_id(&name)?;
    let body = ScopeBody::Host(name);
    let (scope, vms) = state.ask(move |desk| resolve(desk, &body)).await??;
    if !dry_run {
        carry_out(&state, actor, request(host)).await?;
    }
    Ok(Json(Operated { scope, dry_run, vms }))
}

fn host_id(name: &str) -> Result<HostId, Problem> {
    HostId::new(name).map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

impl From<MoveRefusal> for Problem {
    fn from(refusal: MoveRefusal) -> Self {
        let status = match refusal {
            MoveRefusal::UnknownVm | MoveRefusal::UnknownHost(_) => StatusCode::NOT_FOUND,
            MoveRefusal::InFlight(_) => StatusCode::CONFLICT,
            MoveRefusal::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
            MoveRefusal::AlreadyThere(_)
            | MoveRefusal::NotRunning(_)
            | MoveRefusal::NotConfigured(_)
            | MoveRefusal::NotMoving
            | MoveRefusal::Rule(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refusal.to_string())
    }
}
