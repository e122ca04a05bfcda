//! Shadows: what there is, and what operators want of them.

use super::auth::Actor;
use super::operate::{DryRun, carry_out};
use super::{ApiState, Problem};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use gnomon_common::wire::VmId;
use gnomon_core::{Core, OperatorRequest, Proposed, ShadowRefusal, ShadowView};
use serde::{Deserialize, Serialize};

type Name = Result<Path<String>, PathRejection>;

/// How much of its production's load a shadow replays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FidelityBody {
    /// 0..=1; `null` is what policy says.
    pub fidelity: Option<f64>,
}

/// A size, and a load that is to be tried at it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialBody {
    /// CPU that the VM would have, in cores.
    pub cpu_cores: f64,
    /// Memory that it would have, in bytes; `null` does not ask about it.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The load that is forecast for so long from now on, in milliseconds.
    pub ahead_ms: u64,
}

/// What a request did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ShadowAnswer {
    /// Of which production VM.
    #[schema(value_type = String)]
    pub vm: VmId,
    /// `true` when it was only asked what would happen.
    pub dry_run: bool,
    /// The shadow as it is now; none where there is none.
    #[schema(value_type = Option<Object>)]
    pub shadow: Option<ShadowView>,
}

/// Every shadow that is not retired, by its production's name.
#[utoipa::path(get, path = "/api/v1/shadows", tag = "shadows", security(("token" = [])),
    responses((status = 200, description = "Shadows, each with how far it has come and why, where it is, its size, and what it does",
        body = Vec<Object>), (status = 401, body = Problem)))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<ShadowView>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.shadows()).await?))
}

/// The shadow of a VM.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/shadow", tag = "shadows", security(("token" = [])),
    params(("vm" = String, Path, description = "The production's or the shadow's UUID, or its name where only one VM has it")),
    responses((status = 200, description = "The shadow", body = Object), (status = 404, body = Problem)))]
pub(super) async fn show(State(state): State<ApiState>, name: Name) -> Result<Json<ShadowView>, Problem> {
    let Path(name) = name?;
    let vm = find(&state, &name).await?;
    let shadow = state.ask(move |desk| desk.core.shadow(vm)).await?;
    shadow.map(Json).ok_or_else(|| ShadowRefusal::None(vm).into())
}

/// Have a shadow made of a VM, whatever its owner and policy say.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/shadow", tag = "shadows", security(("token" = [])),
    params(("vm" = String, Path, description = "The VM's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell whether it could be done")),
    responses((status = 200, body = ShadowAnswer), (status = 404, body = Problem),
        (status = 409, description = "It has one, or none can be made now: the detail says which", body = Problem)))]
pub(super) async fn make(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    name: Name,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<ShadowAnswer>, Problem> {
    act(&state, actor, name, query, Core::may_make_shadow, |vm| OperatorRequest::MakeShadow { vm }).await
}

/// Change how much of its production's load a shadow replays.
#[utoipa::path(put, path = "/api/v1/vms/{vm}/shadow", tag = "shadows", security(("token" = [])), request_body = FidelityBody,
    params(("vm" = String, Path, description = "The production's or the shadow's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell whether it could be done")),
    responses((status = 200, body = ShadowAnswer), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, description = "No fidelity", body = Problem)))]
pub(super) async fn fidelity(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    name: Name,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Result<Json<FidelityBody>, JsonRejection>,
) -> Result<Json<ShadowAnswer>, Problem> {
    let Json(FidelityBody { fidelity }) = body?;
    if let Some(value) = fidelity.filter(|fidelity| !(0.0..=1.0).contains(fidelity)) {
        let text =
            format!("{value} is no fidelity: 0 idles, 0.25 replays CPU, 0.5 and memory, 0.75 and disk, 1 and network");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let request = move |vm| OperatorRequest::SetFidelity { vm, fidelity };
    act(&state, actor, name, query, Core::may_change_shadow, request).await
}

/// Have the shadow of a VM play a forecast load as it would feel at another size: a matter of minutes. What came out is the shadow's `trial`.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/shadow/trial", tag = "shadows", security(("token" = [])), request_body = TrialBody,
    params(("vm" = String, Path, description = "The production's or the shadow's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell whether it could be done")),
    responses((status = 200, body = ShadowAnswer), (status = 404, body = Problem),
        (status = 409, description = "It does not run, has no pacer or no forecast that reaches as far, or tries another size", body = Problem),
        (status = 422, description = "No size", body = Problem)))]
