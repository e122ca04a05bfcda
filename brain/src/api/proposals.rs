//! Proposals: planned actions that wait for an operator, and operators' decisions.

use super::auth::Actor;
use super::operate::carry_out;
use super::{ApiState, Problem};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use gnomon_core::{OperatorRequest, Proposal, ProposalKey, ProposalRefusal, ProposalState};

type Key = Result<Path<String>, PathRejection>;
type Answer = Result<Json<Proposal>, Problem>;

/// Proposals that wait for an operator, and those decided last; the latest first.
#[utoipa::path(get, path = "/api/v1/proposals", tag = "proposals", security(("token" = [])),
    responses((status = 200, description = "Proposals, each with its reason, its expected effect, when it expires and how far it has come",
        body = Vec<Object>), (status = 401, body = Problem)))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<Proposal>>, Problem> {
    Ok(Json(state.ask(|desk| desk.core.proposals()).await?))
}

/// Carry out a proposal, if it holds against the present as well.
#[utoipa::path(post, path = "/api/v1/proposals/{key}/approve", tag = "proposals", security(("token" = [])),
    params(("key" = String, Path, description = "The proposal's key, TERM-NUMBER")),
    responses((status = 200, description = "The proposal as it is now; its command has left", body = Object),
        (status = 404, body = Problem),
        (status = 409, description = "It awaits no approval, no longer holds, or has to wait: the detail says which", body = Problem),
        (status = 422, description = "No key", body = Problem)))]
pub(super) async fn approve(State(state): State<ApiState>, actor: Extension<Actor>, key: Key) -> Answer {
    let proposal = decide(&state, actor.0, key, true).await?;
    if proposal.state == ProposalState::Refused {
        let text = format!("proposal {} was not carried out: {}", proposal.key, proposal.detail);
        return Err(Problem::new(StatusCode::CONFLICT, text));
    }
    Ok(Json(proposal))
}

/// Do not carry it out, and do not propose the like until the cool-down is over.
#[utoipa::path(post, path = "/api/v1/proposals/{key}/deny", tag = "proposals", security(("token" = [])),
    params(("key" = String, Path, description = "The proposal's key, TERM-NUMBER")),
    responses((status = 200, description = "The proposal as it is now", body = Object), (status = 404, body = Problem),
        (status = 409, description = "It awaits no approval", body = Problem), (status = 422, body = Problem)))]
pub(super) async fn deny(State(state): State<ApiState>, actor: Extension<Actor>, key: Key) -> Answer {
    decide(&state, actor.0, key, false).await.map(Json)
}

async fn decide(state: &ApiState, Actor(actor): Actor, key: Key, approves: bool) -> Result<Proposal, Problem> {
    let Path(key) = key?;
    let parsed = key.parse::<ProposalKey>();
    let key = parsed.map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    state.ask(move |desk| desk.core.may_decide_proposal(key, approves)).await??;
    let request =
        if approves { OperatorRequest::ApproveProposal { key } } else { OperatorRequest::DenyProposal { key } };
    carry_out(state, actor, request).await?;
    let (known, refusal) = state
        .ask(move |desk| (desk.core.proposal(key).cloned(), desk.core.may_decide_proposal(key, approves).err()))
        .await?;
    let known = known.ok_or(ProposalRefusal::Unknown(key))?;
    // Something came between the look and the request, and it still waits; say what.
    match refusal.filter(|_| known.state.is_open()) {
        Some(refusal) => Err(refusal.into()),
        None => Ok(known),
    }
}

impl From<ProposalRefusal> for Problem {
    fn from(refusal: ProposalRefusal) -> Self {
        let status = match refusal {
            ProposalRefusal::Unknown(_) => StatusCode::NOT_FOUND,
            ProposalRefusal::Decided { .. }
            | ProposalRefusal::InFlight(_)
            | ProposalRefusal::Silent(_)
            | ProposalRefusal::MovesWait(_) => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.to_string())
    }
}
