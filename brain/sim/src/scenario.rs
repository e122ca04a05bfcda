//! What a world consists of and what befalls it.

use gnomon_common::wire::{Labels, VmTerms};
use gnomon_core::{OperatorRequest, Policy};
use serde::{Deserialize, Serialize};

use crate::contention::Contention;

/// A world and its fate. Times are in seconds since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows.
    pub name: String,
    /// Decides every draw: noise, walks, losses.
    pub seed: u64,
    /// How long it lasts.
    pub duration_s: u64,
    /// The brain's policy.
    pub policy: Policy,
    /// Length of the agents' windows.
    pub window_s: u64,
    /// What a message between brain and agent takes, in milliseconds.
    pub link_ms: u64,
    /// What a resize takes on the host, in milliseconds.
    pub actuation_ms: u64,
    /// What a fit takes on the brain's workers, in milliseconds.
    pub fit_ms: u64,
    /// What moves take, and how often they fail.
    #[serde(default)]
    pub moves: MoveSpec,
    /// Share of commands that come a second time, up to a minute and a half late.
    #[serde(default)]
    pub late_share: f64,
    /// How VMs wait for CPUs that others use; without, nobody waits before a host's CPUs are all in use.
    #[serde(default)]
    pub contention: Option<Contention>,
    /// Each host's shadows tell how long one waits on another host.
    #[serde(default)]
    pub shuffles_shadows: bool,
    /// Who is there.
    pub hosts: Vec<HostSpec>,
    /// What lives there.
    pub vms: Vec<VmSpec>,
    /// What happens, in any order.
    pub events: Vec<Timed>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Name, a legal host id.
    pub name: String,
    /// CPU that its VMs share.
    pub capacity_cores: f64,
    /// The agent's own floor for quotas.
    pub floor_cores: f64,
    /// The agent's own ceiling for quotas.
    pub ceiling_cores: f64,
    /// The agent changes nothing.
    pub dry_run: bool,
    /// Memory that its VMs share.
    #[serde(default = "host_memory_mib")]
    pub memory_mib: u64,
    /// Shadows that it takes.
    #[serde(default)]
    pub shadows_max: u32,
    /// What its own tasks, which are no VMs, want beside its VMs. It is felt only where [`Scenario::contention`] is.
    #[serde(default)]
    pub tasks: Option<Load>,
    /// Its zone.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name.
    pub name: String,
    /// Where it starts.
    pub host: String,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its quota at the start; `None` is unlimited.
    pub quota_cores: Option<f64>,
    /// What it wants.
    pub load: Load,
    /// Standard deviation of the noise on what it wants, in cores.
    pub noise_cores: f64,
    /// Mean of what it waits for CPUs that neighbours use, in cores; drawn anew each second. It blurs measured demand.
    pub wait_cores: f64,
    /// Its memory; a VM without has no balloon and tells nothing of it.
    #[serde(default)]
    pub memory: Option<MemorySpec>,
    /// What one without a balloon is defined with, in MiB.
    #[serde(default = "vm_memory_mib")]
    pub memory_mib: u64,
    /// What its owner and its definition allow.
    #[serde(default)]
    pub terms: VmTerms,
}

fn host_memory_mib() -> u64 {
    8192
}

fn vm_memory_mib() -> u64 {
    1024
}

/// How VMs move between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoveSpec {
    /// What each move brings over in a second, in MiB of a VM's memory.
    pub mib_per_s: u64,
    /// Share of moves that fail on their way.
    pub failing_share: f64,
    /// Share of moves after whose switch it cannot be told for a while which of the two hosts runs the VM.
    pub parked_share: f64,
}

impl Default for MoveSpec {
    fn default() -> Self {
        Self { mib_per_s: 100, failing_share: 0.0, parked_share: 0.0 }
    }
}

/// A VM's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemorySpec {
    /// What it is defined with, in MiB.
    pub max_mib: u64,
    /// What its balloon leaves to it at the start, in MiB.
    pub balloon_mib: u64,
    /// What its guest wants, in MiB: from each of these seconds on, in their order.
    pub wants_mib: Vec<(u64, u64)>,
}

impl MemorySpec {
    /// What the guest wants in the second that begins `t_s` after the start, in bytes.
    pub(crate) fn want_bytes(&self, t_s: f64) -> u64 {
        let due = self.wants_mib.iter().take_while(|(from_s, _)| *from_s as f64 <= t_s);
        due.last().map_or(0, |(_, mib)| mib << 20)
    }
}

/// What a guest wants, in cores, over time. Open-loop: what it does not get is lost, not made up for later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Always the same.
    Flat {
        /// How much.
        cores: f64,
    },
    /// A day that repeats: base, a rise, a plateau, a fall.
    Day {
        /// Length of the day.
        period_s: f64,
        /// When the first rise begins.
        phase_s: f64,
        /// Outside the surge.
        base: f64,
        /// On the plateau.
        peak: f64,
        /// From the foot of the rise to the foot of the fall.
        width_s: f64,
        /// Length of the rise, and of the fall, within the width.
        shoulder_s: f64,
    },
    /// A random walk, reflected at its bounds.
    Walk {
        /// Time between moves.
        step_s: f64,
        /// Largest move.
        step: f64,
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
    /// One load, then another.
    Shift {
        /// When.
        at_s: f64,
        /// The load before.
        before: Box<Load>,
        /// The load after; its time starts at the shift.
        after: Box<Load>,
    },
    /// A recorded load, repeated.
    Trace {
        /// Time between values.
        step_s: f64,
        /// The values.
        cores: Vec<f64>,
    },
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// When, in seconds since the start.
    pub at_s: u64,
    /// What.
    pub event: Event,
}

/// What can befall a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A host and the brain cannot reach each other; the agent spools.
    LinkDown {
        /// Which host.
        host: String,
        /// For how long.
        for_s: u64,
        /// Whether the spool is lost as well.
        spool_lost: bool,
    },
    /// An agent ends and is started again; it measures nothing in between.
    AgentRestart {
        /// Which host.
        host: String,
        /// For how long it is away.
        for_s: u64,
    },
    /// The brain is killed and started again from its store.
    BrainRestart {
        /// For how long it is away.
        for_s: u64,
    },
    /// An operator asks for something.
    Operator {
        /// What.
        request: OperatorRequest,
    },
    /// An operator approves, or denies, all that is proposed.
    Decide {
        /// Which of the two.
        approves: bool,
    },
    /// A VM moves.
    Move {
        /// Which.
        vm: String,
        /// Where to.
        host: String,
    },
    /// A host stops, with all that runs on it, and starts again.
    HostDies {
        /// Which.
        host: String,
        /// For how long it is away.
        for_s: u64,
        /// Where somebody starts its VMs meanwhile: then the host comes back with copies of them that do not run.
        restarted_on: Option<String>,
    },
    /// Someone sets a VM's quota by hand.
    SetQuota {
        /// Which.
        vm: String,
        /// To what; `None` is unlimited.
        cores: Option<f64>,
    },
}
