//! Requests for capacity: what was asked for, and operators' decisions.

use super::auth::Actor;
use super::operate::carry_out;
use super::{ApiState, Problem};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use gnomon_core::{CapacityKey, CapacityRefusal, CapacityRequest, OperatorRequest};

type Key = Result<Path<String>, PathRejection>;
type Answer = Result<Json<CapacityRequest>, Problem>;

/// Requests that are open, and those closed last; the latest first.
#[utoipa::path(get, path = "/api/v1/capacity", tag = "capacity", security(("token" = [])),
    responses((status = 200, description = "Requests, each with its size, its reason and how far it has come", body = Vec<Object>),
        (status = 401, body = Problem)))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<CapacityRequest>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.capacity()).await?))
}

/// Send a request that awaits approval to the provider. It cannot be taken back.
#[utoipa::path(post, path = "/api/v1/capacity/{key}/approve", tag = "capacity", security(("token" = [])),
    params(("key" = String, Path, description = "The request's key, TERM-NUMBER")),
    responses((status = 200, description = "The request as it is now", body = Object), (status = 404, body = Problem),
        (status = 409, description = "It awaits no approval", body = Problem),
        (status = 422, description = "No key, or no provider is configured", body = Problem)))]
pub(super) async fn approve(State(state): State<ApiState>, actor: Extension<Actor>, key: Key) -> Answer {
    decide(&state, actor.0, key, true).await
}

/// Never send a request that awaits approval. The need may come up again when the cool-down is over.
#[utoipa::path(post, path = "/api/v1/capacity/{key}/deny", tag = "capacity", security(("token" = [])),
    params(("key" = String, Path, description = "The request's key, TERM-NUMBER")),
    responses((status = 200, description = "The request as it is now", body = Object), (status = 404, body = Problem),
        (status = 409, description = "It awaits no approval", body = Problem), (status = 422, body = Problem)))]
pub(super) async fn deny(State(state): State<ApiState>, actor: Extension<Actor>, key: Key) -> Answer {
    decide(&state, actor.0, key, false).await
}

async fn decide(state: &ApiState, Actor(actor): Actor, key: Key, approves: bool) -> Answer {
    let Path(key) = key?;
    let parsed = key.parse::<CapacityKey>();
    let key = parsed.map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    state.ask(move |desk| desk.core.may_decide_capacity(key, approves)).await??;
    let request =
        if approves { OperatorRequest::ApproveCapacity { key } } else { OperatorRequest::DenyCapacity { key } };
    carry_out(state, actor, request).await?;
    let known = state.ask(move |desk| desk.core.capacity().into_iter().find(|request| request.key == key)).await?;
    known.map(Json).ok_or_else(|| CapacityRefusal::Unknown(key).into())
}

impl From<CapacityRefusal> for Problem {
    fn from(refusal: CapacityRefusal) -> Self {
        let status = match refusal {
            CapacityRefusal::Unknown(_) => StatusCode::NOT_FOUND,
            CapacityRefusal::Decided { .. } => StatusCode::CONFLICT,
            CapacityRefusal::NoProvider => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, refusal.to_string())
    }
}
