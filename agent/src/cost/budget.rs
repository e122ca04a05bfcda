//! When a source is given up to stay within the budget, and when it is taken up again. Pure: measurements are its only clock.
//!
//! Over budget means: over it in [`OVER_MIN`] measurements in a row, each a mean of its own, so that one burst sheds nothing. Then the
//! first source of the order that is worth it goes, one at a time, and as many new measurements must say so before the next one does.
//! What was shed last comes back first, after `patience` measurements in a row well below the budget. A source that had to go again
//! soon after it came back doubles the patience, so that a host that just cannot afford it does not load it over and over.

use serde::Deserialize;

/// Measurements in a row over the budget before something goes.
const OVER_MIN: u32 = 3;

/// Below this share of the budget there may be room for what was shed.
const CALM_SHARE: f64 = 0.7;

/// Calm measurements in a row before something comes back: at first, and at most (ten minutes and a day at one a minute).
const PATIENCE_MIN: u32 = 10;
const PATIENCE_MAX: u32 = 1_440;

/// What is shed within so many measurements of a return has come back too early.
const RELAPSE_MAX: u32 = 60;

/// A source whose programs cost less than this share of the budget is kept: its absence would be felt and its cost not.
const WORTH_SHARE: f64 = 0.1;

/// `[cost]`: what the agent's own CPU and its eBPF programs may cost, in cores.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// On an idle host.
    pub budget_cores: f64,
    /// More of it for each core that is busy: a switch between threads costs where there are switches.
    pub budget_per_busy_core: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { budget_cores: 0.01, budget_per_busy_core: 0.001 }
    }
}

impl Budget {
    /// The budget while so many cores are busy.
    pub fn cores(&self, busy_cores: f64) -> f64 {
        self.budget_cores + self.budget_per_busy_core * busy_cores.max(0.0)
    }
}

/// A source that may be shed; they are told in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Whether it can be.
    pub sheddable: bool,
    /// What its programs cost, in cores; `None` where the kernel does not tell.
    pub programs_cores: Option<f64>,
}

/// What is to be done; sources are named by their place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// This one is to go.
    Shed(usize),
    /// This one may come back.
    Restore(usize),
    /// It costs too much, and there is nothing that is worth giving up.
    Exceeded,
}

/// Decides.
#[derive(Clone, Debug)]
pub struct Governor {
    budget: Budget,
    /// Measurements in a row, since something changed, that were over the budget.
    over: u32,
    /// The same for well below it.
    calm: u32,
    patience: u32,
    /// Measurements since something came back; `None` if it had to go again since.
    since_return: Option<u32>,
    /// What is given up, the last one last.
    shed: Vec<usize>,
}

impl Governor {
    /// Gives up nothing yet.
    pub fn new(budget: Budget) -> Self {
        Self { budget, over: 0, calm: 0, patience: PATIENCE_MIN, since_return: None, shed: Vec::new() }
    }

    /// What it is allowed to cost while so many cores are busy.
    pub fn allowed_cores(&self, busy_cores: f64) -> f64 {
        self.budget.cores(busy_cores)
    }

    /// Takes in one measurement: what the agent and its programs used, in cores, while the host had `busy_cores` busy. The verdict counts as
    /// carried out unless [`Self::failed`] is called. Values that are no numbers say nothing.
    pub fn judge(&mut self, used_cores: f64, busy_cores: f64, order: &[Candidate]) -> Verdict {
        let allowed_cores = self.allowed_cores(busy_cores);
        if !(used_cores.is_finite() && allowed_cores.is_finite()) {
            return Verdict::Keep;
        }
        self.since_return = self.since_return.map(|since| since.saturating_add(1));
        let count = |so_far: u32, is_one: bool| if is_one { so_far.saturating_add(1) } else { 0 };
        self.over = count(self.over, used_cores > allowed_cores);
        self.calm = count(self.calm, used_cores < CALM_SHARE * allowed_cores);
        if self.over >= OVER_MIN {
            return self.give_up(allowed_cores, order);
        }
        if self.calm >= self.patience
            && let Some(index) = self.shed.pop()
        {
            self.begin_anew();
            self.since_return = Some(0);
            return Verdict::Restore(index);
        }
        Verdict::Keep
    }

