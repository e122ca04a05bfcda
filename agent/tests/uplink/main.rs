//! The uplink against a brain in this process, over real QUIC and TLS on loopback; the executor and its ledger are the real ones too.

mod brain;
mod executor;

use brain::{Authority, Brain, PATIENCE, soon};
use executor::executor;
use gnomon_agent::command;
use gnomon_agent::command::clock::Clock;
use gnomon_agent::sample::HostReport;
use gnomon_agent::uplink::{self, Bounds, Spool, SpoolConfig, Uplink, identity};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, AgentMessage, BrainMessage, Command, CommandId, CpuBounds, CpuSource, Fence, HostFacts, HostId,
    HostWindow, KeptCopies, Labels, Losses, Means, MemoryBounds, OutcomeResult, RefusalCode, Sequence, Setting,
    VERSIONS, VmId,
};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// An agent without sampler and libvirt.
struct Agent {
    reports: mpsc::Sender<HostReport>,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(address: String, identity_of: &Authority, trusted: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, address, identity_of, trusted)
    }

    fn start_in(folder: tempfile::TempDir, address: String, identity_of: &Authority, trusted: &Authority) -> Self {
        Self::start_with(folder, vec![address], identity_of, trusted)
    }

    fn start_with(
        folder: tempfile::TempDir,
        addresses: Vec<String>,
        identity_of: &Authority,
        trusted: &Authority,
    ) -> Self {
        let [ca, certificate, key] = identity_of.write_agent(folder.path(), trusted);
        let mut registry = Registry::default();
        let clock = Clock::new().unwrap();
        let command_metrics = command::Metrics::register(&mut registry);
        let (commands, epoch) = executor(&folder.path().join("commands.redb"), clock, command_metrics.clone());
        let metrics = uplink::Metrics::register(&mut registry);
        let spool = SpoolConfig {
            dir: folder.path().join("spool"),
            bounds: Bounds { bytes_max: 1 << 20, age_max: Duration::from_secs(3600) },
            host: HostId::new("host-1").unwrap(),
            epoch,
        };
        let spool = Arc::new(Spool::start(spool, metrics.clone()).unwrap());
        let uplink = Uplink {
            addresses,
            server_name: "gnomon-brain".to_owned(),
            identity: identity::Files { ca, certificate, key },
            host: HostId::new("host-1").unwrap(),
            epoch,
            facts: Box::new(facts),
            commands,
            clock,
            metrics,
            command_metrics,
            spool,
        };
        let stop = CancellationToken::new();
        let (reports, taken) = mpsc::channel(16);
        let running = tokio::spawn(uplink.run(taken, 1, stop.clone()));
        Self { reports, registry, stop, running, _folder: folder }
    }

    async fn measure(&self, times: u32) {
        for _ in 0..times {
            self.reports.send(report()).await.unwrap();
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Waits until `/metrics` would show this line.
    async fn shows(&self, line: &str) {
        let patience = Instant::now() + PATIENCE;
        while !self.metrics().lines().any(|shown| shown == line) {
            assert!(Instant::now() < patience, "no {line:?} in\n{}", self.metrics());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        soon(self.running).await.unwrap();
    }
}

fn facts() -> HostFacts {
    HostFacts {
        capacity_cores: 2.0,
        memory_bytes: 1 << 30,
        kernel: "6.1".to_owned(),
        hypervisor: String::new(),
        cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 4.0 },
        memory_bounds: MemoryBounds::default(),
        means: vec![Means::CpuQuota],
        migration: None,
        zone: None,
        numa: Vec::new(),
        labels: Labels::default(),
        shadows: None,
        copies: KeptCopies::default(),
        dry_run: false,
        cpu_source: CpuSource::TaskStorage,
    }
}

fn report() -> HostReport {
    HostReport {
        start: Timestamp::from_unix_ms(10_000),
        window_ms: 10_000,
        host_window: HostWindow::default(),
        vms: Vec::new(),
        inventory_complete: true,
        losses: Losses { samples_skipped: 3, ..Losses::default() },
    }
}

fn command(number: u64, cores: f64) -> Command {
    Command {
        id: CommandId { term: 5, number },
        vm: VmId(Uuid::from_u128(1)),
        action: Action::Set(Setting::CpuQuota { cores: Some(cores) }),
        fence: Fence { term: 5, generation: number },
        time_to_live_ms: 60_000,
        reason: "a surge is coming".to_owned(),
    }
}

fn pair() -> (Authority, Brain) {
    let authority = Authority::new();
    let brain = Brain::listen(&authority);
    (authority, brain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_delivered_in_order_and_live_reports_do_not_wait_for_it() {
    let (authority, brain) = pair();
    let before = AgentEpoch(Clock::new().unwrap().now().wall.unix_ms() / 1_000);
    let agent = Agent::start(brain.address(), &authority, &authority);
    agent.measure(3).await;
    agent.shows("gnomon_agent_reports_waiting 3").await;
    agent.shows("gnomon_agent_reports_waiting_bytes 0").await;

    let mut session = brain.greeted().await;
    assert_eq!(session.hello.host.as_str(), "host-1");
    assert!(session.hello.epoch >= before, "{:?}: an epoch of this start, not a count from 1", session.hello.epoch);
    assert_eq!(session.hello.versions, VERSIONS);
    assert_eq!(session.hello.fence_highest, None);
    session.welcome(5, 0).await;
    agent.shows("gnomon_agent_uplink_connected 1").await;
    agent.measure(1).await;
    let (mut live, mut backlog) = (session.reports().await, session.reports().await);
    let fourth = live.next().await;
    assert_eq!((fourth.sequence, fourth.losses.samples_skipped), (Sequence(4), 3), "it does not wait for the backlog");
    live.acknowledge(&fourth).await;
    let first = backlog.next().await;
    assert_eq!(first.sequence, Sequence(1));
    backlog.acknowledge(&first).await;
    assert_eq!(backlog.next().await.sequence, Sequence(2));
    assert_eq!(backlog.next().await.sequence, Sequence(3));
    agent.shows("gnomon_agent_reports_acknowledged_total 2").await;
    agent.shows("gnomon_agent_reports_waiting 2").await;

    // The brain dies with reports 2 and 3 not acknowledged, and comes back.
    session.connection.close(7_u32.into(), b"the brain stops");
    agent.shows("gnomon_agent_uplink_connected 0").await;
    agent.measure(1).await;
    agent.shows("gnomon_agent_reports_waiting 3").await;
    let mut session = brain.greeted().await;
    session.welcome(6, 0).await;
    agent.shows("gnomon_agent_uplink_connected 1").await;
    agent.measure(1).await;
    let (mut live, mut backlog) = (session.reports().await, session.reports().await);
    assert_eq!(live.next().await.sequence, Sequence(6));
    for sequence in [2, 3, 5] {
        let report = backlog.next().await;
        assert_eq!(report.sequence, Sequence(sequence));
        backlog.acknowledge(&report).await;
    }
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"closed\"} 1").await;
    agent.shows("gnomon_agent_reports_waiting 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_survive_a_kill_and_are_delivered_as_those_of_the_life_that_made_them() {
    let (authority, brain) = pair();
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().to_owned();
    let agent = Agent::start_in(folder, brain.address(), &authority, &authority);
    agent.measure(3).await;
    agent.shows("gnomon_agent_reports_waiting_bytes 0").await;
    agent.shows("gnomon_agent_reports_waiting 3").await;
    // What a kill -9 leaves behind, the last write torn by a power cut.
    let folder = tempfile::tempdir().unwrap();
    copy(&left.join("spool"), &folder.path().join("spool"));
    fs::copy(left.join("commands.redb"), folder.path().join("commands.redb")).unwrap();
    let segment = fs::read_dir(folder.path().join("spool")).unwrap().next().unwrap().unwrap().path();
    let torn = fs::metadata(&segment).unwrap().len() - 5;
    fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(torn).unwrap();
    let mut session = brain.greeted().await;
    session.welcome(5, 0).await;
    let first_life = session.hello.epoch;
    agent.stop().await;

    let agent = Agent::start_in(folder, brain.address(), &authority, &authority);
    agent.shows("gnomon_agent_spool_records_damaged_total 1").await;
    let mut session = brain.greeted().await;
    session.welcome(5, 0).await;
    agent.shows("gnomon_agent_uplink_connected 1").await;
    agent.measure(1).await;
    let (mut live, mut backlog) = (session.reports().await, session.reports().await);
    let own = live.next().await;
    assert_eq!((own.epoch, own.sequence, own.losses.reports_dropped), (session.hello.epoch, Sequence(1), 1));
    for sequence in [1, 2] {
        let report = backlog.next().await;
        assert_eq!((report.epoch, report.sequence), (first_life, Sequence(sequence)));
        backlog.acknowledge(&report).await;
    }
    live.acknowledge(&own).await;
    agent.shows("gnomon_agent_reports_waiting 0").await;
    agent.shows("gnomon_agent_spool_bytes 0").await;
    agent.shows("gnomon_agent_reports_dropped_total 1").await;
    agent.stop().await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_carried_out_and_its_outcome_repeated_until_acknowledged() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    session.welcome(5, 0).await;
    session.say(BrainMessage::Command(command(1, 1.5))).await;
    let AgentMessage::Outcome(outcome) = session.hear().await else { panic!("no outcome") };
    assert_eq!(outcome.id, CommandId { term: 5, number: 1 });
    assert!(
        matches!(&outcome.result, OutcomeResult::Applied { after, took_us: 1.., .. }
            if after[..] == [Setting::CpuQuota { cores: Some(1.5) }]),
        "{outcome:?}"
    );
    session.connection.close(0_u32.into(), b"lost before it was acknowledged");

    let mut session = brain.greeted().await;
    assert_eq!(session.hello.fence_highest, Some(Fence { term: 5, generation: 1 }));
    session.welcome(5, 0).await;
    assert_eq!(session.hear().await, AgentMessage::Outcome(outcome.clone()));
    session.say(BrainMessage::OutcomeAck { id: outcome.id }).await;
    agent.shows("gnomon_agent_outcomes_pending 0").await;
    // The brain repeats the command: applied once, answered twice.
    session.say(BrainMessage::Command(command(1, 1.5))).await;
    assert_eq!(session.hear().await, AgentMessage::Outcome(outcome));
    agent.shows("gnomon_agent_commands_total{result=\"applied\"} 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_survives_the_agent_and_its_epoch_rises() {
    let (authority, brain) = pair();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("commands.redb");
    let agent = Agent::start_in(folder, brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    let epoch = session.hello.epoch;
    session.welcome(5, 0).await;
    session.say(BrainMessage::Command(command(1, 1.5))).await;
    let outcome = session.hear().await;
    // What a kill -9 leaves behind.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(&path, folder.path().join("commands.redb")).unwrap();
    agent.stop().await;

    let agent = Agent::start_in(folder, brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    assert!(session.hello.epoch > epoch, "{:?} after {epoch:?}", session.hello.epoch);
    session.welcome(5, 0).await;
    assert_eq!(session.hear().await, outcome);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_agent_says_so() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    session.welcome(5, 0).await;
    agent.shows("gnomon_agent_uplink_connected 1").await;
    agent.stop().await;
    assert_eq!(session.closed().await, (0, "the agent stops".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_of_a_foreign_authority_is_not_talked_to() {
    let (_, brain) = pair();
    let ours = Authority::new();
    let agent = Agent::start(brain.address(), &ours, &ours);
    let error = brain.connection().await.unwrap_err().to_string();
    assert!(error.contains("certificate") || error.contains("CA") || error.contains("issuer"), "{error}");
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"tls\"} 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_a_foreign_authority_learns_that_it_is_refused() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &Authority::new(), &authority);
    assert!(brain.connection().await.is_err());
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"tls_peer\"} 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_counted_by_their_code() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    let reason = "the agent speaks versions 1..=1, the brain 2..=3; update the agent".to_owned();
    session.say(BrainMessage::Refused { code: RefusalCode::Version, reason }).await;
    let (code, reason) = session.closed().await;
    assert_eq!(code, 0);
    assert!(reason.contains("update the agent"), "{reason}");
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"refused_version\"} 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_brains_the_one_that_welcomes_is_found_and_left_when_it_is_lost() {
    let (authority, first) = pair();
    let second = Brain::listen(&authority);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start_with(folder, vec![first.address(), second.address()], &authority, &authority);
    // In turn, from the first on.
    for round in 0..2 {
        let mut refused = first.greeted().await;
        refused.say(BrainMessage::Refused { code: RefusalCode::Busy, reason: "another brain leads".to_owned() }).await;
        let mut session = second.greeted().await;
        session.welcome(5, 0).await;
        agent.shows("gnomon_agent_uplink_connected 1").await;
        session.connection.close(7_u32.into(), b"stopping");
        agent.shows(&format!("gnomon_agent_uplink_failures_total{{kind=\"refused_busy\"}} {}", round + 1)).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_was_not_offered_is_refused() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    let version = VERSIONS.max + 1;
    let welcome = gnomon_common::wire::Welcome { version, term: 5, heartbeat_ms: 200, acknowledged: Sequence(0) };
    session.say(BrainMessage::Welcome(welcome)).await;
    let (code, reason) = session.closed().await;
    assert_eq!(code, 3);
    assert!(reason.contains("not offered"), "{reason}");
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"protocol\"} 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_and_garbled_frames_end_the_connection_with_a_reason() {
    let (authority, brain) = pair();
    for (bytes, kind) in
        [(&u32::MAX.to_le_bytes()[..], "frame_too_large"), (&[3, 0, 0, 0, 250, 250, 250][..], "frame_malformed")]
    {
        let agent = Agent::start(brain.address(), &authority, &authority);
        let mut session = brain.greeted().await;
        session.welcome(5, 0).await;
        soon(session.control_out.write_all(bytes)).await.unwrap();
        let (code, reason) = session.closed().await;
        assert_eq!(code, 3);
        assert!(reason.contains("invalid frame"), "{reason}");
        agent.shows(&format!("gnomon_agent_uplink_failures_total{{kind=\"{kind}\"}} 1")).await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_what_was_never_made_ends_the_connection() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    session.welcome(5, 0).await;
    agent.shows("gnomon_agent_uplink_connected 1").await;
    agent.measure(1).await;
    let mut reports = session.reports().await;
    let mut report = reports.next().await;
    report.sequence = Sequence(9);
    reports.acknowledge(&report).await;
    let (code, reason) = session.closed().await;
    assert_eq!(code, 3);
    assert!(reason.contains("acknowledges report 9"), "{reason}");
    agent.shows("gnomon_agent_reports_waiting 1").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_brain_is_lost_after_three_heart_beats() {
    let (authority, brain) = pair();
    let agent = Agent::start(brain.address(), &authority, &authority);
    let mut session = brain.greeted().await;
    session.welcome_with_heartbeat(5, 0, 200).await;
    let before = Instant::now();
    let (code, reason) = session.closed().await;
    assert_eq!(code, 6);
    assert!(reason.contains("heart-beats"), "{reason}");
    assert!(before.elapsed().as_millis() >= 550, "given up after {:?} of 3 x 200 ms", before.elapsed());
    agent.shows("gnomon_agent_uplink_failures_total{kind=\"silent\"} 1").await;
    agent.stop().await;
}
