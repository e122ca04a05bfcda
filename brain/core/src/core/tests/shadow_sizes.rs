//! How large shadows are made.

use super::bench::host;
use super::town::{HOSTS, Town};
use crate::shadow::ShadowState;

fn cpu_cores(town: &Town) -> f64 {
    town.shadow().size.unwrap().cpu_cores
}

#[test]
fn a_shadow_has_a_share_of_what_its_production_may_be_given_whatever_its_quota_is_at_the_moment() {
    // Of one vCPU; of what the agent allows; of a quota that Gnomon does not change.
    for (ceiling, may_plan, share) in [(4.0, true, 0.1), (0.8, true, 0.08), (0.8, false, 0.06)] {
        let mut town = Town::new();
        town.quota_cores = 0.6;
        let facts = town.facts.get_mut(&host("a")).unwrap();
        facts.cpu_bounds.ceiling_cores = ceiling;
        if !may_plan {
            facts.means.clear();
        }
        HOSTS.iter().for_each(|name| town.connect(&host(name)));
        town.windows(4);
        assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
        assert!((cpu_cores(&town) - share).abs() < 1e-9, "{ceiling} {may_plan}: {}", cpu_cores(&town));
    }
}

#[test]
fn one_that_does_not_come_up_with_all_the_memory_of_its_production_begins_small_again() {
    let mut town = Town::new();
    town.boots_from_bytes = u64::MAX;
    let has_tried_all = |town: &Town| town.audit.iter().any(|line| line.contains("with all the memory"));
    for _ in 0..80 {
        town.window();
        if has_tried_all(&town) {
            break;
        }
    }
    assert!(has_tried_all(&town), "{:#?}", town.audit);
    town.boots_from_bytes = 0;
    town.windows(20);
    let shadow = town.shadow();
    assert_eq!(
        (shadow.state, shadow.size.unwrap().memory_bytes),
        (ShadowState::Pacing, 128 << 20),
        "{:#?}",
        town.audit
    );
}
