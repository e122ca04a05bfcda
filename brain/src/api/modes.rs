//! What is done with plans, scope by scope.

use super::auth::Actor;
use super::operate::{Operated, ScopeBody, carry_out, resolve};
use super::{ApiState, Problem};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use gnomon_core::view::ScopedMode;
use gnomon_core::{Mode, OperatorRequest};
use serde::{Deserialize, Serialize};

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModeBody {
    /// Where.
    pub scope: ScopeBody,
    /// What is done there with plans at most; `auto` leaves that to wider scopes and policy.
    pub mode: Mode,
}

/// What operators let be done with plans, scope by scope; where nothing is said, wider scopes and `policy.mode` count.
#[utoipa::path(get, path = "/api/v1/mode", tag = "operate", security(("token" = [])),
    responses((status = 200, description = "Scopes and their modes, none of them auto", body = Vec<Object>),
        (status = 401, body = Problem)))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<ScopedMode>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.modes()).await?))
}

/// Do no more than this with plans within the scope. Of policy, the fleet, the host, the VM and its owner the most cautious word counts.
#[utoipa::path(post, path = "/api/v1/mode", tag = "operate", security(("token" = [])), request_body = ModeBody,
    responses((status = 200, body = Operated), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn set(
    State(state): State<ApiState>,
    actor: Extension<Actor>,
    body: Result<Json<ModeBody>, JsonRejection>,
) -> Result<Json<Operated>, Problem> {
    let Json(ModeBody { scope, mode }) = body?;
    let (scope, vms) = state.ask(move |desk| resolve(desk, &scope)).await??;
    let Extension(Actor(actor)) = actor;
    carry_out(&state, actor, OperatorRequest::SetMode { scope: scope.clone(), mode }).await?;
    Ok(Json(Operated { scope, dry_run: false, vms }))
}