pub(super) async fn trial(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    name: Name,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Result<Json<TrialBody>, JsonRejection>,
) -> Result<Json<ShadowAnswer>, Problem> {
    let Json(TrialBody { cpu_cores, memory_bytes, ahead_ms }) = body?;
    let proposed = Proposed { cpu_cores, memory_bytes, ahead_ms };
    let may = move |core: &Core, vm| core.may_try_shadow(vm, &proposed);
    let answer = act(&state, actor, name, query, may, |vm| OperatorRequest::TryShadow { vm, proposed }).await?;
    let trial = answer.shadow.as_ref().and_then(|view| view.shadow.trial.as_ref());
    // Somebody else may have been quicker between the question and the request.
    if !answer.dry_run && trial.is_none_or(|trial| trial.proposed != proposed) {
        return Err(ShadowRefusal::Trying(answer.vm).into());
    }
    Ok(answer)
}

/// Take the shadow of a VM away, and make no other until one is asked for.
#[utoipa::path(delete, path = "/api/v1/vms/{vm}/shadow", tag = "shadows", security(("token" = [])),
    params(("vm" = String, Path, description = "The production's or the shadow's UUID, or its name where only one VM has it"),
        ("dry_run" = Option<bool>, Query, description = "Only tell whether it could be done")),
    responses((status = 200, body = ShadowAnswer), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn retire(
    State(state): State<ApiState>,
    Extension(Actor(actor)): Extension<Actor>,
    name: Name,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<ShadowAnswer>, Problem> {
    act(&state, actor, name, query, Core::may_retire_shadow, |vm| OperatorRequest::RetireShadow { vm }).await
}

async fn act(
    state: &ApiState,
    actor: String,
    name: Name,
    query: Result<Query<DryRun>, QueryRejection>,
    may: impl FnOnce(&Core, VmId) -> Result<(), ShadowRefusal> + Send + 'static,
    request: impl FnOnce(VmId) -> OperatorRequest,
) -> Result<Json<ShadowAnswer>, Problem> {
    let Path(name) = name?;
    let Query(DryRun { dry_run }) = query?;
    let vm = find(state, &name).await?;
    state.ask(move |desk| may(&desk.core, vm)).await??;
    if !dry_run {
        carry_out(state, actor, request(vm)).await?;
    }
    let shadow = state.ask(move |desk| desk.core.shadow(vm)).await?;
    Ok(Json(ShadowAnswer { vm, dry_run, shadow }))
}

/// The VM of this name, which may be gone while its shadow is not.
async fn find(state: &ApiState, name: &str) -> Result<VmId, Problem> {
    let asked = name.to_owned();
    let found = state.ask(move |desk| desk.core.find_shadowed(&asked)).await?;
    found.ok_or_else(|| {
        Problem::not_found(format!("no VM, or more than one, is named {name:?}; see /api/v1/vms for UUIDs"))
    })
}

impl From<ShadowRefusal> for Problem {
    fn from(refusal: ShadowRefusal) -> Self {
        let status = match refusal {
            ShadowRefusal::UnknownVm(_) | ShadowRefusal::None(_) => StatusCode::NOT_FOUND,
            ShadowRefusal::OfShadow(_) | ShadowRefusal::NoSize(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ShadowRefusal::There { .. }
            | ShadowRefusal::Retiring(_)
            | ShadowRefusal::Held(_)
            | ShadowRefusal::FleetFull(_)
            | ShadowRefusal::Trying(_)
            | ShadowRefusal::NotPacing { .. }
            | ShadowRefusal::NoPacer(_)
            | ShadowRefusal::Unforecast(_)
            | ShadowRefusal::Off => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.to_string())
    }
}
