//! The rung that the agent stands on, and the one it steps down to while eBPF costs too much.

use super::{Choice, Climb, Rungs, SignalMetrics};
use crate::cost::Costed;
use crate::probe::{ProbeError, ProgramCost};
use crate::reading::SchedReading;
use crate::sample::{SchedSource, SourceError};
use gnomon_common::wire::{CpuSource, VmId};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// What stands in for eBPF: it tells run and wait as well, without a program in the kernel.
const BELOW: CpuSource = CpuSource::Schedstat;

/// A source of CPU readings that can be exchanged while it is used.
pub struct Footing<R: Rungs> {
    rungs: R,
    source: R::Source,
    /// Where it stands when nothing is given up.
    top: CpuSource,
    /// Whether it may stand lower than that.
    may_step_down: bool,
    tracked: BTreeMap<VmId, Vec<u32>>,
    /// [`SchedReading::turn`]
    turn: u32,
    /// [`SchedReading::threads_unmeasured`] of the last reading, and that of all sources before this one.
    unmeasured: u64,
    unmeasured_before: u64,
    signals: SignalMetrics,
    told: watch::Sender<CpuSource>,
}

impl<R> Footing<R>
where
    R: Rungs<Source: SchedSource, Error: Send + Sync + 'static>,
{
    /// Stands where a climb has ended. A rung that was demanded is not left.
    pub fn new(rungs: R, climb: Climb<R::Source>, choice: Choice, signals: SignalMetrics) -> Self {
        let Climb { rung, source, .. } = climb;
        signals.show(rung);
        Self {
            rungs,
            source,
            top: rung,
            may_step_down: choice == Choice::Auto && rung < BELOW,
            tracked: BTreeMap::new(),
            turn: 0,
            unmeasured: 0,
            unmeasured_before: 0,
            signals,
            told: watch::Sender::new(rung),
        }
    }

    /// On which rung it stands, now and later.
    pub fn rung(&self) -> watch::Receiver<CpuSource> {
        self.told.subscribe()
    }

    /// Goes to another rung with all that is tracked; stays where that does not hold.
    fn step(&mut self, rung: CpuSource) -> Result<(), SourceError> {
        let mut source = self.rungs.stand(rung).map_err(|error| SourceError(error.into()))?;
        for (&vm, tgids) in &self.tracked {
            source.track(vm, tgids)?;
        }
        self.source = source;
        self.turn = self.turn.wrapping_add(1);
        self.unmeasured_before = self.unmeasured;
        self.signals.show(rung);
        self.told.send_replace(rung);
        Ok(())
    }
}

impl<R> Costed for Footing<R>
where
    R: Rungs<Source: SchedSource, Error: Send + Sync + 'static>,
{
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.source.programs()
    }

    fn can_shed(&self) -> bool {
        self.may_step_down
    }

    fn shed(&mut self) -> Result<(), SourceError> {
        let stepped = self.step(BELOW);
        // What does not work here now is not tried every few minutes.
        self.may_step_down = stepped.is_ok();
        stepped
    }

    fn restore(&mut self) -> Result<(), SourceError> {
        self.step(self.top)
    }
}

impl<R> SchedSource for Footing<R>
where
    R: Rungs<Source: SchedSource, Error: Send + Sync + 'static>,
{
    fn tells_demand(&self) -> bool {
        self.source.tells_demand()
    }

    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        self.source.track(vm, tgids)?;
        self.tracked.insert(vm, tgids.to_vec());
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.tracked.remove(&vm);
        self.source.untrack(vm)
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        let mut reading = self.source.drain()?;
        self.unmeasured = self.unmeasured_before + reading.threads_unmeasured;
        (reading.threads_unmeasured, reading.turn) = (self.unmeasured, self.turn);
        Ok(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_source::climb;
    use prometheus_client::registry::Registry;
    use std::cell::RefCell;
    use std::rc::Rc;

    const VM: VmId = VmId(uuid::Uuid::nil());

    /// A host that notes what its rungs are told, and where a rung can be sawn through.
    #[derive(Clone, Default)]
    struct Host(Rc<RefCell<(Vec<String>, Option<CpuSource>)>>);

    struct Rung(CpuSource, Host);

    #[derive(Debug, thiserror::Error)]
    #[error("sawn through")]
    struct Sawn;

    impl Rungs for Host {
        type Source = Rung;
        type Error = Sawn;

        fn stand(&self, rung: CpuSource) -> Result<Rung, Sawn> {
            if self.0.borrow().1 == Some(rung) { Err(Sawn) } else { Ok(Rung(rung, self.clone())) }
        }
    }

    impl Costed for Rung {
        fn name(&self) -> &'static str {
            self.0.name()
        }
    }

    impl SchedSource for Rung {
        fn track(&mut self, _vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
            self.1.0.borrow_mut().0.push(format!("{} {tgids:?}", self.0));
            Ok(())
        }

        fn untrack(&mut self, _vm: VmId) -> Result<(), SourceError> {
            Ok(())
        }

        fn drain(&mut self) -> Result<SchedReading, SourceError> {
            Ok(SchedReading { threads_unmeasured: 2, ..SchedReading::default() })
        }
    }

    fn footing(host: &Host, choice: Choice) -> Footing<Host> {
        let climb = climb(choice, host).unwrap();
        Footing::new(host.clone(), climb, choice, SignalMetrics::register(&mut Registry::default()))
    }

    #[test]
    fn what_is_tracked_goes_along_and_readings_say_that_the_source_is_another() {
        let host = Host::default();
        let mut footing = footing(&host, Choice::Auto);
        footing.track(VM, &[7]).unwrap();
        let first = footing.drain().unwrap();
        footing.shed().unwrap();
        assert_eq!(*footing.rung().borrow(), CpuSource::Schedstat);
        let second = footing.drain().unwrap();
        assert_ne!(first.turn, second.turn);
        assert_eq!((first.threads_unmeasured, second.threads_unmeasured), (2, 4), "a count never goes back");
        footing.track(VM, &[7, 8]).unwrap();
        footing.restore().unwrap();
        let told = ["task_storage [7]", "schedstat [7]", "schedstat [7, 8]", "task_storage [7, 8]"];
        assert_eq!(host.0.borrow().0, told);
        assert_eq!(*footing.rung().borrow(), CpuSource::TaskStorage);
    }

    #[test]
    fn a_rung_that_was_demanded_or_has_none_below_it_is_not_left() {
        let host = Host::default();
        assert!(!footing(&host, Choice::Only(CpuSource::TaskStorage)).can_shed());
        assert!(!footing(&host, Choice::Only(CpuSource::Schedstat)).can_shed());
        let mut footing = footing(&host, Choice::Auto);
        assert!(footing.can_shed());
        host.0.borrow_mut().1 = Some(CpuSource::Schedstat);
        assert!(footing.shed().is_err());
        assert_eq!((footing.can_shed(), *footing.rung().borrow()), (false, CpuSource::TaskStorage));
    }
}
