//! One means of one VM, set by hand.

use super::auth::Actor;
use super::operate::{DryRun, carry_out};
use super::{ApiState, Problem};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use gnomon_common::wire::{CommandId, HostId, Setting, VmId};
use gnomon_core::{OperatorRequest, SetRefusal};
use serde::{Deserialize, Serialize};

/// The body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetBody {
    /// One of `{"cpu_quota": {"cores": 1.5}}`, `{"cpu_weight": {"weight": 200}}`, `{"memory": {"bytes": 2147483648}}`,
    /// `{"vcpus": {"count": 4}}`, `{"disk_limit": {"bytes_per_s": 50000000, "operations_per_s": null}}` and
    /// `{"network_limit": {"in_bytes_per_s": null, "out_bytes_per_s": 1000000}}`. A quota or limit of `null` is unlimited.
    #[schema(value_type = Object)]
    pub setting: Setting,
}

/// What a request did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SetAnswer {
    /// Whose means.
    #[schema(value_type = String)]
    pub vm: VmId,
    /// Where it is.
    #[schema(value_type = String)]
    pub host: HostId,
    /// What the means is in now, as far as that is known.
    #[schema(value_type = Option<Object>)]
    pub before: Option<Setting>,
    /// What it is to be in.
    #[schema(value_type = Object)]
    pub target: Setting,
    /// `true` when it was only asked what would happen.
    pub dry_run: bool,
    /// The command that was sent, `TERM-NUMBER`; none in a dry run. What becomes of it: `/api/v1/vms/{vm}/explain` and
    /// `/api/v1/commands`.
    #[schema(value_type = Option<String>)]
    pub command: Option<CommandId>,
}

/// Bring one means of a VM to a state now, in any mode, and leave that means alone until the VM is resumed or released. The
/// agent judges it like every command; what it refuses is not held.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/set", tag = "operate", security(("token" = [])), request_body = SetBody,
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell what it would do")),
    responses((status = 200, body = SetAnswer), (status = 404, body = Problem),
        (status = 409, description = "A command is on its way to this VM: ask again", body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn set(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Result<Json<SetBody>, JsonRejection>,
) -> Result<Json<SetAnswer>, Problem> {
    let Path(name) = path?;
    let Query(DryRun { dry_run }) = query?;
    let Json(SetBody { setting }) = body?;
    let asked = name.clone();
    let look = move |desk: &crate::drive::Desk| desk.core.find_vm(&asked).map(|vm| desk.core.may_set(vm, setting));
    let unknown =
        || Problem::not_found(format!("no VM, or more than one, is named {name:?}; see /api/v1/vms for UUIDs"));
    let action = state.ask(look.clone()).await?.ok_or_else(unknown)??;
    let mut command = None;
    if !dry_run {
        let commands = carry_out(&state, actor, OperatorRequest::Set { vm: action.vm, setting }).await?;
        command = commands.first().copied();
        if command.is_none() {
            // Something came between the look and the request; say what.
            state.ask(look).await?.ok_or_else(unknown)??;
            return Err(Problem::new(StatusCode::CONFLICT, "something else was sent to this VM meanwhile; ask again"));
        }
    }
    Ok(Json(SetAnswer { vm: action.vm, host: action.host, before: action.before, target: setting, dry_run, command }))
}

impl From<SetRefusal> for Problem {
    fn from(refusal: SetRefusal) -> Self {
        let status = match refusal {
            SetRefusal::UnknownVm => StatusCode::NOT_FOUND,
            SetRefusal::InFlight(_) => StatusCode::CONFLICT,
            SetRefusal::Away { .. } => StatusCode::SERVICE_UNAVAILABLE,
            SetRefusal::Nonsense(_)
            | SetRefusal::NotRunning { .. }
            | SetRefusal::NotAllowed { .. }
            | SetRefusal::Released
            | SetRefusal::StoodDown { .. }
            | SetRefusal::Full => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refusal.to_string())
    }
}
