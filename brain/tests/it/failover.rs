//! Two real brains on one real PostgreSQL: one leads, and when it dies, or is only stopped, the other does.

use crate::agent::{Agent, PATIENCE, hello, report, vm};
use crate::brain::{Home, request};
use crate::database::Database;
use crate::process::{Process, start_served};
use gnomon_brain::ca::Issued;
use gnomon_brain::clock::now;
use gnomon_common::wire::{BrainMessage, Command, CommandId, Hello, OutcomeResult, RefusalCode, Welcome};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// A lease of nine seconds, a look each second, and a busy machine.
const TAKE_OVER_MAX: Duration = Duration::from_secs(15);

pub(crate) struct Brain {
    pub(crate) process: Process,
    pub(crate) agents: SocketAddr,
    api: SocketAddr,
    token: String,
}

impl Brain {
    pub(crate) fn start(home: &Home) -> Self {
        let (process, agents, api) = start_served(home);
        Self { process, agents, api, token: home.token() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process.0), signal).unwrap();
    }

    pub(crate) async fn ask(&self, method: &'static str, path: &'static str, body: Option<Value>) -> (u16, String) {
        let (url, token) = (format!("http://{}{path}", self.api), self.token.clone());
        let body = body.map(|body| body.to_string());
        tokio::task::spawn_blocking(move || request(method, &url, Some(&token), body)).await.unwrap()
    }

    pub(crate) async fn is_leader(&self) -> bool {
        let (_, metrics) = self.ask("GET", "/metrics", None).await;
        metrics.lines().any(|line| line == "gnomon_brain_leader 1")
    }

    pub(crate) async fn until_leader(&self) -> Duration {
        let since = Instant::now();
        while !self.is_leader().await {
            assert!(since.elapsed() < PATIENCE, "it does not lead");
            sleep(Duration::from_millis(20)).await;
        }
        since.elapsed()
    }

    /// Has everything released; the command that comes of it.
    pub(crate) async fn release(&self, agent: &mut Agent) -> Command {
        for verb in ["/api/v1/resume", "/api/v1/release"] {
            let (status, body) = self.ask("POST", verb, Some(json!({"scope": "fleet"}))).await;
            assert_eq!(status, 200, "{verb}: {body}");
        }
        agent.command().await
    }
}

/// Two brains of one certificate authority on one database, of which the first leads; `None` where there is no PostgreSQL.
pub(crate) async fn two_brains() -> Option<(Database, Home, Brain, Brain)> {
    let database = Database::postgresql()?;
    let home = Home::new();
    home.write_config(|text| text.replace("path = \"brain.db\"", &database.setting()));
    let first = Brain::start(&home);
    first.until_leader().await;
    let second = Brain::start(&home);
    Some((database, home, first, second))
}

/// Introduces an agent until it is welcome, as a real one does; how long that took.
async fn join(brain: &Brain, identity: &Issued, hello: &Hello) -> (Agent, Welcome, Duration) {
    let since = Instant::now();
    loop {
        if let (agent, BrainMessage::Welcome(welcome)) = Agent::introduce(brain.agents, identity, hello.clone()).await {
            return (agent, welcome, since.elapsed());
        }
        assert!(since.elapsed() < PATIENCE, "the brain does not welcome anybody");
        sleep(Duration::from_millis(100)).await;
    }
}

