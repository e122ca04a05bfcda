//! Whatever happens, in any order.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Send { number: u64, vm: u128, quarter_cores: u8 },
    Release { number: u64, vm: u128 },
    Acknowledge(u64),
    Kill(Point),
}

fn step() -> impl Strategy<Value = Step> {
    let point = prop::sample::select(vec![Point::BeforeIntent, Point::BeforeActuation, Point::AfterActuation]);
    prop_oneof![
        5 => (1..12_u64, 1..3_u128, 1..20_u8).prop_map(|(number, vm, quarter_cores)| Step::Send { number, vm, quarter_cores }),
        1 => (1..12_u64, 1..3_u128).prop_map(|(number, vm)| Step::Release { number, vm }),
        2 => (1..12_u64).prop_map(Step::Acknowledge),
        2 => point.prop_map(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Commands out of order, repeated, out of bounds, and kills at any point: limits only ever follow rising fences, and a VM that
    /// differs from its baseline has an undo record with that baseline.
    #[test]
    fn limits_follow_rising_fences_and_stay_undoable_whatever_happens(steps in prop::collection::vec(step(), 1..25)) {
        let (_folder, mut path, world) = host();
        world.lock().unwrap().limits.insert(vm(2), None);
        let mut executor_now = executor(&path, &world, false);
        let mut sent: BTreeMap<u64, Command> = BTreeMap::new();
        let mut generation_of_change: BTreeMap<VmId, u64> = BTreeMap::new();
        let mut kills = 0;
        for step in steps {
            let to_send = match step {
                Step::Send { number, vm, quarter_cores } => {
                    let action = Action::Set(quota(Some(f64::from(quarter_cores) / 4.0)));
                    Some(sent.entry(number).or_insert_with(|| command(number, vm, action)).clone())
                }
                Step::Release { number, vm } => Some(sent.entry(number).or_insert_with(|| command(number, vm, Action::Release)).clone()),
                Step::Acknowledge(number) => {
                    executor_now.handle(Request::Acknowledged(CommandId { term: 1, number })).unwrap();
                    None
                }
                Step::Kill(point) => {
                    world.lock().unwrap().crash = Some((point, path.clone()));
                    None
                }
            };
            let Some(command) = to_send else { continue };
            let changes_before = world.lock().unwrap().changes.len();
            send(&mut executor_now, &world, &command);
            let left = world.lock().unwrap().back_to_the_kill();
            if let Some(left) = left {
                drop(executor_now);
                kills += 1;
                path = path.with_file_name(format!("after-{kills}.redb"));
                std::fs::rename(left, &path).unwrap();
                executor_now = executor(&path, &world, false);
                prop_assert!(!executor_now.try_resolve());
            }
            let changed = world.lock().unwrap().changes.len() > changes_before;
            if changed {
                let last = generation_of_change.insert(command.vm, command.fence.generation);
                prop_assert!(last.unwrap_or(0) < command.fence.generation, "{:?} after {:?}", command.id, last);
            }
            for (vm, baseline) in [(vm(1), Some(2.0)), (vm(2), None)] {
                let undo = executor_now.ledger.undo(vm).unwrap();
                if world.lock().unwrap().limits[&vm] != baseline {
                    prop_assert_eq!(undo.map(|undo| undo.baselines), Some(vec![quota(baseline)]));
                }
            }
            prop_assert_eq!(executor_now.ledger.intents().unwrap(), []);
        }
    }
}
