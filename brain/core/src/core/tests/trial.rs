//! Sizes tried with shadows, and what shadows get of their hosts.

use super::bench::{host, vm};
use super::town::{Town, shadowing};
use crate::io::{Input, OperatorRequest};
use crate::policy::Mode;
use crate::shadow::trial::{Proposed, Trial};
use crate::shadow::{ShadowRefusal, ShadowState};

/// A town whose shadow paces, and whose production's half of a core is forecast.
fn forecasting() -> Town {
    let mut policy = shadowing();
    policy.shadow.fidelity = 0.25;
    let mut town = Town::of(policy);
    town.fits = true;
    town.windows(60);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    assert!(town.core.forecast(vm(1)).is_some());
    town
}

fn proposed(cpu_cores: f64) -> Proposed {
    Proposed { cpu_cores, memory_bytes: None, ahead_ms: 60_000 }
}

fn trial(town: &Town) -> Trial {
    town.shadow().trial.unwrap()
}

#[test]
fn a_size_that_serves_the_forecast_holds_and_one_that_does_not_is_told() {
    let mut town = forecasting();
    for (cores, holds) in [(2.0, true), (0.3, false)] {
        town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(cores) });
        let begun = trial(&town);
        assert!(begun.is_open());
        // Its quota is a tenth of a core: it feels what its production would feel at that size.
        let played = town.paced().unwrap().cpu_cores;
        assert!((played - begun.levels[0].cpu_cores * 0.1 / cores).abs() < 1e-9, "{played}");
        town.windows(20);
        let verdict = trial(&town).verdict.unwrap();
        assert_eq!(verdict.holds, Some(holds), "{:#?}", trial(&town));
        assert!(town.audit.iter().any(|line| line.contains("gnomon shadow_tried") && line.contains(&verdict.why)));
    }
    // It lives ahead of its production again.
    assert!((town.paced().unwrap().cpu_cores - 0.05).abs() < 0.005, "{:?}", town.paced());
}

#[test]
fn a_trial_is_refused_where_it_could_tell_nothing() {
    let mut town = Town::new();
    town.windows(4);
    let refusal = |town: &Town| town.core.may_try_shadow(vm(1), &proposed(1.0)).unwrap_err();
    assert_eq!(refusal(&town), ShadowRefusal::Unforecast(vm(1)));
    town.has_pacer = false;
    town.windows(1);
    assert_eq!(refusal(&town), ShadowRefusal::NoPacer(vm(1)));
    let mut town = forecasting();
    let far = Proposed { ahead_ms: 40 * 86_400_000, ..proposed(1.0) };
    assert_eq!(town.core.may_try_shadow(vm(1), &far), Err(ShadowRefusal::Unforecast(vm(1))));
    assert!(matches!(town.core.may_try_shadow(vm(1), &proposed(f64::NAN)), Err(ShadowRefusal::NoSize(_))));
    town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(1.0) });
    assert_eq!(refusal(&town), ShadowRefusal::Trying(vm(1)));
    town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(2.0) });
    assert!(town.audit.iter().any(|line| line.contains("ann refused")), "{:#?}", town.audit);
    assert_eq!(trial(&town).proposed, proposed(1.0));
}

#[test]
fn a_trial_ends_in_its_time_though_shadows_are_left_alone_meanwhile() {
    let mut town = forecasting();
    town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(1.0) });
    let mut policy = town.policy.clone();
    policy.shadow.mode = Mode::Observe;
    town.feed(Input::Policy(Box::new(policy)));
    town.windows(25);
    assert!(!trial(&town).is_open());
}

#[test]
fn a_trial_ends_with_its_place_and_with_the_life_of_its_brain() {
    let mut town = forecasting();
    town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(1.0) });
    let home = town.shadow().host.unwrap();
    town.productions.insert(1, home);
    town.windows(3);
    let verdict = trial(&town).verdict.unwrap();
    assert_eq!((verdict.holds, verdict.confidence), (None, None));
    let mut town = forecasting();
    town.operator(OperatorRequest::TryShadow { vm: vm(1), proposed: proposed(1.0) });
    town.restart_brain();
    town.windows(1);
    assert_eq!(trial(&town).verdict.unwrap().holds, None);
}

#[test]
fn a_shadow_leaves_a_host_that_does_not_give_it_what_is_coming_and_none_is_sent_there_for_a_while() {
    let mut town = Town::new();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    town.serves.insert(first.clone(), 0.7);
    town.windows(20);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing);
    assert!(shadow.host != Some(first.clone()) && shadow.host != Some(host("a")), "{shadow:?}");
    assert!(town.audit.iter().any(|line| line.contains("does not give it the load that is coming")));
    assert!(town.core.is_host_starved(town.now(), &first));
    assert!(shadow.response.levels.iter().any(|heard| heard.served > 0.99), "{:?}", shadow.response);
    town.windows(60);
    assert!(!town.core.is_host_starved(town.now(), &first), "not for ever");
}
