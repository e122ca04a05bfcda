//! What a shadow is to do: its production's forecast, ahead of its time and to the shadow's scale.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Load, NETWORK_BURST_MAX, PROFILE_STEPS_MAX, Profile, ProfileStep, VmId};

use super::Core;
use crate::fleet::Vm;
use crate::shadow::Shadow;
use crate::shadow::fidelity::scaled;

/// A profile holds for so many times the interval at which a new one comes: two may be lost.
const HOLDS_FOR: u32 = 3;

impl Core {
    /// How much of its production's load a shadow replays now.
    pub(super) fn fidelity_of(&self, shadow: &Shadow) -> f64 {
        shadow.fidelity.unwrap_or(self.policy.shadow.fidelity)
    }

    /// A shadow's profile from now on, and the first load in it. `None` while nothing is known of its production.
    pub(super) fn shadow_profile(&self, now: Timestamp, id: VmId) -> Option<(Profile, Load)> {
        let kept = self.shadows.kept.get(&id)?;
        let shadow = &kept.shadow;
        let production = self.fleet.vms.get(&shadow.of)?;
        let policy = &self.policy.shadow;
        let fidelity = self.fidelity_of(shadow);
        let length = Duration::from_millis(policy.pace_ms) * HOLDS_FOR;
        let from = now + Duration::from_millis(policy.lead_ms);
        let (rest, burst) = load_now(production);
        if let (Some(trial), Some(index)) = (&shadow.trial, kept.plays(now)) {
            let (mut load, network_burst) = scaled(&rest, burst, fidelity, policy);
            load.cpu_cores = trial.levels[index].plays_cores;
            let steps = vec![ProfileStep { after_ms: 0, load, network_burst }];
            return Some((Profile { valid_ms: length.as_millis() as u64, steps }, load));
        }
        let size_cores = shadow.size.map_or(f64::INFINITY, |size| size.cpu_cores);
        let step = |(at, cpu_cores): (Timestamp, f64)| {
            let (mut load, network_burst) = scaled(&Load { cpu_cores, ..rest }, burst, fidelity, policy);
            load.cpu_cores = load.cpu_cores.min(size_cores);
            ProfileStep { after_ms: at.since(from).as_millis() as u64, load, network_burst }
        };
        let steps: Vec<ProfileStep> =
            production.median_from(from, length, &self.policy)?.into_iter().take(PROFILE_STEPS_MAX).map(step).collect();
        let load = steps.first()?.load;
        Some((Profile { valid_ms: length.as_millis() as u64, steps }, load))
    }
}

/// What a VM wants now beside CPU, which alone is forecast step by step, and how its network traffic bursts.
fn load_now(vm: &Vm) -> (Load, f64) {
    let bytes = |value: f64| if value.is_finite() { value.max(0.0) as u64 } else { 0 };
    let disk = vm.disk.as_ref().filter(|disk| disk.is_sane());
    let sent = vm.interfaces.iter().filter(|interface| interface.is_sane()).map(|interface| interface.sent.bytes_per_s);
    let (mean, max) = sent.fold((0.0, 0.0), |(mean, max), sent| (mean + sent.mean, max + sent.max));
    let load = Load {
        cpu_cores: 0.0,
        memory_bytes: vm.memory.as_ref().and_then(|memory| memory.demand).map_or(0, |demand| demand.low_bytes),
        disk_read_bytes_per_s: disk.map_or(0, |disk| bytes(disk.read.bytes_per_s.mean)),
        disk_write_bytes_per_s: disk.map_or(0, |disk| bytes(disk.write.bytes_per_s.mean)),
        network_bytes_per_s: bytes(mean),
    };
    (load, burst(mean, max))
}

/// How traffic bursts: its highest second over its mean, as far as a pacer follows that.
fn burst(mean: f64, max: f64) -> f64 {
    if mean > 0.0 { (max / mean).clamp(1.0, NETWORK_BURST_MAX) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_that_comes_more_seldom_than_a_pacer_can_play_is_played_as_seldom_as_it_can() {
        for (mean, max, played) in
            [(2.0, 20.0, 10.0), (1.0, 300.0, 60.0), (1e-300, 1e300, 60.0), (2.0, 1.0, 1.0), (0.0, 9.0, 1.0)]
        {
            assert_eq!(burst(mean, max), played, "{mean} {max}");
        }
    }
}
