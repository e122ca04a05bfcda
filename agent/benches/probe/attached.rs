//! What is attached while a workload runs.

use super::WARM_UP;
use super::programs::{self, Cost};
use anyhow::{Result, ensure};
use gnomon_agent::probe::{Baseline, BlockProbe, DropProbe, MemoryProbe, ProgramCost, QueueProbe, Scheduler};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a peer gets to load its programs before it counts as failed: bpftrace compiles its own first.
const PEER_START_MAX: Duration = Duration::from_secs(20);

pub(super) const BPFTRACE: &str = "/usr/bin/bpftrace";

/// A candidate's programs, attached while this lives.
pub(super) enum Attached {
    Nothing,
    Empty(Baseline),
    Scheduler(Box<Scheduler>),
    Block(Box<BlockProbe>),
    Queues(Box<QueueProbe>),
    Drops(Box<DropProbe>),
    Memory(Box<MemoryProbe>),
    Peer(Peer),
}

impl Attached {
    pub(super) fn cost(&self) -> Result<Vec<Cost>> {
        let own = |costs: Vec<ProgramCost>| costs.into_iter().map(Cost::from).collect();
        Ok(match self {
            Self::Nothing => Vec::new(),
            Self::Empty(baseline) => own(baseline.cost()?),
            Self::Scheduler(scheduler) => own(scheduler.cost()?),
            Self::Block(block) => own(block.cost()?),
            Self::Queues(queues) => own(queues.cost()?),
            Self::Drops(drops) => own(drops.cost()?),
            Self::Memory(memory) => own(memory.cost()?),
            Self::Peer(peer) => programs::of_process(peer.0.id())?,
        })
    }
}

impl From<ProgramCost> for Cost {
    fn from(cost: ProgramCost) -> Self {
        Self { program: cost.program.to_owned(), runs: cost.runs, run_ns: cost.run_ns }
    }
}

/// A running program of others that has attached eBPF programs.
pub(super) struct Peer(Child);

impl Peer {
    /// Starts it and waits until so many programs are attached. `None` if it is not installed.
    pub(super) fn start(path: &str, arguments: &[&str], programs: usize) -> Result<Option<Attached>> {
        if !fs::exists(path)? {
            return Ok(None);
        }
        let child = Command::new(path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let peer = Self(child);
        let deadline = Instant::now() + PEER_START_MAX;
        while programs::of_process(peer.0.id())?.len() < programs {
            ensure!(
                Instant::now() < deadline,
                "{path} has not loaded its programs in {PEER_START_MAX:?}: run it by hand to see why"
            );
            sleep(WARM_UP);
        }
        // It attaches them after it has loaded the last one.
        sleep(4 * WARM_UP);
        Ok(Some(Attached::Peer(peer)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Our own child; if it has ended already there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
