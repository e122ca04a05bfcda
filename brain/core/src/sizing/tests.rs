use proptest::prelude::*;

use super::*;
use crate::draw::draw;

fn policy() -> SizingPolicy {
    SizingPolicy {
        violation_rate: 0.01,
        lag_steps: 2,
        day_steps: 24,
        quantum: 5.0,
        size_max: 120.0,
        saving_min: 0.1,
        dwell_steps: 3,
        resize_cost: 2.5,
    }
}

/// A sizer of `vms` that has learnt `steps` of `demand(vm, step)`.
fn taught(vms: usize, steps: usize, demand: impl Fn(usize, usize) -> f32) -> Sizer {
    let mut sizer = Sizer::new(policy(), vms, 1);
    for step in 0..steps {
        let demand: Vec<f32> = (0..vms).map(|vm| demand(vm, step)).collect();
        sizer.observe(&demand, None);
    }
    if let Some(training) = sizer.training() {
        let quantiles = training.jobs.iter().map(TrainingJob::run).collect();
        sizer.trained(training, quantiles);
    }
    sizer
}

#[test]
fn before_it_is_trained_it_decides_nothing() {
    assert_eq!(Sizer::new(policy(), 1, 1).decide(0), None);
    assert!(taught(1, 50, |_, _| 10.0).training().is_none(), "too few examples");
}

#[test]
fn growth_is_immediate_and_shrinking_waits() {
    let load = |vm: usize, step: usize| if (step + vm * 7) % 40 < 20 { 10.0 } else { 80.0 };
    let mut sizer = taught(20, 400, load);
    let mut last: Option<(f64, usize)> = None;
    let (mut grown, mut shrunk) = (0, 0);
    for step in 400..600 {
        let demand: Vec<f32> = (0..20).map(|vm| load(vm, step)).collect();
        sizer.observe(&demand, Some(0.0));
        let size = sizer.decide(0).unwrap();
        assert!(size >= 80.0 || demand[0] < 80.0, "{size} at step {step}: the load's return is known");
        if let Some((before, since)) = last
            && size != before
        {
            grown += usize::from(size > before);
            if size < before {
                shrunk += 1;
                assert!(step - since >= 3 && size <= before * 0.9, "{before} to {size} after {} steps", step - since);
            }
        }
        if last.is_none_or(|(before, _)| size != before) {
            last = Some((size, step));
        }
    }
    assert!(grown >= 3 && shrunk >= 3, "{grown} {shrunk}");
}

#[test]
fn a_dearer_resize_is_done_less_often() {
    let hump = |vm: usize, step: usize| {
        let noise = (draw(vm as u64, step as u64) % 10) as f32;
        20.0 + 3.0 * (step % 24).abs_diff(12) as f32 + noise
    };
    let resizes = |cost: f64| {
        let mut sizer = taught(20, 300, hump);
        sizer.policy.resize_cost = cost;
        let mut last = [0.0; 20];
        let mut count = 0;
        for step in 300..400 {
            let demand: Vec<f32> = (0..20).map(|vm| hump(vm, step)).collect();
            sizer.observe(&demand, Some(0.01));
            for (vm, last) in last.iter_mut().enumerate() {
                let size = sizer.decide(vm).unwrap();
                count += usize::from(size != *last);
                *last = size;
            }
        }
        count
    };
    let (cheap, dear) = (resizes(0.0), resizes(20.0));
    assert!(dear < cheap, "{dear} at a price, {cheap} for nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn whatever_demand_looks_like_sizes_are_ones_that_exist(
        values in proptest::collection::vec(prop_oneof![
            4 => 0.0f32..120.0,
            1 => Just(f32::NAN),
            1 => prop::sample::select(vec![0.0, -5.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e20]),
        ], 1..60),
        violated in 0.0f64..1.0,
    ) {
        let demand = |vm: usize, step: usize| values[(vm * 13 + step) % values.len()];
        let mut sizer = taught(16, 160, demand);
        for step in 160..200 {
            sizer.observe(&(0..16).map(|vm| demand(vm, step)).collect::<Vec<f32>>(), Some(violated));
            for vm in 0..16 {
                if let Some(size) = sizer.decide(vm) {
                    prop_assert!((5.0..=120.0).contains(&size) && size % 5.0 == 0.0, "{size}");
                }
            }
        }
    }
}
