//! The worlds in which shadows are compared with none.

use gnomon_sim::ablation::{Arm, live};

#[test]
fn a_world_is_the_same_each_time_and_has_shadows_only_where_it_should() {
    let of = |arm| live(3, arm);
    let with = of(Arm::With);
    assert_eq!(with, of(Arm::With));
    assert!(with.shadows > 0.0 && with.slowed > 0.0 && with.forecast_error > 0.0, "{with:?}");
    for arm in [Arm::Without, Arm::Given] {
        assert_eq!(of(arm).shadows, 0.0, "{arm:?}");
    }
    assert_ne!(of(Arm::Shuffled), with);
}
