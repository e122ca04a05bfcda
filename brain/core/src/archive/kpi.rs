//! What is kept of a VM, and at which resolutions.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is measured of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kpi {
    /// Demand for CPU, in cores.
    Cpu = 0,
    /// Memory in use, in bytes.
    Memory = 1,
    /// Bytes read from disks, each second.
    DiskReadBytes = 2,
    /// Bytes written to disks, each second.
    DiskWriteBytes = 3,
    /// Read operations, each second.
    DiskReads = 4,
    /// Write operations, each second.
    DiskWrites = 5,
    /// Bytes received, each second.
    NetworkIn = 6,
    /// Bytes sent, each second.
    NetworkOut = 7,
    /// Demand for CPU that may have been there beyond [`Kpi::Cpu`], in cores: a VM that waited for a busy host, or longer than its quota
    /// made it, wanted at most so much more. Kept only of VMs that were ever held back so.
    CpuUnknown = 8,
}

impl Kpi {
    /// All of them, in the order of their numbers in a block's header.
    pub const ALL: [Self; 9] = [
        Self::Cpu,
        Self::Memory,
        Self::DiskReadBytes,
        Self::DiskWriteBytes,
        Self::DiskReads,
        Self::DiskWrites,
        Self::NetworkIn,
        Self::NetworkOut,
        Self::CpuUnknown,
    ];

    /// Whether all that is kept of it is in memory, unless told otherwise: forecasts are made of it.
    pub(super) const fn is_resident(self) -> bool {
        matches!(self, Self::Cpu | Self::CpuUnknown)
    }

    /// Whether it bounds what is not known: it is kept more coarsely ([`ESTIMATE_ERROR_MAX`](super::ESTIMATE_ERROR_MAX)).
    pub(super) const fn is_estimate(self) -> bool {
        matches!(self, Self::CpuUnknown)
    }
}

/// A resolution, and for how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// Steps of 10 s for 6 h.
    Seconds10 = 0,
    /// Steps of 5 min for 5 weeks.
    Minutes5 = 1,
    /// Steps of 1 h for 400 days.
    Hour1 = 2,
}

impl fmt::Display for Kpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU demand",
            Self::Memory => "memory",
            Self::DiskReadBytes => "disk read bytes",
            Self::DiskWriteBytes => "disk write bytes",
            Self::DiskReads => "disk reads",
            Self::DiskWrites => "disk writes",
            Self::NetworkIn => "network in",
            Self::NetworkOut => "network out",
            Self::CpuUnknown => "CPU demand that is not known",
        })
    }
}

impl Tier {
    /// All of them, the finest first.
    pub const ALL: [Self; 3] = [Self::Seconds10, Self::Minutes5, Self::Hour1];

    /// Length of a step, in milliseconds.
    pub const fn step_ms(self) -> u64 {
        match self {
            Self::Seconds10 => 10_000,
            Self::Minutes5 => 300_000,
            Self::Hour1 => 3_600_000,
        }
    }

    /// Length of a step.
    pub const fn step(self) -> Duration {
        Duration::from_millis(self.step_ms())
    }

    /// Steps that are kept at least; up to a block more are.
    pub const fn steps_kept(self) -> u64 {
        match self {
            Self::Seconds10 => 6 * 360,
            Self::Minutes5 => 5 * 7 * 288,
            Self::Hour1 => 400 * 24,
        }
    }

    /// How long a step is kept at most: blocks are forgotten as a whole.
    pub const fn kept_max(self) -> Duration {
        Duration::from_millis((self.steps_kept() + self.block_steps(Kpi::Cpu)) * self.step_ms())
    }

    /// Steps of a block. Shorter ones compress worse, longer ones keep more steps uncompressed while they are open: so they are short for
    /// what is otherwise in the store alone.
    pub const fn block_steps(self, kpi: Kpi) -> u64 {
        let (long, short) = match self {
            Self::Seconds10 => (360, 120),
            Self::Minutes5 => (576, 144),
            Self::Hour1 => (384, 96),
        };
        if kpi.is_resident() { long } else { short }
    }
}
