//! The API described for programs.

use super::{
    ArchivedStep, MigrateAnswer, MigrateBody, OperateBody, Operated, Problem, ScopeBody, SetAnswer, SetBody, Status,
    TouchedVm,
};
use super::{affairs, capacity, fleet, metrics, moves, operate, proposals, set, status};
use crate::drive::HistoryPoint;
use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "gnomon-brain", description = "Predictive resource allocation for virtual machines"),
    paths(
        status::status, status::healthz, metrics::metrics,
        fleet::hosts, fleet::host, fleet::vms, fleet::vm, fleet::forecast, fleet::explain, fleet::history, fleet::archive,
        fleet::alerts,
        affairs::audit, affairs::commands, capacity::list, capacity::approve, capacity::deny,
        proposals::list, proposals::approve, proposals::deny,
        operate::pause, operate::resume, operate::release, set::set, moves::migrate, moves::drain, moves::undrain,
    ),
    components(schemas(
        Status, HistoryPoint, ArchivedStep, OperateBody, ScopeBody, Operated, TouchedVm, SetBody, SetAnswer, MigrateBody,
        MigrateAnswer, Problem,
    )),
    modifiers(&Token),
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let token = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("token", token);
    }
}

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_described_and_needs_a_token_but_for_health_and_metrics() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 26);
        for (path, item) in paths {
            let operation = item.get("get").or_else(|| item.get("post")).unwrap();
            assert_eq!(operation.get("security").is_some(), path.starts_with("/api/"), "{path}");
        }
    }
}
