//! `/metrics`, and what the API measures of itself.

mod disks;
mod network;

use super::{ApiState, Problem};
use crate::telemetry::METRICS_CONTENT_TYPE;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use disks::DiskGauges;
use gnomon_common::wire::{LatencyHistogram, VmId};
use gnomon_core::view::VmView;
use network::NetworkGauges;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;

/// VMs with gauges of their own: more label values would burden the Prometheus server. Those beyond it are counted.
const VM_GAUGES_MAX: usize = 4096;
/// VMs whose forecasts are read in one question: the loop must not wait long for a scrape.
const FORECASTS_PER_QUESTION: usize = 64;

/// Quantiles of latency that are told, with their labels.
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.95, "0.95"), (0.99, "0.99")];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Vm {
    vm: String,
    name: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmQuantile {
    #[prometheus(flatten)]
    vm: Vm,
    quantile: &'static str,
}

type Gauges<L> = Family<L, Gauge<f64, AtomicU64>>;
type VmGauges = Gauges<Vm>;

/// Requests answered and refused.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    answered: Family<Answered, Counter>,
    tokens_refused: Counter,
}

impl ApiMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("gnomon_brain_api_requests", "HTTP requests, by status", metrics.answered.clone());
        registry.register(
            "gnomon_brain_api_tokens_refused",
            "Requests with a token that is not known",
            metrics.tokens_refused.clone(),
        );
        metrics
    }

    pub(super) fn refused(&self) {
        self.tokens_refused.inc();
    }
}

pub(super) async fn count(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    state.telemetry.api.answered.get_or_create(&Answered { status: response.status().as_u16() }).inc();
    response
}

/// Metrics in OpenMetrics text. Needs no token.
#[utoipa::path(get, path = "/metrics", tag = "brain", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, Problem> {
    // While the loop is away the process's own metrics are wanted all the more.
    let vms = state.ask(|desk| desk.core.vms()).await.unwrap_or_default();
    let mut registry = Registry::default();
    vm_gauges(&state, &mut registry, &vms).await;
    let body = state
        .telemetry
        .encode(&registry)
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics do not encode"))?;
    Ok(([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], body))
}

/// The quantiles that are told, with their labels, in seconds; none without requests.
fn quantiles(latency: &LatencyHistogram) -> impl Iterator<Item = (&'static str, f64)> {
    QUANTILES.into_iter().filter_map(|(level, label)| Some((label, latency.quantile_ms(level)? / 1e3)))
}

fn family<L>(registry: &mut Registry, name: &str, help: &str) -> Gauges<L>
where
    L: Clone + std::fmt::Debug + Hash + Eq + EncodeLabelSet + Send + Sync + 'static,
{
    let family = Gauges::<L>::default();
    registry.register(name, help, family.clone());
    family
}

/// Gauges made at scrape time: a VM that has gone leaves nothing behind.
async fn vm_gauges(state: &ApiState, registry: &mut Registry, vms: &[VmView]) {
    let gauge = family::<Vm>;
    let low = gauge(registry, "gnomon_vm_cpu_demand_low_cores", "Time run in the latest window");
    let high = gauge(registry, "gnomon_vm_cpu_demand_high_cores", "Time run or runnable in the latest window");
    let limit = gauge(registry, "gnomon_vm_cpu_limit_cores", "The smaller of CPU quota and vCPUs");
    let p95 = gauge(registry, "gnomon_vm_cpu_forecast_p95_cores", "Forecast demand of the next step, 95th percentile");
    let demand = gauge(registry, "gnomon_vm_memory_demand_bytes", "Memory wanted in the latest window, as estimated");
    let balloon = gauge(registry, "gnomon_vm_memory_balloon_bytes", "Memory that the balloon leaves to the guest");
    let network = NetworkGauges::register(registry);
    let disks = DiskGauges::register(registry);
    let stood_down = gauge(
        registry,
        "gnomon_vm_stood_down",
        "1 where the agent keeps its hands off: someone else changed its limits",
    );
    let error = gauge(
        registry,
        "gnomon_vm_cpu_forecast_relative_error",
        "Forecast error over the naive forecast's: below 1 is skill",
    );
    let omitted: Gauge = Gauge::default();
    registry.register("gnomon_brain_vm_gauges_omitted", "VMs without gauges: there are too many", omitted.clone());
    omitted.set(i64::try_from(vms.len().saturating_sub(VM_GAUGES_MAX)).unwrap_or(i64::MAX));

    for some in vms[..vms.len().min(VM_GAUGES_MAX)].chunks(FORECASTS_PER_QUESTION) {
        let ids: Vec<VmId> = some.iter().map(|view| view.vm).collect();
        let forecasts = state.ask(move |desk| ids.into_iter().map(|id| desk.core.forecast(id)).collect::<Vec<_>>());
        let forecasts = forecasts.await.unwrap_or_default();
        for (index, view) in some.iter().enumerate() {
            let labels = Vm { vm: view.vm.to_string(), name: view.name.clone(), host: view.host.to_string() };
            if let Some(cpu) = view.cpu {
                low.get_or_create(&labels).set(cpu.demand_low.mean);
                high.get_or_create(&labels).set(cpu.demand_high.mean);
            }
            limit.get_or_create(&labels).set(view.allocation.cpu_limit_cores());
            stood_down.get_or_create(&labels).set(f64::from(u8::from(view.stood_down)));
            if let Some(bytes) = view.memory.and_then(|memory| memory.guest_demand_bytes()) {
                demand.get_or_create(&labels).set(bytes as f64);
            }
            if let Some(bytes) = view.memory.and_then(|memory| memory.balloon_bytes) {
                balloon.get_or_create(&labels).set(bytes as f64);
            }
            network.show(&labels, &view.interfaces);
            if let Some(window) = &view.disk {
                disks.show(&labels, window);
            }
            let Some(Some(forecast)) = forecasts.get(index) else { continue };
            if let Some(next) = forecast.steps.first() {
                p95.get_or_create(&labels).set(next.p95);
            }
            if let Some(relative) = forecast.relative_error {
                error.get_or_create(&labels).set(relative);
            }
        }
    }
}
