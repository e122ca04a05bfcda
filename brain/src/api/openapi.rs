//! The API described for programs.

use super::{
    ArchivedStep, FidelityBody, MigrateAnswer, MigrateBody, ModeBody, OperateBody, Operated, Problem, ScopeBody,
    SetAnswer, SetBody, ShadowAnswer, Status, TouchedVm,
};
use super::{affairs, capacity, fleet, metrics, modes, moves, operate, proposals, set, shadows, status};
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
        shadows::list, shadows::show, shadows::make, shadows::fidelity, shadows::retire, shadows::trial,
        operate::pause, operate::resume, operate::release, modes::list, modes::set, set::set, moves::migrate, moves::abort, moves::drain, moves::undrain,
    ),
    components(schemas(
        Status, HistoryPoint, ArchivedStep, OperateBody, ScopeBody, Operated, TouchedVm, ModeBody, SetBody, SetAnswer, MigrateBody,
        MigrateAnswer, Problem, FidelityBody, ShadowAnswer,
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
    use gnomon_common::time::Timestamp;
    use gnomon_common::wire::{
        Allocation, CommandId, CpuWindow, DiskShare, DiskWindow, Dropped, ExitReason, ExitShare, GuestDisk,
        GuestMemory, HostId, InterfaceWindow, MemoryDemand, MemoryWindow, MigrationProgress, PacerWindow, ProcessIo,
        QueueWindow, ReclaimStalls, Setting, ShadowWindow, VmId, VmState, WaitHistogram,
    };
    use gnomon_core::view::{CulpritView, ModeSource, ModeView, VmView, WaitView};
    use gnomon_core::{Hold, Mode};
    use serde_json::Value;

    #[test]
    fn every_path_is_described_and_needs_a_token_but_for_health_and_metrics() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 30);
        for (path, item) in paths {
            let operation = item.get("get").or_else(|| item.get("post")).unwrap();
            assert_eq!(operation.get("security").is_some(), path.starts_with("/api/"), "{path}");
        }
    }

    /// Of which everything is known.
    fn vm() -> VmView {
        VmView {
            vm: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            name: "shop".to_owned(),
            shadow: Some(ShadowWindow { of: VmId::made_of(1, 2), pacer: Some(PacerWindow::default()) }),
            host: HostId::new("a").unwrap(),
            state: VmState::Running,
            cpu: Some(CpuWindow {
                wait: Some(WaitHistogram::default()),
                wakeups_per_s: Some(1.0),
                preemptions_per_s: Some(1.0),
                ..CpuWindow::default()
            }),
            waited: Some(WaitView {
                own_quota_cores: Some(0.1),
                culprits: vec![CulpritView { vm: None, name: "tar".to_owned(), cores: 0.5 }],
                ..WaitView::default()
            }),
            memory: Some(MemoryWindow {
                balloon_bytes: Some(1),
                pressure: Some(0.1),
                guest: Some(GuestMemory { usable_bytes: Some(1), ..GuestMemory::default() }),
                demand: Some(MemoryDemand::known(1)),
                reclaim: Some(ReclaimStalls::default()),
                ..MemoryWindow::default()
            }),
            interfaces: vec![InterfaceWindow {
                drops: Some(vec![Dropped { reason: "full_ring".to_owned(), packets_per_s: 1.0 }]),
                queue: Some(QueueWindow { wait_ms: Some(1.0), ..QueueWindow::default() }),
                ..InterfaceWindow::default()
            }],
            disk: Some(DiskWindow {
                process: Some(ProcessIo::default()),
                disks: vec![DiskShare { device_ms: Some(1.0), ..DiskShare::default() }],
                guest: vec![GuestDisk::default()],
                ..DiskWindow::default()
            }),
            exits: Some(vec![ExitShare { reason: ExitReason::PageFault, exits_per_s: 1.0, away_vcpus: 0.1 }]),
            allocation: Allocation { quota_cores: Some(1.0), ..Allocation::default() },
            last_window: Some(Timestamp::from_unix_ms(1)),
            season_ms: Some(1),
            hold: Some(Hold::Paused),
            mode: ModeView { mode: Mode::Approve, by: ModeSource::Owner },
            held: vec![
                Setting::Memory { bytes: 1 },
                Setting::DiskLimit { bytes_per_s: Some(1), operations_per_s: None },
            ],
            baselines: vec![Setting::CpuQuota { cores: None }],
            stood_down: false,
            in_flight: Some(CommandId { term: 1, number: 2 }),
            migration: Some(MigrationProgress { dirty_bytes_per_s: Some(1), ..MigrationProgress::default() }),
            dirty_bytes_per_s: Some(1),
        }
    }

    /// What is wrong with a value by a schema of the document, with the way to it.
    fn differences(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let found = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{at}: no {name}"));
            return differences(document, found, value, at);
        }
        if let Some(either) = schema["oneOf"].as_array() {
            let found: Vec<_> = either.iter().map(|one| differences(document, one, value, at)).collect();
            return if found.iter().any(Vec::is_empty) { Vec::new() } else { found.concat() };
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            kinds => kinds
                .as_array()
                .unwrap_or_else(|| panic!("{at} is not described"))
                .iter()
                .filter_map(Value::as_str)
                .collect(),
        };
        let is_of = |kind: &str| match kind {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{at}: what is {other}?"),
        };
        if !kinds.iter().any(|kind| is_of(kind)) {
            return vec![format!("{at}: {value} is none of {kinds:?}")];
        }
        match value {
            Value::String(_) if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) => {
                vec![format!("{at}: {value} is not among {}", schema["enum"])]
            }
            Value::Array(items) => items
                .iter()
                .flat_map(|item| differences(document, &schema["items"], item, &format!("{at}[]")))
                .collect(),
            Value::Object(fields) => {
                let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let absent =
                    required.filter(|name| !fields.contains_key(*name)).map(|name| format!("{at}.{name} is absent"));
                let within = fields.iter().flat_map(|(name, field)| {
                    let at = format!("{at}.{name}");
                    let known = &schema["properties"][name];
                    if known.is_null() {
                        vec![format!("{at} is not described")]
                    } else {
                        differences(document, known, field, &at)
                    }
                });
                absent.chain(within).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_vm_is_what_its_schema_says_down_to_disks_interfaces_culprits_and_exits() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let answer = |path: &str| {
            document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"].clone()
        };
        let (one, list) = (answer("/api/v1/vms/{vm}"), answer("/api/v1/vms"));
        let view = serde_json::to_value(vm()).unwrap();
        let holds_null = |value: &Value| value.as_object().unwrap().values().any(Value::is_null);
        assert!(!holds_null(&view), "what is not shown is not compared: {view}");
        assert_eq!(differences(&document, &one, &view, "vm"), Vec::<String>::new());
        assert_eq!(differences(&document, &list, &Value::Array(vec![view.clone()]), "vms"), Vec::<String>::new());
        let wrong = [
            ("/disk/disks/0/name", Value::from(7)),
            ("/interfaces/0/device", Value::from(7)),
            ("/waited/culprits/0/cores", Value::from("much")),
            ("/exits/0/reason", Value::from("boredom")),
            ("/mode/by", Value::from("nobody")),
        ];
        for (path, value) in wrong {
            let mut view = view.clone();
            *view.pointer_mut(path).unwrap() = value;
            assert!(!differences(&document, &one, &view, "vm").is_empty(), "{path} is not described");
        }
    }
}
