//! The executor of an agent with one VM, whose limits nobody enforces.

use super::facts;
use gnomon_agent::actuate::dirty_rate::LibvirtMeter;
use gnomon_agent::actuate::migrate::{LibvirtMover, MoverConfig};
use gnomon_agent::actuate::shadow::{LibvirtShadower, ShadowerConfig};
use gnomon_agent::actuate::{ActuateError, Actuator};
use gnomon_agent::command::clock::Clock;
use gnomon_agent::command::executor::{self, Beside, Executor, Policy};
use gnomon_agent::command::judge::{Allowed, Sighting};
use gnomon_agent::command::ledger::Ledger;
use gnomon_agent::command::{self, Known, VmDirectory};
use gnomon_agent::config::ShadowConfig;
use gnomon_agent::host::machine::Machine;
use gnomon_agent::sample::MigrationBook;
use gnomon_common::wire::{AgentEpoch, HostId, Means, Setting, VmId};
use std::path::Path;

/// The one VM, whose limit is whatever was applied last.
struct OneVm(Setting);

impl Actuator for OneVm {
    fn in_force(&mut self, _: VmId, _: Means) -> Result<Setting, ActuateError> {
        Ok(self.0)
    }

    fn apply(&mut self, _: VmId, target: Setting) -> Result<Setting, ActuateError> {
        self.0 = target;
        Ok(target)
    }
}

struct Everywhere;

impl VmDirectory for Everywhere {
    fn find(&self, _: VmId) -> Known {
        Known { sighting: Sighting::Active { vcpus: 4 }, name: None, life: None }
    }
}

/// A real one, on a real ledger.
pub(super) fn executor(ledger: &Path, clock: Clock, metrics: command::Metrics) -> (command::Commands, AgentEpoch) {
    let ledger = Ledger::open(ledger).unwrap();
    let epoch = ledger.raise_epoch(clock.now().wall).unwrap();
    let policy = Policy {
        host: HostId::new("h1").unwrap(),
        migrations_most: 0,
        shadows_max: 0,
        copies: false,
        bounds: facts().cpu_bounds,
        allowed: Allowed::default(),
        dry_run: false,
    };
    let mover = LibvirtMover::new(MoverConfig {
        uri: "test:///default".to_owned(),
        reserve_bytes: 0,
        shared_paths: Vec::new(),
        copy_bytes_max: 0,
        book: MigrationBook::default(),
    });
    let shadower = LibvirtShadower::new(
        ShadowerConfig {
            host: HostId::new("h1").unwrap(),
            uri: "test:///default".to_owned(),
            shadow: ShadowConfig::default(),
            capacity_cores: 2.0,
            memory_bytes: 1 << 30,
            reserve_bytes: 0,
            machine: Machine::default(),
        },
        None,
    );
    let meter = LibvirtMeter::new("test:///default".to_owned());
    let executor = Executor::new(
        ledger,
        Box::new(OneVm(Setting::CpuQuota { cores: None })),
        Beside { mover: Box::new(mover), shadower: Box::new(shadower), meter: Box::new(meter) },
        Box::new(Everywhere),
        policy,
        clock,
        metrics,
    );
    (executor::spawn(executor).unwrap().0, epoch)
}
