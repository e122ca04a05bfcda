use proptest::prelude::*;

use super::*;
use crate::draw::draw;

/// The largest size.
const MAX: f64 = 120.0;

fn policy() -> SizingPolicy {
    SizingPolicy {
        violation_rate: 0.01,
        lag_steps: 2,
        day_steps: 24,
        quantum: 5.0,
        saving_min: 0.1,
        dwell_steps: 3,
        resize_cost: 0.2,
    }
}

/// A sizer of `vms` that has learnt `steps` of `demand(vm, step)`.
fn taught(policy: SizingPolicy, vms: usize, steps: usize, demand: impl Fn(usize, usize) -> f32) -> (Sizer, Vec<Slot>) {
    let mut sizer = Sizer::new(policy, 1);
    let slots: Vec<Slot> = (0..vms).map(|_| sizer.enter()).collect();
    for step in 0..steps {
        slots.iter().enumerate().for_each(|(vm, &slot)| sizer.learn(slot, demand(vm, step)));
    }
    if let Some(lessons) = sizer.lessons() {
        sizer.take(lessons.prepare().run());
    }
    (sizer, slots)
}

#[test]
fn before_it_is_trained_it_decides_nothing_and_of_a_stranger_it_says_nothing() {
    let (mut sizer, slots) = taught(policy(), 1, 50, |_, _| 10.0);
    assert!(sizer.lessons().is_none(), "too few examples");
    assert_eq!(sizer.decide(slots[0], MAX, None), None);
    let (mut sizer, slots) = taught(policy(), 20, 200, |vm, _| 10.0 + vm as f32);
    assert!(sizer.decide(slots[0], MAX, None).is_some());
    let stranger = sizer.enter();
    assert_eq!(sizer.decide(stranger, MAX, None), None);
    (0..20).for_each(|_| sizer.learn(stranger, 10.0));
    assert!(sizer.decide(stranger, MAX, None).is_some());
    sizer.leave(stranger);
    assert_eq!(sizer.decide(stranger, MAX, None), None);
    assert_eq!(sizer.enter(), stranger, "its place is free");
    assert_eq!(sizer.decide(stranger, MAX, None), None, "who takes it over starts anew");
}

#[test]
fn sizes_do_not_depend_on_the_unit_of_demand() {
    let load = |vm: usize, step: usize| 10.0 + (draw(vm as u64, step as u64) % 40) as f32;
    let large = SizingPolicy { quantum: 500.0, ..policy() };
    let (mut one, slots) = taught(policy(), 20, 300, load);
    let (mut other, same) = taught(large, 20, 300, |vm, step| 100.0 * load(vm, step));
    for (&slot, &twin) in slots.iter().zip(&same) {
        let size = one.decide(slot, MAX, None).unwrap();
        assert_eq!(100.0 * size, other.decide(twin, 100.0 * MAX, None).unwrap());
    }
}

#[test]
fn what_is_in_force_is_what_is_resized() {
    let (mut sizer, slots) = taught(policy(), 20, 300, |vm, step| 20.0 + (draw(vm as u64, step as u64) % 20) as f32);
    let size = sizer.decide(slots[0], MAX, None).unwrap();
    assert!((35.0..=60.0).contains(&size), "{size}");
    // It was never carried out, and is still wanted; or it was, and someone doubled it since.
    assert_eq!(sizer.decide(slots[0], MAX, Some(10.0)), Some(size));
    assert_eq!(
        sizer.decide(slots[0], 30.0, Some(size)),
        Some(size),
        "a smaller bound alone does not shrink it before the dwell"
    );
    assert!(sizer.decide(slots[1], 30.0, None).unwrap() <= 30.0);
}

#[test]
fn a_vm_is_bounded() {
    let five_minutes = SizingPolicy { day_steps: 288, dwell_steps: 6, ..policy() };
    let (sizer, slots) = taught(five_minutes, 2, 3000, |vm, step| (draw(vm as u64, step as u64) % 40) as f32);
    for slot in slots {
        let vm = sizer.vms[slot.0].as_ref().unwrap();
        let pending =
            vm.pending.capacity() * size_of::<Pending>() + vm.pending.iter().map(Pending::heap_bytes).sum::<usize>();
        let bytes = size_of::<Vm>() + vm.track.heap_bytes() + pending;
        assert!(bytes <= VM_BYTES_MAX, "{bytes}");
    }
}

#[test]
fn growth_is_immediate_and_shrinking_waits() {
    let load = |vm: usize, step: usize| {
        let noise = (draw(vm as u64, step as u64) % 50) as f32 / 10.0;
        if (step + vm * 7) % 40 < 20 { 10.0 + noise } else { 75.0 + noise }
    };
    let (mut sizer, slots) = taught(policy(), 20, 400, load);
    let mut last: Option<(f64, usize)> = None;
    let (mut grown, mut shrunk) = (0, 0);
    for step in 400..600 {
        slots.iter().enumerate().for_each(|(vm, &slot)| sizer.learn(slot, load(vm, step)));
        sizer.keep(0.01);
        let size = sizer.decide(slots[0], MAX, None).unwrap();
        // In force after two steps.
        assert!(size >= 80.0 || load(0, step + 2) < 75.0, "{size} at step {step}: the load's return is known");
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
        let (mut sizer, slots) = taught(SizingPolicy { resize_cost: cost, ..policy() }, 20, 300, hump);
        let mut last = [0.0; 20];
        let mut count = 0;
        for step in 300..400 {
            slots.iter().enumerate().for_each(|(vm, &slot)| sizer.learn(slot, hump(vm, step)));
            sizer.keep(0.01);
            for (&slot, last) in slots.iter().zip(&mut last) {
                let size = sizer.decide(slot, MAX, None).unwrap();
                count += usize::from(size != *last);
                *last = size;
            }
        }
        count
    };
    let (cheap, dear) = (resizes(0.0), resizes(0.4));
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
        let (mut sizer, slots) = taught(policy(), 16, 160, demand);
        for step in 160..200 {
            slots.iter().enumerate().for_each(|(vm, &slot)| sizer.learn(slot, demand(vm, step)));
            sizer.keep(violated);
            for &slot in &slots {
                if let Some(size) = sizer.decide(slot, MAX, None) {
                    prop_assert!((5.0..=120.0).contains(&size) && size % 5.0 == 0.0, "{size}");
                }
            }
        }
    }
}
