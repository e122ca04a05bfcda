//! What a running agent has given up to stay within its budget, by its own metrics.

use super::Check;
use crate::config::{Config, Listen};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SIGNAL: &str = "cost budget";

/// How long the agent may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// More than the metrics of any agent.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

pub(super) async fn examine(config: &Config) -> Check {
    let Listen::At(address) = config.metrics.listen else {
        return Check::unavailable(
            SIGNAL,
            "metrics.listen",
            "off: what a running agent has given up its log alone tells",
        )
        .enable("metrics.listen = \"127.0.0.1:9479\"");
    };
    let source = format!("http://{address}/metrics");
    match timeout(ANSWER_MAX, ask(address)).await {
        Ok(Ok(text)) => judge(source, &text),
        // Whether an agent runs is not this check's question.
        Ok(Err(error)) => {
            Check::ok(SIGNAL, source, format!("no running agent answers ({error}): none gives up anything"))
        }
        Err(_) => Check::degraded(SIGNAL, source, format!("no answer within {} s", ANSWER_MAX.as_secs()))
            .enable("see the log of the agent, or of whatever listens there"),
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What an agent's metrics say.
fn judge(source: String, text: &str) -> Check {
    if values(text, "gnomon_agent_build_info{").next().is_none() {
        return Check::degraded(SIGNAL, source, "what answers there is no agent")
            .enable("an address of the agent's own in metrics.listen");
    }
    let one = |name: &str| values(text, name).next().map(|(_, value)| value);
    let spent: f64 = values(text, "gnomon_agent_cost_cores{").map(|(_, cores)| cores).sum();
    let cost = match one("gnomon_agent_cost_budget_cores ") {
        Some(budget) if budget > 0.0 => format!("the running agent costs {spent:.4} cores, {budget:.4} are allowed"),
        _ => "the running agent has not measured its cost yet".to_owned(),
    };
    let shed: Vec<String> = values(text, "gnomon_agent_probe_shed_timestamp_seconds{probe=\"")
        .map(|(labels, unix_s)| format!("{} since {}", labels.split('"').next().unwrap_or_default(), instant(unix_s)))
        .collect();
    if shed.is_empty() {
        return Check::ok(SIGNAL, source, format!("no probe is given up; {cost}"));
    }
    Check::degraded(SIGNAL, source, format!("given up to stay within it: {}; {cost}", shed.join(", ")))
        .enable("they come back when the host is calm; or a larger budget: [cost] in agent.toml")
}

/// Label text and value of each line that begins so.
fn values<'a>(text: &'a str, beginning: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(beginning).map(|rest| rest.rsplit_once(' ').unwrap_or(("", rest)))?;
        Some((labels, value.parse().ok()?))
    })
}

fn instant(unix_s: f64) -> String {
    let instant = jiff::Timestamp::from_second(unix_s as i64);
    instant.map_or_else(|_| format!("{unix_s} s of Unix time"), |instant| instant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{Budget, CostControl, Costed};
    use crate::doctor::State;
    use crate::probe::{ProbeError, ProgramCost};
    use crate::sample::SourceError;
    use crate::telemetry;
    use prometheus_client::registry::Registry;
    use std::cell::Cell;
    use std::path::Path;
    use tokio_util::sync::CancellationToken;

    /// A probe that can be given up, and costs a millisecond each time that it is looked at.
    #[derive(Default)]
    struct Exits {
        is_shed: bool,
        looks: Cell<u64>,
    }

    impl Costed for Exits {
        fn name(&self) -> &'static str {
            "exits"
        }

        fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
            self.looks.set(self.looks.get() + 1);
            let run_ns = self.looks.get() * 1_000_000;
            Ok(vec![ProgramCost { program: "guest_left", run_ns, runs: self.looks.get() }])
        }

        fn can_shed(&self) -> bool {
            !self.is_shed
        }

        fn shed(&mut self) -> Result<(), SourceError> {
            self.is_shed = true;
            Ok(())
        }
    }

    fn config(listen: &str) -> Config {
        let text = format!("[host]\nname = \"h1\"\n[brain]\naddress = \"brain:1\"\n[metrics]\nlisten = \"{listen}\"\n");
        Config::parse(&text, Path::new("/etc/gnomon/agent.toml")).unwrap()
    }

    /// What is found while an agent with this budget has judged so many measurements of its one probe.
    async fn found(measurements: u32, budget_cores: f64) -> Check {
        let mut registry = Registry::default();
        telemetry::register_process(&mut registry);
        let budget = Budget { budget_cores, budget_per_busy_core: 0.0 };
        let mut control = CostControl::register(budget, 30_000, &mut registry);
        let mut probe = Exits::default();
        for _ in 0..2 * measurements {
            control.tick(&mut [&mut probe], 0);
        }
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(telemetry::serve(address, registry, Box::new(|| true), stop.clone()).await.unwrap());
        let check = examine(&config(&address.to_string())).await;
        stop.cancel();
        server.await.unwrap().unwrap();
        check
    }

    #[tokio::test]
    async fn what_a_running_agent_has_given_up_is_told_with_the_time_and_a_way_out() {
        let began = jiff::Timestamp::now().as_second();
        let check = found(4, 1e-9).await;
        assert_eq!((check.state, check.needed), (State::Degraded, false), "{check:?}");
        let since = check.why.strip_prefix("given up to stay within it: exits since ").unwrap();
        let since: jiff::Timestamp = since.split(';').next().unwrap().parse().unwrap();
        assert!((began..=jiff::Timestamp::now().as_second()).contains(&since.as_second()), "{since}");
        assert!(check.why.contains("cores, 0.0000 are allowed") && check.enable.is_some(), "{check:?}");
    }

    #[tokio::test]
    async fn an_agent_within_its_budget_has_given_up_nothing() {
        let check = found(4, 1e9).await;
        assert_eq!(check.state, State::Ok, "{check:?}");
        assert!(
            check.why.starts_with("no probe is given up; ") && check.why.ends_with(" 1000000000.0000 are allowed"),
            "{check:?}"
        );
        assert!(found(0, 1e9).await.why.ends_with("has not measured its cost yet"));
    }

    #[tokio::test]
    async fn where_no_agent_answers_that_is_said() {
        let off = examine(&config("off")).await;
        assert_eq!((off.state, off.source.as_str()), (State::Unavailable, "metrics.listen"));
        let deaf = examine(&config("127.0.0.1:1")).await;
        assert!(deaf.state == State::Ok && deaf.why.starts_with("no running agent answers"), "{deaf:?}");
        let other = judge("x".to_owned(), "HTTP/1.0 200 OK\r\n\r\nup 1\n");
        assert_eq!(other.state, State::Degraded);
    }
}
