//! Seeds by the hundred: whatever is drawn, no rule is broken; and each rule is there for a reason.

use gnomon_core::plan::guard::Guard;
use gnomon_sim::Lapse;
use gnomon_sim::chaos::{check, check_agents};

/// Seeds of an ordinary run; `cargo xtask bench sim` takes twenty times as many.
const SEEDS: u64 = 500;

#[test]
fn no_seed_breaks_a_rule_and_the_planner_keeps_them_by_itself() {
    let (mut moves, mut commands, mut dropped, mut shadows) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let checked = check(seed, None, None);
        assert_eq!(checked.broken, None, "seed {seed}");
        moves += checked.moves;
        commands += checked.commands;
        dropped += checked.dropped;
        shadows += checked.shadows;
    }
    println!(
        "{SEEDS} worlds: {commands} commands, {moves} moves, {shadows} shadows, {dropped} plans dropped by the linter"
    );
    assert!(moves > SEEDS as usize / 4 && commands > 10 * SEEDS as usize, "{moves} moves, {commands} commands");
    assert!(shadows > SEEDS as usize, "{shadows} shadows");
    // What was known of a host may be a moment older to the planner than to the linter.
    assert!(dropped * 100 <= commands, "{dropped} of {commands} plans were dropped");
}

#[test]
fn every_guard_that_is_taken_away_is_missed() {
    for guard in Guard::ALL {
        let lacks = Some(guard);
        let missed = (0..SEEDS).find_map(|seed| check(seed, lacks, lacks).broken.map(|broken| (seed, broken.rule)));
        let (seed, rule) = missed.unwrap_or_else(|| panic!("nobody misses {guard:?}"));
        println!("without {guard:?}, seed {seed} breaks: {rule}");
    }
}

#[test]
fn what_the_planner_lacks_of_moves_and_plans_the_linter_catches() {
    is_caught_by_the_linter(|guard| !SIZES.contains(&guard));
}

#[test]
fn what_the_planner_lacks_of_sizes_the_linter_catches() {
    is_caught_by_the_linter(|guard| SIZES.contains(&guard));
}

/// Guards of sizes.
const SIZES: [Guard; 8] = [
    Guard::InFlight,
    Guard::Floor,
    Guard::Ceiling,
    Guard::Dwell,
    Guard::Distance,
    Guard::Reserve,
    Guard::Step,
    Guard::Spare,
];

fn is_caught_by_the_linter(is_meant: fn(Guard) -> bool) {
    for guard in Guard::ALL.into_iter().filter(|guard| guard.is_linted() && is_meant(*guard)) {
        let dropped: usize = (0..60)
            .map(|seed| {
                let checked = check(seed, Some(guard), None);
                assert_eq!(checked.broken, None, "seed {seed} without {guard:?}");
                checked.dropped
            })
            .sum();
        println!("without {guard:?} in the planner, the linter dropped {dropped} plans");
        assert!(dropped > 0, "the linter never saw what {guard:?} is for");
    }
}

#[test]
fn every_rule_that_agents_neglect_is_missed() {
    for lapse in Lapse::ALL {
        let missed = (0..SEEDS).find_map(|seed| check_agents(seed, lapse).broken.map(|broken| (seed, broken.rule)));
        let (seed, rule) = missed.unwrap_or_else(|| panic!("nobody misses {lapse:?}"));
        println!("where agents neglect {lapse:?}, seed {seed} breaks: {rule}");
    }
}

#[test]
fn a_seed_lives_the_same_life_twice() {
    assert_eq!(check(7, None, None), check(7, None, None));
}
