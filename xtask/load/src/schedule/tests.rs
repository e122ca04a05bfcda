use proptest::prelude::*;

use super::draw::DayRange;
use super::*;

const DAY: Periodic =
    Periodic { period_s: 100.0, phase_s: 20.0, base: 0.1, peak: 0.9, width_s: 40.0, shoulder_s: 10.0 };

#[test]
fn a_day_rises_holds_and_falls_at_its_times() {
    let day = Schedule::Periodic(DAY);
    for (t_s, level) in [(0.0, 0.1), (20.0, 0.1), (25.0, 0.5), (30.0, 0.9), (49.0, 0.9), (55.0, 0.5), (60.0, 0.1)] {
        assert!((day.level(t_s) - level).abs() < 1e-9, "at {t_s} s: {}", day.level(t_s));
        assert!((day.level(t_s + 300.0) - level).abs() < 1e-9, "three days later than {t_s} s");
    }
}

#[test]
fn a_peak_may_cross_midnight() {
    let day = Schedule::Periodic(Periodic { phase_s: 80.0, ..DAY });
    assert!((day.level(5.0) - 0.9).abs() < 1e-9);
    assert!((day.level(50.0) - 0.1).abs() < 1e-9);
}

#[test]
fn a_script_holds_its_last_level() {
    let script: Schedule = "script:10@0.2,5@1.5".parse().unwrap();
    assert_eq!([0.0, 9.9, 10.0, 14.9, 1e6].map(|t_s| script.level(t_s)), [0.2, 0.2, 1.5, 1.5, 1.5]);
    assert_eq!(script.level_max(), 1.5);
}

#[test]
fn nothing_is_wanted_before_the_start() {
    assert_eq!(Schedule::Constant(0.7).level(-0.001), 0.0);
}

#[test]
fn two_seeds_walk_apart() {
    let walk = |seed| Schedule::Walk(Walk { seed, step_s: 1.0, step: 0.1, low: 0.0, high: 1.0 });
    assert_ne!(walk(1).level(100.0), walk(2).level(100.0));
}

#[test]
fn malformed_schedules_are_refused_with_the_reason() {
    for (text, reason) in [
        ("0.3", "names no kind"),
        ("constant:much", "not a number"),
        ("constant:inf", "not a number"),
        ("constant:-0.1", "outside"),
        ("constant:17", "outside"),
        ("script:", "SECONDS@LEVEL"),
        ("script:0@0.5", "not a time above zero"),
        ("walk:seed=1,step_s=5,step=0.1,low=0.9,high=0.1", "above high"),
        ("walk:seed=1,step_s=5,step=0.1,low=0.1", "high is missing"),
        ("walk:seed=1,seed=2,step_s=5,step=0.1,low=0.1,high=0.2", "given twice"),
        ("periodic:period_s=10,phase_s=0,base=0,peak=1,width_s=11,shoulder_s=1", "width_s <= period_s"),
        ("periodic:period_s=10,phase_s=0,base=0,peak=1,width_s=5,shoulder_s=1,depth=3", "not a field"),
        ("sine:1", "no kind"),
    ] {
        let error = text.parse::<Schedule>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let level = 0.0..LEVEL_MAX;
    let step = (0.1..100.0, level.clone()).prop_map(|(duration_s, level)| Step { duration_s, level });
    prop_oneof![
        level.clone().prop_map(Schedule::Constant),
        prop::collection::vec(step, 1..20).prop_map(Schedule::Script),
        (any::<u64>(), 0.1..60.0, 0.0..1.0, level.clone(), level.clone()).prop_map(|(seed, step_s, step, a, b)| {
            Schedule::Walk(Walk { seed, step_s, step, low: a.min(b), high: a.max(b) })
        }),
        (1.0..1e5, 0.0..1e5, level.clone(), level, 0.01..1.0, 0.0..0.5).prop_map(
            |(period_s, phase_s, base, peak, width, shoulder)| {
                let width_s = width * period_s;
                Schedule::Periodic(Periodic { period_s, phase_s, base, peak, width_s, shoulder_s: shoulder * width_s })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn the_text_of_a_schedule_is_read_back_as_the_same_schedule(schedule in schedules()) {
        prop_assert_eq!(schedule.to_string().parse::<Schedule>(), Ok(schedule));
    }

    #[test]
    fn a_level_stays_within_zero_and_the_maximum(schedule in schedules(), t_s in -10.0..1e4f64) {
        let level = schedule.level(t_s);
        prop_assert!((0.0..=schedule.level_max() + 1e-9).contains(&level), "{level}");
    }

    #[test]
    fn any_text_is_a_schedule_or_an_error(text in "(constant|script|walk|periodic|x)?:?[ -~]{0,60}") {
        let _ = text.parse::<Schedule>().map(|schedule| schedule.level(1.0));
    }

    #[test]
    fn a_drawn_day_is_within_its_range_and_is_repeatable(seed: u64) {
        let range = DayRange { period_s: (180.0, 300.0), base: (0.05, 0.2), peak: (0.7, 1.0), width: (0.2, 0.35) };
        let drawn = Schedule::draw_day(seed, &range);
        prop_assert_eq!(&drawn, &Schedule::draw_day(seed, &range));
        prop_assert_eq!(drawn.to_string().parse::<Schedule>(), Ok(drawn.clone()));
        let Schedule::Periodic(day) = drawn else { panic!("not a day") };
        prop_assert!((180.0..=300.0).contains(&day.period_s) && (0.0..=day.period_s).contains(&day.phase_s));
        prop_assert!((0.69..=1.01).contains(&day.peak) && (0.04..=0.21).contains(&day.base));
    }
}