    /// A verdict could not be carried out: what was to go stays, what was to come back does not, and is waited for longer.
    pub fn failed(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Shed(index) => self.shed.retain(|&shed| shed != index),
            Verdict::Restore(index) => {
                self.shed.push(index);
                self.since_return = None;
                self.lose_patience();
            }
            Verdict::Keep | Verdict::Exceeded => {}
        }
    }

    fn give_up(&mut self, allowed_cores: f64, order: &[Candidate]) -> Verdict {
        let is_worth =
            |candidate: &Candidate| candidate.programs_cores.is_none_or(|cores| cores >= WORTH_SHARE * allowed_cores);
        let next = order
            .iter()
            .enumerate()
            .position(|(index, candidate)| candidate.sheddable && is_worth(candidate) && !self.shed.contains(&index));
        let Some(index) = next else { return Verdict::Exceeded };
        match self.since_return.take() {
            Some(since) if since <= RELAPSE_MAX => self.lose_patience(),
            Some(_) => self.patience = PATIENCE_MIN,
            None => {}
        }
        self.shed.push(index);
        self.begin_anew();
        Verdict::Shed(index)
    }

    fn lose_patience(&mut self) {
        self.patience = self.patience.saturating_mul(2).min(PATIENCE_MAX);
    }

    /// What was measured before a change says nothing of the time after it.
    fn begin_anew(&mut self) {
        (self.over, self.calm) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: Budget = Budget { budget_cores: 0.01, budget_per_busy_core: 0.001 };
    const DEAR: Candidate = Candidate { sheddable: true, programs_cores: Some(0.005) };
    const CHEAP: Candidate = Candidate { sheddable: true, programs_cores: Some(0.0001) };
    const KEPT: Candidate = Candidate { sheddable: false, programs_cores: Some(1.0) };

    /// The verdicts that change something, each with the number of its measurement.
    fn run(governor: &mut Governor, used: impl IntoIterator<Item = f64>, order: &[Candidate]) -> Vec<(usize, Verdict)> {
        let judged = used.into_iter().enumerate().map(|(at, used)| (at, governor.judge(used, 0.0, order)));
        judged.filter(|(_, verdict)| *verdict != Verdict::Keep).collect()
    }

    #[test]
    fn a_burst_sheds_nothing_and_lasting_cost_sheds_one_source_at_a_time_in_order() {
        let mut governor = Governor::new(BUDGET);
        assert_eq!(run(&mut governor, [0.005, 9.0, 0.019, 0.005, 9.0, 0.019, 0.005], &[DEAR, DEAR]), []);
        let verdicts = run(&mut Governor::new(BUDGET), [0.02; 7], &[DEAR, DEAR]);
        assert_eq!(verdicts, [(2, Verdict::Shed(0)), (5, Verdict::Shed(1))]);
    }

    #[test]
    fn a_busy_host_has_a_larger_budget() {
        let mut governor = Governor::new(BUDGET);
        assert!((0..10).all(|_| governor.judge(0.02, 11.0, &[DEAR]) == Verdict::Keep));
        let verdicts: Vec<Verdict> = (0..3).map(|_| governor.judge(0.02, 9.0, &[DEAR])).collect();
        assert_eq!(verdicts.last(), Some(&Verdict::Shed(0)));
    }

    #[test]
    fn what_cannot_go_or_would_not_help_stays_and_that_is_said() {
        let mut governor = Governor::new(BUDGET);
        assert_eq!(run(&mut governor, [0.02; 3], &[CHEAP, KEPT]), [(2, Verdict::Exceeded)]);
        let unknown = Candidate { sheddable: true, programs_cores: None };
        assert_eq!(governor.judge(0.02, 0.0, &[CHEAP, KEPT, unknown]), Verdict::Shed(2), "it may be the one");
    }

    #[test]
    fn the_last_to_go_is_the_first_to_come_back_once_it_has_been_calm_for_long() {
        let mut governor = Governor::new(BUDGET);
        run(&mut governor, [0.02; 6], &[DEAR, DEAR]);
        assert_eq!(run(&mut governor, [0.008; 100], &[DEAR, DEAR]), [], "below the budget is not calm");
        let patience = PATIENCE_MIN as usize;
        let verdicts = run(&mut governor, vec![0.002; 3 * patience], &[DEAR, DEAR]);
        assert_eq!(verdicts, [(patience - 1, Verdict::Restore(1)), (2 * patience - 1, Verdict::Restore(0))]);
    }

    #[test]
    fn what_has_to_go_again_soon_waits_twice_as_long_each_time_up_to_a_day() {
        let mut governor = Governor::new(BUDGET);
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(run(&mut governor, [0.02; 3], &[DEAR]), [(2, Verdict::Shed(0))]);
            let calm = vec![0.001; governor.patience as usize];
            let verdicts = run(&mut governor, calm, &[DEAR]);
            let [(at, Verdict::Restore(0))] = verdicts[..] else { panic!("{verdicts:?}") };
            waits.push(at + 1);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1_280, 1_440, 1_440]);
        // It stayed for long: the next time is another story.
        run(&mut governor, vec![0.008; RELAPSE_MAX as usize], &[DEAR]);
        assert_eq!(run(&mut governor, [0.04; 3], &[DEAR]).len(), 1);
        assert_eq!(governor.patience, PATIENCE_MIN);
    }

    #[test]
    fn what_could_not_be_done_is_tried_again_later() {
        let mut governor = Governor::new(BUDGET);
        run(&mut governor, [0.02; 3], &[DEAR]);
        governor.failed(Verdict::Shed(0));
        assert_eq!(run(&mut governor, [0.02; 3], &[DEAR]), [(2, Verdict::Shed(0))]);
        let restored = run(&mut governor, [0.001; 10], &[DEAR]);
        assert_eq!(restored, [(9, Verdict::Restore(0))]);
        governor.failed(Verdict::Restore(0));
        assert_eq!(run(&mut governor, [0.001; 20], &[DEAR]), [(19, Verdict::Restore(0))]);
    }

    proptest! {
        #[test]
        fn sources_never_flap_and_what_must_stay_is_never_shed(
            measurements in prop::collection::vec((any::<f64>(), 0.0f64..0.03, any::<bool>(), -1.0f64..64.0), 1..400),
            order in prop::collection::vec((any::<bool>(), prop::option::of(0.0f64..0.02)), 0..4),
        ) {
            let order: Vec<Candidate> =
                order.into_iter().map(|(sheddable, programs_cores)| Candidate { sheddable, programs_cores }).collect();
            let mut governor = Governor::new(BUDGET);
            let mut is_shed = vec![false; order.len()];
            let mut changed_at: Option<usize> = None;
            for (at, (wild, tame, is_wild, busy_cores)) in measurements.into_iter().enumerate() {
                let verdict = governor.judge(if is_wild { wild } else { tame }, busy_cores, &order);
                let since = changed_at.map_or(at + 1, |changed| at - changed);
                match verdict {
                    Verdict::Keep | Verdict::Exceeded => continue,
                    Verdict::Shed(index) => {
                        prop_assert!(order[index].sheddable && !is_shed[index]);
                        prop_assert!(since >= OVER_MIN as usize, "shed {since} measurements after the last change");
                        is_shed[index] = true;
                    }
                    Verdict::Restore(index) => {
                        prop_assert!(is_shed[index]);
                        prop_assert!(since >= PATIENCE_MIN as usize, "back {since} measurements after the last change");
                        is_shed[index] = false;
                    }
                }
                changed_at = Some(at);
            }
        }
    }
}
