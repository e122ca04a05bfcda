//! Who ran while a VM waited for a CPU.

use super::VmId;
use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// How many culprits of a VM a window names at most.
pub const CULPRITS_MAX: usize = 8;

/// A culprit that took less of a window than this is one of the others, in cores.
pub const CULPRIT_CORES_MIN: f32 = 0.001;

/// How long a command can be, in bytes: the kernel's `TASK_COMM_LEN`, if each byte has to be replaced because it is no UTF-8.
pub const COMMAND_BYTES_MAX: usize = 16 * 3;

/// What a VM's threads waited in a window, by who had the CPU meanwhile, each in mean cores.
///
/// A wait is charged when it ends, to whoever ran last before that. The parts sum to about the window's wait (`demand_high - demand_low`),
/// less what was waited in front of an idle CPU, which is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Culprits {
    /// The VM's own quota was used up; `None` where the host's kernel does not tell, and then it is nobody's, or another's.
    pub own_quota_cores: Option<f32>,
    /// Other threads of the same VM ran.
    pub own_cores: f32,
    /// Who else ran, largest first: at most [`CULPRITS_MAX`], each with at least [`CULPRIT_CORES_MIN`].
    pub named: Vec<CulpritShare>,
    /// All others.
    pub others_cores: f32,
}

/// One culprit's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CulpritShare {
    /// Who ran.
    pub who: Who,
    /// While the VM waited for so many cores.
    pub cores: f32,
}

/// Who ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Another VM of the host.
    Vm(VmId),
    /// A task of the host, by the command of its process; the kernel's own without what tells them apart by CPU.
    Task(String),
}

impl Culprits {
    /// Whether it is within its bounds, and all of it finite and not negative.
    pub fn is_sane(&self) -> bool {
        let shares = self.named.iter().map(|culprit| culprit.cores);
        let mut cores = self.own_quota_cores.into_iter().chain([self.own_cores, self.others_cores]).chain(shares);
        let fits = |who: &Who| !matches!(who, Who::Task(command) if command.len() > COMMAND_BYTES_MAX);
        cores.all(|cores| cores.is_finite() && cores >= 0.0)
            && self.named.len() <= CULPRITS_MAX
            && self.named.iter().all(|culprit| fits(&culprit.who))
    }
}
