//! What a shadow is to do: how much of each of its production's KPIs it replays at a fidelity.
//!
//! | fidelity | replayed |
//! |---|---|
//! | 0 | nothing: it idles, and still measures its host |
//! | 0.25 | CPU |
//! | 0.5 | and the memory's working set |
//! | 0.75 | and disk traffic |
//! | 1 | and network traffic, in bursts of a second like the production's |
//!
//! Between two steps the KPI of the upper one comes in by its amplitude.

use gnomon_common::wire::Load;

use crate::policy::ShadowPolicy;

/// How much of each KPI a fidelity replays, 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Amplitudes {
    pub(crate) cpu: f64,
    pub(crate) memory: f64,
    pub(crate) disk: f64,
    pub(crate) network: f64,
}

impl Amplitudes {
    /// Those of a fidelity of 0..=1.
    pub(crate) fn of(fidelity: f64) -> Self {
        let within = |from: f64| ((fidelity - from) / 0.25).clamp(0.0, 1.0);
        Self { cpu: within(0.0), memory: within(0.25), disk: within(0.5), network: within(0.75) }
    }
}

/// What a shadow does of a production's load, and how its network traffic bursts: the highest second over the mean.
pub(crate) fn scaled(production: &Load, network_burst: f64, fidelity: f64, policy: &ShadowPolicy) -> (Load, f64) {
    let amplitudes = Amplitudes::of(fidelity);
    let bytes = |of: u64, share: f64, amplitude: f64| (of as f64 * share * amplitude).round() as u64;
    let disk = |of: u64| bytes(of, policy.disk_share, amplitudes.disk);
    let load = Load {
        cpu_cores: production.cpu_cores * policy.cpu_share * amplitudes.cpu,
        memory_bytes: bytes(production.memory_bytes, policy.memory_share, amplitudes.memory),
        disk_read_bytes_per_s: disk(production.disk_read_bytes_per_s),
        disk_write_bytes_per_s: disk(production.disk_write_bytes_per_s),
        network_bytes_per_s: bytes(production.network_bytes_per_s, policy.network_share, amplitudes.network),
    };
    (load, 1.0 + (network_burst - 1.0).max(0.0) * amplitudes.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCTION: Load = Load {
        cpu_cores: 2.0,
        memory_bytes: 1_000_000,
        disk_read_bytes_per_s: 20_000,
        disk_write_bytes_per_s: 10_000,
        network_bytes_per_s: 5_000,
    };

    fn at(fidelity: f64) -> (Load, f64) {
        scaled(&PRODUCTION, 3.0, fidelity, &ShadowPolicy::default())
    }

    #[test]
    fn each_step_brings_in_one_kpi() {
        assert_eq!(at(0.0), (Load::default(), 1.0));
        let cpu = Load { cpu_cores: 0.2, ..Load::default() };
        assert_eq!(at(0.25), (cpu, 1.0));
        let memory = Load { memory_bytes: 100_000, ..cpu };
        assert_eq!(at(0.5), (memory, 1.0));
        let disk = Load { disk_read_bytes_per_s: 2_000, disk_write_bytes_per_s: 1_000, ..memory };
        assert_eq!(at(0.75), (disk, 1.0));
        assert_eq!(at(1.0), (Load { network_bytes_per_s: 500, ..disk }, 3.0));
    }

    #[test]
    fn between_steps_the_amplitude_scales() {
        let (load, burst) = at(0.125);
        assert!((load.cpu_cores - 0.1).abs() < 1e-12 && load.memory_bytes == 0 && burst == 1.0);
        let (load, burst) = at(0.875);
        assert_eq!((load.network_bytes_per_s, burst), (250, 2.0));
    }
}
