//! The agent's own probes, on the running kernel, in the order in which they are given up. Says so and passes where it may not load eBPF programs.

use super::*;
use crate::cost::Standby;
use crate::cpu_source::{Choice, Footing, Host, SignalMetrics, climb};
use crate::probe::{BlockProbe, DropProbe, ExitProbe, MemoryProbe, QueueProbe};
use crate::sample::DeviceStandby;
use gnomon_common::wire::CpuSource;

/// Nothing is allowed, and so everything is worth giving up.
const NOTHING: Budget = Budget { budget_cores: 0.0, budget_per_busy_core: 0.0 };
/// A minute of samples, so that each is measured anew.
const SAMPLE_MS: u32 = 60_000;
/// Until one goes: three measurements over the budget, of two samples each.
const SAMPLES: usize = 3 * 2;

#[test]
fn probes_go_in_the_documented_order_and_cpu_last() {
    let climbed = match climb(Choice::Auto, &Host) {
        Ok(climbed) if climbed.rung == CpuSource::TaskStorage => climbed,
        Ok(climbed) => return println!("skipped: the best source here is {}", climbed.rung),
        Err(error) => return println!("skipped: {error}"),
    };
    let (Ok(block), Ok(drops), Ok(queues), Ok(memory)) =
        (BlockProbe::load(), DropProbe::load(), QueueProbe::load(), MemoryProbe::load())
    else {
        return println!("skipped: not all probes can be loaded here");
    };
    // Where KVM is.
    let exits = ExitProbe::load().ok().map(Standby::of);
    let mut expected = vec!["queues", "exits", "drops", "memory", "block", "scheduler"];
    expected.retain(|&probe| probe != "exits" || exits.is_some());
    let mut registry = Registry::default();
    let sources = Sources {
        cpu: Box::new(Footing::new(Host, climbed, Choice::Auto, SignalMetrics::register(&mut registry))),
        disks: Some(Box::new(Standby::of(block))),
        drops: Some(Box::new(DeviceStandby::of(drops))),
        queues: Some(Box::new(DeviceStandby::of(queues))),
        reclaim: Some(Box::new(Standby::of(memory))),
        exits: exits.map(|exits| Box::new(exits) as VmReadings<ExitReading>),
        cost: CostControl::register(NOTHING, SAMPLE_MS, &mut registry),
    };
    let (_publish, inventory) = watch::channel(Arc::new(without_vms()));
    let mut reader = Reader::new(SamplerConfig::default(), inventory, sources, SampleMetrics::default());
    let mut gone = Vec::new();
    // The first measurement of all has nothing to compare with.
    for sample in 0..2 + expected.len() * SAMPLES {
        reader.control_cost(0);
        let shed = reader.probes_shed();
        assert!(shed.len() <= gone.len() + 1, "two went at once, at sample {sample}: {shed:?}");
        if shed.len() > gone.len() {
            gone = shed;
        }
        assert_eq!(gone, expected[..gone.len()], "at sample {sample}");
    }
    assert_eq!(gone, expected);
}
