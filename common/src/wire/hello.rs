//! The control stream: introduction, heart-beat, commands in, outcomes out.

use super::{
    AgentEpoch, Command, CommandId, Fence, HostId, KeptCopies, Labels, Means, MigrationFacts, Outcome, Sequence,
    ShadowFacts,
};
use crate::time::Timestamp;
use core::fmt;
use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// What an agent sends on the control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time for each connection")]
pub enum AgentMessage {
    /// The first message of every connection, and only that.
    Hello(Hello),
    /// "I am here": every [`Welcome::heartbeat_ms`].
    Heartbeat {
        /// The agent's wall clock, so that the brain can see a skewed one.
        at: Timestamp,
    },
    /// What became of a command; repeated on every connection until acknowledged.
    Outcome(Outcome),
    /// The agent wants its next certificate: see [`super::renewal_due`].
    Renew {
        /// A certificate signing request (PKCS #10, DER) for a new key.
        request: Vec<u8>,
    },
}

/// What the brain sends on the control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum BrainMessage {
    /// The hello was accepted.
    Welcome(Welcome),
    /// The connection is refused and will be closed.
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why and what to do, for people.
        reason: String,
    },
    /// Answers every [`AgentMessage::Heartbeat`].
    Heartbeat {
        /// The brain's wall clock.
        at: Timestamp,
    },
    /// Do this.
    Command(Command),
    /// The outcome of this command is synced to the store: forget it.
    OutcomeAck {
        /// Whose outcome.
        id: CommandId,
    },
    /// The next certificate: the agent connects anew with it.
    Renewed {
        /// PEM.
        certificate: String,
    },
    /// There is no next certificate yet: the agent asks again later, and its present one stays good until it ends.
    RenewalRefused {
        /// Why and what to do, for people.
        reason: String,
    },
}

/// Why a brain refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// The certificate's name is not the host's name.
    Identity,
    /// A message that does not decode, is too large or comes out of order.
    Malformed,
    /// The brain cannot serve now (starting, stopping, too many agents): retry later.
    Busy,
    /// The host was revoked: nothing but a new token lets it in again.
    Revoked,
    /// The certificate has ended.
    Expired,
}

/// The protocol versions a side can speak, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version in both ranges, if there is one.
    pub fn negotiate(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.min, self.max)
    }
}

/// An agent's introduction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions the agent speaks.
    pub versions: VersionRange,
    /// Who it claims to be; must be the name in its certificate.
    pub host: HostId,
    /// This life of the agent process.
    pub epoch: AgentEpoch,
    /// The highest fence it has obeyed, so that a brain restored from a back-up cannot regress it.
    pub fence_highest: Option<Fence>,
    /// The agent's release, for people.
    pub agent_version: String,
    /// What the host is.
    pub facts: HostFacts,
}

/// What a host is: facts that change rarely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// CPU that VMs may share out, in cores (declared in the agent's configuration, else the number of online CPUs).
    pub capacity_cores: f64,
    /// Memory that VMs may share out, in bytes.
    pub memory_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// The hypervisor's version as libvirt tells it, empty while unknown.
    pub hypervisor: String,
    /// The limits this agent enforces whatever a command says.
    pub cpu_bounds: CpuBounds,
    /// The same for memory.
    pub memory_bounds: MemoryBounds,
    /// The means that this agent is configured to use, sorted.
    pub means: Vec<Means>,
    /// What it takes to send VMs here and away; `None` where the agent is not configured for it.
    pub migration: Option<MigrationFacts>,
    /// Where it stands, for what must not be in one place: a room, a feed, a rack; `None` where nobody says.
    pub zone: Option<String>,
    /// Its NUMA nodes, by number; none where that is not told.
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    /// What its operator says of it, for VMs whose owners ask for that.
    #[serde(default)]
    pub labels: Labels,
    /// What shadows it takes; `None` where the agent is not configured to take any.
    pub shadows: Option<ShadowFacts>,
    /// Shadows for which it keeps copies of disks.
    pub copies: KeptCopies,
    /// The agent judges and logs commands but changes nothing (`--dry-run`).
    pub dry_run: bool,
    /// Where its readings of CPU come from, and so how much they tell.
    pub cpu_source: CpuSource,
}

/// NUMA nodes that are told of one host.
pub const NUMA_NODES_MAX: usize = 64;

/// A NUMA node of a host: CPUs, and the memory that is near them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its number.
    pub node: u32,
    /// Its CPUs that are online.
    pub cpus: u32,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

/// Where readings of what VMs ran and waited come from, best first. Each tells less than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuSource {
    /// eBPF with BTF tracepoints and task storage.
    TaskStorage,
    /// eBPF with classic tracepoints and a hash table: the same at a higher cost.
    Tracepoints,
    /// `/proc/PID/task/TID/schedstat`: time run and waited; no histogram of waits, no wake-ups, no preemptions, nothing of threads
    /// that ended between two samples, and a wait only when it is over.
    Schedstat,
    /// The VMs' control groups: CPU time used; what more they wanted is unknown.
    Cgroup,
}

impl CpuSource {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::TaskStorage, Self::Tracepoints, Self::Schedstat, Self::Cgroup];

    /// Its name in configurations, metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::TaskStorage => "task_storage",
            Self::Tracepoints => "tracepoints",
            Self::Schedstat => "schedstat",
            Self::Cgroup => "cgroup",
        }
    }

    /// Whether it tells how long threads waited for a CPU: without it, demand above usage is unknown.
    pub fn tells_waiting(self) -> bool {
        self != Self::Cgroup
    }

    /// Whether it counts wake-ups and preemptions and keeps a histogram of waits.
    pub fn counts_events(self) -> bool {
        matches!(self, Self::TaskStorage | Self::Tracepoints)
    }
}

impl fmt::Display for CpuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The agent's own limits for a VM's CPU quota. The brain plans within them and cannot override them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuBounds {
    /// Never below this, in cores.
    pub floor_cores: f64,
    /// Never above this, in cores; the number of vCPUs bounds it as well.
    pub ceiling_cores: f64,
}

/// The agent's own limits for a VM's balloon. The brain plans within them and cannot override them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryBounds {
    /// Kept above what the guest uses now, in bytes.
    pub reserve_bytes: u64,
    /// Largest share of the present size that one step may take away, 0..=1. Growth is not bounded by it.
    pub shrink_step_max: f64,
}

impl Default for MemoryBounds {
    fn default() -> Self {
        Self { reserve_bytes: 64 << 20, shrink_step_max: 0.05 }
    }
}

/// The brain's answer to a good hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u16,
    /// The brain's lease term: commands of lower terms are stale from now on.
    pub term: u64,
    /// How often each side sends a heart-beat, in milliseconds; three missed ones mean the peer is lost.
    pub heartbeat_ms: u32,
    /// The highest sequence of the hello's epoch that is already in the store (0 if none). Live reports overtake the backlog, so that earlier
    /// ones may still be missing: it does not acknowledge them.
    pub acknowledged: Sequence,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins_and_disjoint_ranges_have_none() {
        let v = |min, max| VersionRange { min, max };
        assert_eq!(v(1, 3).negotiate(v(2, 5)), Some(3));
        assert_eq!(v(4, 5).negotiate(v(1, 4)), Some(4));
        assert_eq!(v(1, 1).negotiate(v(2, 3)), None);
    }
}