fn done() -> OutcomeResult {
    OutcomeResult::Applied { before: vec![], after: vec![], took_us: 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_another_brain_acts_within_fifteen_seconds_and_no_command_comes_twice() {
    let Some((database, home, mut first, second)) = two_brains().await else { return };
    let identity = home.agent("a");

    // The other turns agents and people away, and says to whom.
    let (agent, answer) = Agent::introduce(second.agents, &identity, hello("a", 1)).await;
    let BrainMessage::Refused { code: RefusalCode::Busy, reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("leads"), "{reason}");
    assert_eq!(agent.closed().await.1, reason);
    let (_, status) = first.ask("GET", "/api/v1/status", None).await;
    let leader = serde_json::from_str::<Value>(&status).unwrap()["leader"].as_str().unwrap().to_owned();
    for path in ["/api/v1/status", "/api/v1/vms", "/api/v1/audit", "/healthz"] {
        let (status, problem) = second.ask("GET", path, None).await;
        assert_eq!(status, 503, "{path}");
        assert!(problem.contains(&leader), "{path} says {problem}, and {leader} leads");
    }
    assert!(!second.is_leader().await);

    let (mut agent, welcome, _) = join(&first, &identity, &hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    let answered = first.release(&mut agent).await;
    agent.answer(&answered, done()).await;
    let unanswered = first.release(&mut agent).await;
    first.process.0.kill().unwrap();
    first.process.0.wait().unwrap();

    let obeyed = Hello { fence_highest: Some(unanswered.fence), ..hello("a", 1) };
    let (mut agent, next, took) = join(&second, &identity, &obeyed).await;
    println!("killed leader: the other brain welcomed the agent after {took:?}");
    assert!(took < TAKE_OVER_MAX, "{took:?}");
    assert!(next.term > welcome.term && next.acknowledged.0 == 1, "{next:?} after {welcome:?}");
    // What was not answered is asked again, as what it was; what was, is not.
    let again = agent.command().await;
    assert_eq!((again.id, again.fence), (unanswered.id, unanswered.fence));
    agent.answer(&again, done()).await;
    let new = second.release(&mut agent).await;
    assert_eq!((new.id.term, new.fence.term), (next.term, next.term));
    agent.answer(&new, done()).await;
    let ids: [CommandId; 3] = [answered.id, unanswered.id, new.id];
    assert!(ids.is_sorted_by(|a, b| (a.term, a.number) < (b.term, b.number)), "{ids:?}");
    assert_eq!(database.count("SELECT COUNT(*) FROM command").await, 3);
    assert_eq!(database.count("SELECT COUNT(*) FROM outcome").await, 3);
    let taken = "SELECT COUNT(*) FROM audit WHERE verb = 'take_lease' AND detail LIKE '%leads no more'";
    assert_eq!(database.count(taken).await, 1);

    // A leader that is told to stop gives the lease up: nobody waits for its end.
    let third = Brain::start(&home);
    second.signal(Signal::TERM);
    let took = third.until_leader().await;
    println!("stopped leader: the next one led after {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}: the lease was not given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_and_deposed_writes_nothing_when_it_goes_on_and_ends() {
    let Some((database, home, mut first, second)) = two_brains().await else { return };
    let (mut agent, welcome, _) = join(&first, &home.agent("a"), &hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    // Under load, so that it may well be amid a transaction.
    for sequence in 2..200 {
        agent.send(&report("a", 1, sequence, now().unix_ms() + sequence, vm(1), 0.3)).await.unwrap();
    }
    first.signal(Signal::STOP);
    let stopped = Instant::now();
    second.until_leader().await;
    let took = stopped.elapsed();
    println!("stopped process: the other brain led after {took:?}");
    assert!(took < TAKE_OVER_MAX, "{took:?}");
    let (_other, next, _) = join(&second, &home.agent("b"), &hello("b", 1)).await;
    assert!(next.term > welcome.term);

    // What it gets to do as soon as it goes on: reports, and an operator's order.
    let acknowledged = async |agent: &mut Agent| {
        let mut highest = 0;
        while let Ok(Some(ack)) = timeout(Duration::from_millis(300), agent.acknowledged()).await {
            highest = highest.max(ack.sequence.0);
        }
        highest
    };
    let before = acknowledged(&mut agent).await;
    for sequence in 1000..1050 {
        agent.send(&report("a", 1, sequence, now().unix_ms() + sequence, vm(1), 0.3)).await.unwrap();
    }
    let (url, token) = (format!("http://{}/api/v1/release", first.api), first.token.clone());
    let order = tokio::task::spawn_blocking(move || {
        std::panic::catch_unwind(|| request("POST", &url, Some(&token), Some(json!({"scope": "fleet"}).to_string())))
    });
    sleep(Duration::from_millis(300)).await;
    first.signal(Signal::CONT);
    assert!(acknowledged(&mut agent).await <= before.max(199), "acknowledged without being written");
    if let Ok(Ok((status, body))) = order.await {
        assert_ne!(status, 200, "{body}");
    }
    let ended = timeout(PATIENCE, tokio::task::spawn_blocking(move || first.process.0.wait().unwrap())).await;
    assert!(!ended.expect("it goes on without the lease").unwrap().success(), "it must say that it failed");
    while let Ok(message) = timeout(Duration::from_millis(300), agent.try_hear()).await {
        match message {
            Some(BrainMessage::Command(command)) => panic!("{} of a leader that was deposed", command.id),
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(database.count("SELECT COUNT(*) FROM report WHERE sequence >= 1000").await, 0);
    assert_eq!(database.count("SELECT COUNT(*) FROM command").await, 0);
    assert_eq!(database.count("SELECT COUNT(*) FROM audit WHERE verb = 'release'").await, 0);
    assert!(second.is_leader().await);
}
