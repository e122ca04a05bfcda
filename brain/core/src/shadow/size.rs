//! How large a shadow is: a share of what its production may be given at most, with floors below which no guest lives; and how one that runs comes from
//! the size that it has to the one that it should have.

use gnomon_common::wire::{Blueprint, DiskWindow, InterfaceWindow, ShadowSize};
use serde::{Deserialize, Serialize};

use crate::policy::ShadowPolicy;

/// Memory is given in whole mebibytes.
const MIB: u64 = 1 << 20;
/// Heaviest weight on the scale of cgroup v2's `cpu.weight`.
const WEIGHT_MAX: u32 = 10_000;

/// A running shadow is not resized for less of a change than this, of CPU, weight or memory, as a share of what it has.
const CHANGE_MIN: f64 = 0.05;
/// The same of traffic, whose peaks grow by and by.
const TRAFFIC_CHANGE_MIN: f64 = 0.25;

/// The most that a production did in a second, as far as its windows told since it was to have a shadow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    /// Read and written on all its disks, in bytes per second.
    pub disk_bytes_per_s: u64,
    /// By one of its network interfaces in one direction, in bytes per second.
    pub network_bytes_per_s: u64,
}

impl Peaks {
    /// Those of a window.
    pub(crate) fn of(disk: Option<&DiskWindow>, interfaces: &[InterfaceWindow]) -> Self {
        let disk = disk.filter(|disk| disk.is_sane());
        let disk = disk.map_or(0.0, |disk| disk.read.bytes_per_s.max + disk.write.bytes_per_s.max);
        let sane = interfaces.iter().filter(|interface| interface.is_sane());
        let network = sane.flat_map(|interface| [interface.received.bytes_per_s.max, interface.sent.bytes_per_s.max]);
        Self { disk_bytes_per_s: disk as u64, network_bytes_per_s: network.fold(0.0, f64::max) as u64 }
    }

    /// The higher of both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            disk_bytes_per_s: self.disk_bytes_per_s.max(other.disk_bytes_per_s),
            network_bytes_per_s: self.network_bytes_per_s.max(other.network_bytes_per_s),
        }
    }
}

/// The size of a shadow of a production that may be given `most_cores` (`None`: all its vCPUs) and has done no more than `peaks`, with at least
/// `memory_floor_bytes`.
///
/// What its production has at the moment is planned anew all day, and no measure: a shadow that was made by night would be held back by day. Traffic is limited
/// to a share of its production's own limits or, where it has none, of what that did at most.
///
/// Its weight is, for each vCPU, its production's, so that it waits for a CPU as that would: under contention control groups share by weight, whatever
/// they have of vCPUs.
pub(crate) fn size(
    blueprint: &Blueprint,
    most_cores: Option<f64>,
    peaks: Peaks,
    memory_floor_bytes: u64,
    policy: &ShadowPolicy,
) -> ShadowSize {
    let limit = |own: Option<u64>, peak: u64, share: f64, floor: u64, most: u64| {
        let bytes_per_s = (own.unwrap_or(peak) as f64 * share) as u64;
        (most > 0).then(|| bytes_per_s.max(floor).min(most))
    };
    let vcpus = blueprint.vcpus.max(1);
    let production_cores = most_cores.unwrap_or(f64::from(vcpus)).min(f64::from(vcpus));
    let cpu_cores = (production_cores * policy.cpu_share).max(policy.cpu_floor_cores).min(f64::from(vcpus));
    let shadow_vcpus = (cpu_cores.ceil() as u32).clamp(1, vcpus);
    let share_bytes = (blueprint.memory_bytes as f64 * policy.memory_share) as u64;
    let memory_bytes = share_bytes.max(memory_floor_bytes).max(policy.memory_floor_bytes).min(blueprint.memory_bytes);
    ShadowSize {
        cpu_cores,
        vcpus: shadow_vcpus,
        cpu_weight: weight(blueprint.cpu_weight, shadow_vcpus, vcpus),
        memory_bytes: memory_bytes.div_ceil(MIB) * MIB,
        disk_bytes_per_s: limit(
            blueprint.disk_bytes_per_s_max,
            peaks.disk_bytes_per_s,
            policy.disk_share,
            policy.disk_floor_bytes_per_s,
            policy.disk_bytes_per_s_max,
        ),
        network_bytes_per_s: limit(
            blueprint.network_bytes_per_s_max,
            peaks.network_bytes_per_s,
            policy.network_share,
            policy.network_floor_bytes_per_s,
            policy.network_bytes_per_s_max,
        ),
    }
}

