//! A guest of one page that halts, which is an exit unless KVM emulates the instruction.

use super::{OWN, Trial, Uncounted};
use crate::probe::{ExitProbe, halt_a_guest};

/// Makes the exits probe count the exits of a guest that lives for that moment alone.
///
/// # Errors
/// If it does not count it.
pub fn exits(probe: &mut ExitProbe) -> Result<Trial, Uncounted> {
    probe.track(OWN, &[std::process::id()])?;
    let tried = try_exits(probe);
    let untracked = probe.untrack(OWN);
    tried.and_then(|trial| untracked.map(|()| trial).map_err(Uncounted::from))
}

fn try_exits(probe: &mut ExitProbe) -> Result<Trial, Uncounted> {
    let emulated = match halt_a_guest() {
        Ok(emulated) => emulated,
        Err(error) => return Ok(Trial::NotProvoked(format!("no guest of the agent's own: {error}"))),
    };
    // The thread was never a vCPU before it was tracked.
    let counted: u64 = probe.drain()?.get(&OWN).map_or(0, |counters| counters.exits.iter().sum());
    match (counted, emulated) {
        (1.., _) => Ok(Trial::Counted),
        (0, 1..) => Ok(Trial::NotProvoked("KVM emulates the one instruction of the agent's guest".to_owned())),
        (0, 0) => Err(Uncounted::Exits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::loaded;

    #[test]
    fn the_exits_probe_counts_a_halt_and_forgets_it() {
        let Some(mut probe) = loaded(ExitProbe::load()) else { return };
        for _ in 0..2 {
            let trial = exits(&mut probe).unwrap();
            println!("{trial:?}");
            let runs = halt_a_guest().is_ok_and(|emulated| emulated == 0);
            assert!(trial == Trial::Counted || !runs, "{trial:?}");
            assert!(probe.drain().unwrap().is_empty(), "the agent is no VM");
        }
    }
}
