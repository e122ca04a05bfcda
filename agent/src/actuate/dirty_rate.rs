//! Measures how fast guests write to their memory, each on a thread of its own: that takes seconds, and nothing else waits for it.
//!
//! A measurement that libvirt does not end in time is told as failed. Its thread is left to end by itself and counts among those that are
//! under way until then, so that a libvirt that hangs costs no more than [`MEASUREMENTS_MAX`] threads.

use crate::host::libvirt::{Hypervisor, HypervisorError};
use gnomon_common::wire::{Command, CommandId, OutcomeResult, RefusedCommand, VmId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Measurements under way at once, those that hang included.
pub const MEASUREMENTS_MAX: usize = 4;

/// How long libvirt and QEMU may take beyond the period itself.
const LATE: Duration = Duration::from_secs(15);

/// Measures how fast guests write to their memory. No call blocks.
pub trait DirtyRateMeter: Send {
    /// Begins, for a command that asks for `period_s` seconds of it.
    fn begin(&mut self, command: &Command, period_s: u8) -> std::io::Result<()>;

    /// Whether this command is under way.
    fn has(&self, id: CommandId) -> bool;

    /// Whether no answer is waited for.
    fn is_idle(&self) -> bool;

    /// What has come of those under way since it was asked last.
    fn news(&mut self) -> Vec<(Command, OutcomeResult)>;
}

type Measured = Result<f64, HypervisorError>;
type Measure = Arc<dyn Fn(VmId, u8) -> Measured + Send + Sync>;

/// Measures by libvirt.
pub struct LibvirtMeter {
    measure: Measure,
    late: Duration,
    under_way: BTreeMap<CommandId, UnderWay>,
}

struct UnderWay {
    command: Command,
    /// When it is told as failed.
    until: Instant,
    is_told: bool,
    answer: Receiver<Measured>,
}

impl LibvirtMeter {
    /// Connects to nothing yet.
    pub fn new(uri: String) -> Self {
        let measure = move |vm, period_s| Hypervisor::open(&uri)?.dirty_bytes_per_s(vm, period_s);
        Self::by(Arc::new(measure), LATE)
    }

    fn by(measure: Measure, late: Duration) -> Self {
        Self { measure, late, under_way: BTreeMap::new() }
    }
}

impl DirtyRateMeter for LibvirtMeter {
    fn begin(&mut self, command: &Command, period_s: u8) -> std::io::Result<()> {
        if self.under_way.len() >= MEASUREMENTS_MAX {
            let why = format!("{MEASUREMENTS_MAX} measurements are under way here, the most that may be at once");
            return Err(std::io::Error::other(why));
        }
        let (tell, answer) = channel();
        let (measure, vm) = (Arc::clone(&self.measure), command.vm);
        let run = move || {
            // Whoever does not listen any more has said that it failed.
            let _ = tell.send(measure(vm, period_s));
        };
        std::thread::Builder::new().name("gnomon-dirty".to_owned()).spawn(run)?;
        let until = Instant::now() + Duration::from_secs(period_s.into()) + self.late;
        let under_way = UnderWay { command: command.clone(), until, is_told: false, answer };
        self.under_way.insert(command.id, under_way);
        Ok(())
    }

    fn has(&self, id: CommandId) -> bool {
        self.under_way.contains_key(&id)
    }

    fn is_idle(&self) -> bool {
        self.under_way.values().all(|under_way| under_way.is_told)
    }

    fn news(&mut self) -> Vec<(Command, OutcomeResult)> {
        let mut all = Vec::new();
        self.under_way.retain(|_, under_way| {
            let failed = |error: &str| OutcomeResult::Failed { error: error.to_owned(), retryable: true };
            let (result, goes_on) = match under_way.answer.try_recv() {
                Ok(measured) => (result(measured), false),
                Err(TryRecvError::Disconnected) => (failed("the thread that measured has ended"), false),
                Err(TryRecvError::Empty) if Instant::now() < under_way.until => return true,
                Err(TryRecvError::Empty) => (failed("libvirt has not measured it in time"), true),
            };
            if !std::mem::replace(&mut under_way.is_told, true) {
                all.push((under_way.command.clone(), result));
            }
            goes_on
        });
        all
    }
}

fn result(measured: Measured) -> OutcomeResult {
    match measured {
        Ok(bytes_per_s) => OutcomeResult::DirtyRate { bytes_per_s: bytes_per_s as u64 },
        Err(HypervisorError::NoSuchDomain(_)) => OutcomeResult::Refused(RefusedCommand::UnknownVm),
        Err(error) => OutcomeResult::Failed { error: error.to_string(), retryable: error.is_retryable() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{Action, Fence};
    use uuid::Uuid;

    fn command(number: u64) -> Command {
        Command {
            id: CommandId { term: 1, number },
            vm: VmId(Uuid::from_u128(number.into())),
            action: Action::DirtyRate { period_s: 1 },
            fence: Fence { term: 1, generation: number },
            time_to_live_ms: 1_000,
            reason: String::new(),
        }
    }

    /// Waits for as many news.
    fn news(meter: &mut LibvirtMeter, count: usize) -> Vec<(u64, OutcomeResult)> {
        let mut all = Vec::new();
        let patience = Instant::now() + Duration::from_secs(20);
        while all.len() < count && Instant::now() < patience {
            all.extend(meter.news().into_iter().map(|(command, result)| (command.id.number, result)));
            std::thread::sleep(Duration::from_millis(5));
        }
        all
    }

    #[test]
    fn a_rate_or_the_reason_why_there_is_none_is_told_once() {
        let measure = |vm: VmId, period_s: u8| match vm.0.as_u128() {
            1 => Ok(f64::from(period_s) * 5e7),
            2 => Err(HypervisorError::NoSuchDomain(vm)),
            _ => Err(HypervisorError::Unsupported("QEMU is too old".to_owned())),
        };
        let mut meter = LibvirtMeter::by(Arc::new(measure), LATE);
        (1..=3).for_each(|number| meter.begin(&command(number), 2).unwrap());
        let mut told = news(&mut meter, 3);
        told.sort_by_key(|(number, _)| *number);
        let unsupported = OutcomeResult::Failed { error: "QEMU is too old".to_owned(), retryable: false };
        let unknown = OutcomeResult::Refused(RefusedCommand::UnknownVm);
        assert_eq!(told, [(1, OutcomeResult::DirtyRate { bytes_per_s: 100_000_000 }), (2, unknown), (3, unsupported)]);
        assert!(meter.is_idle() && !meter.has(command(1).id) && meter.news().is_empty());
    }

    #[test]
    fn what_hangs_is_told_in_time_and_keeps_its_place_until_it_ends() {
        let (release, held) = channel::<()>();
        let held = std::sync::Mutex::new(held);
        let measure = move |_: VmId, _: u8| {
            let _ = held.lock().unwrap().recv();
            Ok(1.0)
        };
        let mut meter = LibvirtMeter::by(Arc::new(measure), Duration::ZERO);
        (1..=4).for_each(|number| meter.begin(&command(number), 0).unwrap());
        let told = news(&mut meter, 4);
        assert!(
            told.iter().all(|(_, result)| matches!(result, OutcomeResult::Failed { retryable: true, .. })),
            "{told:?}"
        );
        assert!(meter.is_idle() && meter.has(command(1).id));
        assert!(meter.begin(&command(5), 0).is_err(), "a thread for each one that is asked for");
        drop(release);
        let patience = Instant::now() + Duration::from_secs(20);
        while meter.begin(&command(6), 0).is_err() && Instant::now() < patience {
            assert_eq!(meter.news(), [], "an answer is told twice");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(meter.has(command(6).id));
    }
}
