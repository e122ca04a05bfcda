//! Two hundred agents at once on the real `gnomon-brain`: none is refused, all are heard, and after a `kill -9` all come back.

use crate::agent::{Agent, PATIENCE, hello, report, vm};
use crate::brain::{Home, count};
use crate::process::start;
use gnomon_brain::ca::Issued;
use gnomon_brain::clock::now;
use gnomon_common::wire::{AgentMessage, BrainMessage, RefusalCode, Report, VmWindow};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

const AGENTS: usize = 200;
const VMS_PER_HOST: u128 = 10;
/// Reports of each agent in each half of the test.
const REPORTS: u64 = 5;
/// The brain's heart-beat; a brain that is silent for three is lost.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// An agent waits up to so long before it tries again, each another time.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// What two thousand VMs with a few windows may cost at most: the program itself takes most of it.
const RESIDENT_KIB_MAX: u64 = 256 << 10;

/// What became of the crowd.
struct Crowd {
    brain: SocketAddr,
    /// How many reports each agent is to deliver.
    goal: watch::Receiver<u64>,
    gate: Barrier,
    acknowledged: Vec<AtomicU64>,
    /// Attempts that did not even lead to a hello, or were answered with "busy".
    refused: AtomicU32,
    sessions: AtomicU32,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_agents_at_once_are_all_heard_and_all_come_back_after_a_crash() {
    let home = Home::new();
    // A port that stays: agents come back to where they were.
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    home.write_config(|text| {
        text.replace("address = \"127.0.0.1:0\"", &format!("address = \"{address}\""))
            .replace("heartbeat_ms = 30000", &format!("heartbeat_ms = {}", HEARTBEAT.as_millis()))
    });
    let identities: Vec<Issued> = (0..AGENTS).map(|number| home.agent(&name(number))).collect();
    let (mut process, brain) = start(&home);
    assert_eq!(brain, address);
    let (goal, followed) = watch::channel(REPORTS);
    let crowd = Arc::new(Crowd {
        brain,
        goal: followed,
        gate: Barrier::new(AGENTS),
        acknowledged: (0..AGENTS).map(|_| AtomicU64::new(0)).collect(),
        refused: AtomicU32::new(0),
        sessions: AtomicU32::new(0),
    });
    for (number, identity) in identities.into_iter().enumerate() {
        tokio::spawn(live(number, identity, crowd.clone()));
    }
    crowd.until("the first reports are through", |crowd| crowd.acknowledged_up_to(REPORTS)).await;
    assert_eq!(crowd.refused.load(Ordering::Relaxed), 0, "{AGENTS} are fewer than may shake hands at a time");
    assert_eq!(crowd.sessions.load(Ordering::Relaxed), AGENTS as u32, "some had to connect twice");
    let before_kib = resident_kib(process.0.id());
    assert!(before_kib < RESIDENT_KIB_MAX, "the brain has grown to {before_kib} KiB");

    // All speak at once, and the brain dies on it.
    goal.send_replace(2 * REPORTS);
    sleep(Duration::from_millis(20)).await;
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    let (process, _) = start(&home);
    crowd.until("the other reports are through", |crowd| crowd.acknowledged_up_to(2 * REPORTS)).await;
    crowd.until("all are back", |crowd| crowd.sessions.load(Ordering::Relaxed) as usize >= 2 * AGENTS).await;
    assert_eq!(crowd.sessions.load(Ordering::Relaxed), 2 * AGENTS as u32, "some had to come back twice");
    let after_kib = resident_kib(process.0.id());
    assert!(after_kib < RESIDENT_KIB_MAX, "the brain has grown to {after_kib} KiB");
    println!(
        "refused while all came back: {}; resident {before_kib} KiB, after the crash {after_kib} KiB",
        crowd.refused.load(Ordering::Relaxed)
    );

    let stored = count(&home.database(), "SELECT COUNT(*) FROM report").await;
    assert_eq!(stored as u64, AGENTS as u64 * 2 * REPORTS, "each report is stored, once");
    let complete = "SELECT COUNT(*) FROM (SELECT host FROM report GROUP BY host HAVING MAX(sequence) = 10)";
    assert_eq!(count(&home.database(), complete).await, AGENTS as i64, "none is missing in between");
}

fn name(number: usize) -> String {
    format!("host-{number}")
}

fn window(number: usize, sequence: u64) -> Report {
    let first = number as u128 * VMS_PER_HOST;
    let mut report = report(&name(number), 1, sequence, now().unix_ms(), vm(first), 0.3);
    report.vms = (first..first + VMS_PER_HOST).map(|of| VmWindow { vm: vm(of), ..report.vms[0].clone() }).collect();
    report
}

impl Crowd {
    /// Whether every agent's reports are acknowledged up to `sequence`.
    fn acknowledged_up_to(&self, sequence: u64) -> bool {
        self.acknowledged.iter().all(|acknowledged| acknowledged.load(Ordering::Relaxed) >= sequence)
    }

    async fn until(&self, what: &str, is_true: impl Fn(&Self) -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !is_true(self) {
            let sessions = self.sessions.load(Ordering::Relaxed);
            assert!(Instant::now() < patience, "not in time: {what}; {sessions} sessions so far");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Connects, again and again, as an agent does.
async fn live(number: usize, identity: Issued, crowd: Arc<Crowd>) {
    crowd.gate.wait().await;
    for attempt in 1u32.. {
        session(number, &identity, &crowd).await;
        // Any spread will do, as long as it is not the same for all.
        let jitter = (number as u32).wrapping_mul(0x9e37_79b9).wrapping_add(attempt.wrapping_mul(0x85eb_ca6b));
        sleep(BACKOFF_MAX.mul_f64(f64::from(jitter) / f64::from(u32::MAX))).await;
    }
}

/// One connection: delivers what is to be delivered until the brain is gone.
async fn session(number: usize, identity: &Issued, crowd: &Crowd) -> Option<()> {
    let Ok(Ok(mut agent)) = timeout(PATIENCE, Agent::dial(crowd.brain, identity)).await else {
        crowd.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    agent.try_say(&AgentMessage::Hello(hello(&name(number), 1))).await.ok()?;
    let mut next = match agent.try_hear().await? {
        BrainMessage::Welcome(welcome) => {
            // The crash may have come between sync and acknowledgement: this is where the agent hears of it.
            crowd.acknowledged[number].store(welcome.acknowledged.0, Ordering::Relaxed);
            welcome.acknowledged.0 + 1
        }
        BrainMessage::Refused { code: RefusalCode::Busy, .. } => {
            crowd.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        other => panic!("neither welcome nor busy: {other:?}"),
    };
    crowd.sessions.fetch_add(1, Ordering::Relaxed);
    let mut goal = crowd.goal.clone();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let wanted = *goal.borrow_and_update();
        while next <= wanted {
            agent.send(&window(number, next)).await.ok()?;
            next += 1;
        }
        let Agent { heard: messages, reports, .. } = &mut agent;
        let acknowledgement = async {
            match reports {
                Some((_, acks)) => acks.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ack = acknowledgement => crowd.acknowledged[number].store(ack?.sequence.0, Ordering::Relaxed),
            message = messages.recv() => {
                message?;
                heard = Instant::now();
            }
            changed = goal.changed() => changed.ok()?,
            _ = beat.tick() => agent.try_say(&AgentMessage::Heartbeat { at: now() }).await.ok()?,
        }
        if heard.elapsed() > 3 * HEARTBEAT {
            return None;
        }
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
