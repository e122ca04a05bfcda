//! `/metrics` and `/healthz`, and what the agent itself costs.
//!
//! Metrics are made and registered beside the code they measure; this module only serves the registry, on loopback by default, and adds
//! the process's own CPU time and memory, read when asked.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Whether a part of the agent does its work.
pub type HealthCheck = Box<dyn Fn() -> bool + Send + Sync>;

struct Served {
    registry: Registry,
    healthy: HealthCheck,
}

/// Registers what the process costs and which release it is.
pub fn register_process(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    registry.register("gnomon_agent_build", "The agent's release", Info::new(version));
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProbe {
    probe: &'static str,
}

/// `gnomon_agent_probe_self_test`.
#[derive(Clone, Debug, Default)]
pub struct SelfTestMetrics(Family<ByProbe, Gauge>);

impl SelfTestMetrics {
    /// Registers it.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "gnomon_agent_probe_self_test",
            "Whether a probe counted what it was made to see at the agent's start (1) or not (0), be it that it does not load; absent where that was not tried",
            metrics.0.clone(),
        );
        metrics
    }

    /// Shows what a test has found.
    pub fn show(&self, probe: &'static str, counted: bool) {
        self.0.get_or_create(&ByProbe { probe }).set(i64::from(counted));
    }
}

/// Serves until told to stop. `healthy` decides what `/healthz` answers.
pub async fn serve(
    listen: SocketAddr,
    registry: Registry,
    healthy: HealthCheck,
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = std::io::Result<()>>> {
    let listener = TcpListener::bind(listen).await?;
    tracing::info!(address = %listener.local_addr()?, "metrics are served");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(Arc::new(Served { registry, healthy }));
    Ok(async move { axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await })
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &served.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn healthz(State(served): State<Arc<Served>>) -> Response {
    if (served.healthy)() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "sampling has stopped\n").into_response()
    }
}

/// The process's own cost, under the names every Prometheus client uses.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_s = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        let metric = encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time of the agent itself",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(cpu_s).encode(metric)?;
        if let Some(bytes) = resident_bytes() {
            let metric = encoder.encode_descriptor(
                "process_resident_memory_bytes",
                "Resident memory of the agent itself",
                None,
                MetricType::Gauge,
            )?;
            ConstGauge::new(bytes).encode(metric)?;
        }
        Ok(())
    }
}

/// `/proc/self/statm`: pages in all, then resident ones.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn metrics_show_the_agents_own_cost_and_health_follows_the_sampler() {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (well, stop) = (Arc::new(AtomicBool::new(true)), CancellationToken::new());
        let seen = Arc::clone(&well);
        let healthy: HealthCheck = Box::new(move || seen.load(Ordering::Relaxed));
        let server = tokio::spawn(serve(address, registry, healthy, stop.clone()).await.unwrap());

        let answer = tokio::task::spawn_blocking(move || ask(address, "/metrics")).await.unwrap();
        let value = |name: &str| -> f64 {
            let line =
                answer.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {answer}"));
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total ") > 0.0);
        assert!(value("process_resident_memory_bytes ") > 1e6);
        assert_eq!(value("gnomon_agent_build_info{"), 1.0);
        assert!(
            tokio::task::spawn_blocking(move || ask(address, "/healthz")).await.unwrap().starts_with("HTTP/1.1 200")
        );
        well.store(false, Ordering::Relaxed);
        assert!(
            tokio::task::spawn_blocking(move || ask(address, "/healthz")).await.unwrap().starts_with("HTTP/1.1 503")
        );
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
