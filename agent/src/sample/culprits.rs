//! Samples of waits -> who starved a VM in a window. Pure.

use super::interval::WaitSample;
use crate::reading::Culprit;
use gnomon_common::abi::sched::Command;
use gnomon_common::wire::{CULPRIT_CORES_MIN, CULPRITS_MAX, CulpritShare, Culprits, Who};
use std::collections::BTreeMap;

/// What a VM waited in a window in the making, by cause.
#[derive(Clone, Debug, Default)]
pub struct WaitAccumulator {
    seen_s: f64,
    /// In how much of that the kernel told of quotas.
    told_s: f64,
    own_quota_s: f64,
    own_s: f64,
    culprits: BTreeMap<Culprit, f64>,
    other_tasks_s: f64,
}

impl WaitAccumulator {
    /// Adds a sample.
    pub fn add(&mut self, sample: &WaitSample) {
        self.seen_s += sample.elapsed_s;
        if let Some(own_quota_s) = sample.own_quota_s {
            self.told_s += sample.elapsed_s;
            self.own_quota_s += own_quota_s;
        }
        self.own_s += sample.own_s;
        for &(who, waited_s) in &sample.culprits {
            *self.culprits.entry(who).or_default() += waited_s;
        }
        self.other_tasks_s += sample.other_tasks_s;
    }

    /// The window's culprits; `None` where none of it was seen.
    pub fn finish(&self) -> Option<Culprits> {
        if self.seen_s <= 0.0 {
            return None;
        }
        let cores = |waited_s: f64| (waited_s / self.seen_s) as f32;
        let mut all: Vec<(Culprit, f64)> = self.culprits.iter().map(|(&who, &waited_s)| (who, waited_s)).collect();
        all.sort_by(|(one, one_s), (other, other_s)| other_s.total_cmp(one_s).then(one.cmp(other)));
        let named = all.iter().take(CULPRITS_MAX).take_while(|(_, waited_s)| cores(*waited_s) >= CULPRIT_CORES_MIN);
        let named: Vec<_> = named.map(|&(who, s)| CulpritShare { who: who_is(who), cores: cores(s) }).collect();
        let rest_s: f64 = all.iter().skip(named.len()).map(|(_, waited_s)| waited_s).sum();
        Some(Culprits {
            own_quota_cores: (self.told_s > 0.0).then(|| (self.own_quota_s / self.told_s) as f32),
            own_cores: cores(self.own_s),
            named,
            others_cores: cores(rest_s + self.other_tasks_s),
        })
    }
}

fn who_is(culprit: Culprit) -> Who {
    match culprit {
        Culprit::Vm(vm) => Who::Vm(vm),
        Culprit::Task(Command(words)) => {
            let bytes: Vec<u8> =
                words.iter().flat_map(|word| word.to_le_bytes()).take_while(|&byte| byte != 0).collect();
            Who::Task(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::VmId;
    use proptest::prelude::*;

    fn vm(number: u128) -> VmId {
        VmId(uuid::Uuid::from_u128(number))
    }

    fn sample(culprits: &[(Culprit, f64)]) -> WaitSample {
        WaitSample {
            elapsed_s: 1.0,
            own_quota_s: Some(0.1),
            own_s: 0.2,
            culprits: culprits.to_vec(),
            other_tasks_s: 0.0,
        }
    }

    #[test]
    fn the_largest_come_first_and_who_took_next_to_nothing_is_one_of_the_others() {
        let tar = Culprit::Task(Command([u64::from_le_bytes(*b"tar\0\0\0\0\0"), 0]));
        let mut window = WaitAccumulator::default();
        assert_eq!(window.finish(), None);
        window.add(&sample(&[(Culprit::Vm(vm(1)), 0.001), (tar, 0.25)]));
        window.add(&sample(&[(Culprit::Vm(vm(2)), 1.0), (tar, 0.25)]));
        let culprits = window.finish().unwrap();
        let named: Vec<_> = culprits.named.iter().map(|culprit| (culprit.who.clone(), culprit.cores)).collect();
        assert_eq!(named, [(Who::Vm(vm(2)), 0.5), (Who::Task("tar".into()), 0.25)]);
        assert_eq!((culprits.own_quota_cores, culprits.own_cores, culprits.others_cores), (Some(0.1), 0.2, 0.0005));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_absent_and_not_zero() {
        let mut window = WaitAccumulator::default();
        window.add(&WaitSample { own_quota_s: None, ..sample(&[]) });
        assert_eq!(window.finish().unwrap().own_quota_cores, None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_list_is_bounded(waits in prop::collection::vec((0u128..20, 0.0..3.0f64), 1..60)) {
            let mut window = WaitAccumulator::default();
            for &(number, waited_s) in &waits {
                window.add(&sample(&[(Culprit::Vm(vm(number)), waited_s)]));
            }
            let culprits = window.finish().unwrap();
            prop_assert!(culprits.is_sane());
            prop_assert!(culprits.named.is_sorted_by(|one, next| one.cores >= next.cores));
            let told: f32 = culprits.named.iter().map(|culprit| culprit.cores).sum::<f32>() + culprits.others_cores;
            let truth = waits.iter().map(|(_, waited_s)| waited_s).sum::<f64>() / waits.len() as f64;
            prop_assert!((f64::from(told) - truth).abs() < 1e-4);
        }
    }
}