/// The weight of a number of vCPUs, where so many others have that one.
fn weight(weight: u32, vcpus: u32, of_vcpus: u32) -> u32 {
    weight.saturating_mul(vcpus).div_ceil(of_vcpus.max(1)).clamp(1, WEIGHT_MAX)
}

/// How a running shadow comes to another size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    /// It is given that while it runs.
    InPlace(ShadowSize),
    /// It has to be made anew: it would need vCPUs or memory beyond what it is defined with.
    Anew,
}

/// What it takes for one that has a size, and is defined with so much memory, to be as one that is made now; nothing where it is near enough.
///
/// One that runs keeps its vCPUs as long as they are enough: its quota holds it, and its weight is for the vCPUs that it has.
pub(crate) fn change(has: &ShadowSize, defined_bytes: u64, wants: &ShadowSize) -> Option<Change> {
    let to = ShadowSize { vcpus: has.vcpus, cpu_weight: weight(wants.cpu_weight, has.vcpus, wants.vcpus), ..*wants };
    let is_anew = wants.vcpus > has.vcpus || wants.memory_bytes > defined_bytes;
    let is_far = |has: f64, to: f64, least: f64| (has - to).abs() > least * has;
    let traffic = |has: Option<u64>, to: Option<u64>| match (has, to) {
        (Some(has), Some(to)) => is_far(has as f64, to as f64, TRAFFIC_CHANGE_MIN),
        _ => has != to,
    };
    let is_other = is_far(has.cpu_cores, to.cpu_cores, CHANGE_MIN)
        || is_far(has.cpu_weight.into(), to.cpu_weight.into(), CHANGE_MIN)
        || is_far(has.memory_bytes as f64, to.memory_bytes as f64, CHANGE_MIN)
        || traffic(has.disk_bytes_per_s, to.disk_bytes_per_s)
        || traffic(has.network_bytes_per_s, to.network_bytes_per_s);
    is_other.then_some(if is_anew { Change::Anew } else { Change::InPlace(to) })
}

/// What of it a change would add, in cores and bytes.
pub(crate) fn growth(from: &ShadowSize, to: &ShadowSize) -> (f64, u64) {
    ((to.cpu_cores - from.cpu_cores).max(0.0), to.memory_bytes.saturating_sub(from.memory_bytes))
}

/// What differs between two sizes, for a person.
pub(crate) fn difference(from: &ShadowSize, to: &ShadowSize) -> String {
    let traffic = |limit: Option<u64>| {
        limit.map_or_else(
            || "no limit".to_owned(),
            |bytes_per_s| format!("{:.1} MiB/s", bytes_per_s as f64 / MIB as f64),
        )
    };
    let words = |size: &ShadowSize| {
        [
            format!("{:.2} cores", size.cpu_cores),
            format!("weight {}", size.cpu_weight),
            format!("{} MiB", size.memory_bytes / MIB),
            format!("disks {}", traffic(size.disk_bytes_per_s)),
            format!("network {}", traffic(size.network_bytes_per_s)),
        ]
    };
    let both = words(from).into_iter().zip(words(to)).filter(|(from, to)| from != to);
    both.map(|(from, to)| format!("{from} -> {to}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{Boot, CPU_WEIGHT_DEFAULT, DiskFlow, MeanMax, Traffic};

    fn blueprint(vcpus: u32, memory_bytes: u64) -> Blueprint {
        Blueprint {
            name: "web".to_owned(),
            kvm: true,
            arch: "x86_64".to_owned(),
            machine: "q35".to_owned(),
            cpu_model: None,
            boot: Boot::Bios,
            vcpus,
            memory_bytes,
            cpu_weight: CPU_WEIGHT_DEFAULT,
            disk_bytes_per_s_max: None,
            network_bytes_per_s_max: None,
            disks: Vec::new(),
            interfaces: Vec::new(),
        }
    }

    #[test]
    fn a_shadow_is_a_share_of_what_its_production_may_be_given() {
        let policy = ShadowPolicy::default();
        let all = size(&blueprint(16, 32 << 30), None, Peaks::default(), 0, &policy);
        assert!((all.cpu_cores - 16.0 * policy.cpu_share).abs() < 1e-9);
        assert_eq!((all.vcpus, all.cpu_weight), (2, 13));
        assert_eq!(all.memory_bytes, (32 << 30) / 10 / MIB * MIB + MIB, "a tenth, rounded up");
        let held = size(&blueprint(16, 32 << 30), Some(4.0), Peaks::default(), 0, &policy);
        assert!((held.cpu_cores - 0.4).abs() < 1e-9 && held.vcpus == 1);
        let heavy = Blueprint { cpu_weight: 400, ..blueprint(16, 32 << 30) };
        assert_eq!(size(&heavy, None, Peaks::default(), 0, &policy).cpu_weight, 50, "two vCPUs of sixteen");
        let heaviest = Blueprint { cpu_weight: u32::MAX, ..blueprint(1, 32 << 30) };
        assert_eq!(size(&heaviest, None, Peaks::default(), 0, &policy).cpu_weight, WEIGHT_MAX);
    }

    #[test]
    fn traffic_is_limited_to_a_share_of_its_production_s_own_limit_or_of_what_that_did_at_most() {
        let policy = ShadowPolicy { disk_share: 0.05, network_share: 0.2, ..ShadowPolicy::default() };
        let limits = |blueprint: &Blueprint, peaks, policy| {
            let size = size(blueprint, None, peaks, 0, policy);
            (size.disk_bytes_per_s, size.network_bytes_per_s)
        };
        let peaks = Peaks { disk_bytes_per_s: 1 << 30, network_bytes_per_s: 100 << 20 };
        let free = blueprint(4, 32 << 30);
        assert_eq!(limits(&free, peaks, &policy), (Some((1_u64 << 30) / 20), Some(20 << 20)));
        let limited = Blueprint {
            disk_bytes_per_s_max: Some(400 << 20),
            network_bytes_per_s_max: Some(50 << 20),
            ..free.clone()
        };
        assert_eq!(limits(&limited, peaks, &policy), (Some(20 << 20), Some(10 << 20)));
        let floors = (Some(policy.disk_floor_bytes_per_s), Some(policy.network_floor_bytes_per_s));
        assert_eq!(limits(&free, Peaks::default(), &policy), floors);
        let huge = Peaks { disk_bytes_per_s: u64::MAX, network_bytes_per_s: u64::MAX };
        assert_eq!(
            limits(&free, huge, &policy),
            (Some(policy.disk_bytes_per_s_max), Some(policy.network_bytes_per_s_max))
        );
        let none = ShadowPolicy { network_bytes_per_s_max: 0, disk_bytes_per_s_max: 0, ..policy };
        assert_eq!(limits(&limited, peaks, &none), (None, None));
    }

    #[test]
    fn peaks_are_the_highest_second_of_all_disks_and_of_one_way_of_one_interface() {
        let rate = |max| MeanMax { mean: 1.0, max };
        let flow = |max| DiskFlow { bytes_per_s: rate(max), ..DiskFlow::default() };
        let disk = DiskWindow { read: flow(30.0), write: flow(12.0), ..DiskWindow::default() };
        let traffic = |max| Traffic { bytes_per_s: rate(max), ..Traffic::default() };
        let interface = |received, sent| InterfaceWindow {
            received: traffic(received),
            sent: traffic(sent),
            ..InterfaceWindow::default()
        };
        let peaks = Peaks::of(Some(&disk), &[interface(5.0, 7.0), interface(f64::NAN, 99.0), interface(6.0, 1.0)]);
        assert_eq!(peaks, Peaks { disk_bytes_per_s: 42, network_bytes_per_s: 7 });
        let more = peaks.max(Peaks { disk_bytes_per_s: 1, network_bytes_per_s: 9 });
        assert_eq!(more, Peaks { disk_bytes_per_s: 42, network_bytes_per_s: 9 });
    }

    #[test]
    fn a_change_is_made_in_place_within_what_a_shadow_is_defined_with_and_not_for_little() {
        let has = ShadowSize {
            cpu_cores: 0.4,
            vcpus: 1,
            cpu_weight: 25,
            memory_bytes: 256 * MIB,
            disk_bytes_per_s: Some(100),
            network_bytes_per_s: None,
        };
        let of = |wants: ShadowSize| change(&has, 512 * MIB, &wants);
        assert_eq!(of(has), None);
        assert_eq!(of(ShadowSize { cpu_cores: 0.41, disk_bytes_per_s: Some(120), ..has }), None);
        for wants in [
            ShadowSize { cpu_cores: 0.2, ..has },
            ShadowSize { cpu_cores: 1.0, ..has },
            ShadowSize { cpu_weight: 27, ..has },
            ShadowSize { memory_bytes: 512 * MIB, ..has },
            ShadowSize { disk_bytes_per_s: Some(130), ..has },
            ShadowSize { network_bytes_per_s: Some(100), ..has },
        ] {
            assert_eq!(of(wants), Some(Change::InPlace(wants)));
        }
        assert_eq!(of(ShadowSize { memory_bytes: 513 * MIB, ..has }), Some(Change::Anew));
        assert_eq!(of(ShadowSize { cpu_cores: 1.2, vcpus: 2, ..has }), Some(Change::Anew));
        // Fewer vCPUs are not taken away, and the weight is for those that it has: then there is nothing left to do.
        let two = ShadowSize { vcpus: 2, cpu_weight: 50, cpu_cores: 1.2, ..has };
        let Some(Change::InPlace(less)) = change(&two, 512 * MIB, &has) else { panic!("in place") };
        assert_eq!(less, ShadowSize { vcpus: 2, cpu_weight: 50, ..has });
        assert_eq!(change(&less, 512 * MIB, &has), None);
        assert_eq!(difference(&two, &less), "1.20 cores -> 0.40 cores");
        assert_eq!(growth(&less, &two), (1.2 - 0.4, 0));
    }

    #[test]
    fn floors_are_kept_and_no_shadow_is_larger_than_its_production() {
        let policy = ShadowPolicy::default();
        let small = size(&blueprint(1, 200 << 20), None, Peaks::default(), 0, &policy);
        assert!(small.cpu_cores >= policy.cpu_floor_cores);
        assert_eq!(small.memory_bytes, policy.memory_floor_bytes.min(200 << 20));
        let tried = size(&blueprint(1, 200 << 20), None, Peaks::default(), 180 << 20, &policy);
        assert_eq!(tried.memory_bytes, 180 << 20);
        assert_eq!(size(&blueprint(1, 200 << 20), None, Peaks::default(), 1 << 30, &policy).memory_bytes, 200 << 20);
        assert!(size(&blueprint(1, 200 << 20), None, Peaks::default(), 0, &policy).cpu_weight >= 1);
    }
}
