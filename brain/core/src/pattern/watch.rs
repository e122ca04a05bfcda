//! Watching for anomalies: a detector for each KPI that is worth one, fed with closed 5-minute steps.

use gnomon_common::time::Timestamp;

use super::STEP;
use crate::anomaly::{Detector, Incident};
use crate::archive::{Archive, Kpi, Tier};

/// What is watched: demand, and what leaks.
const WATCHED: [Kpi; 2] = [Kpi::Cpu, Kpi::Memory];

/// A detector that has seen less is still learning, and tells nothing: on a VM's first mornings all of its work is new.
const LEARNING_STEPS: u64 = 3 * 288;

/// An incident, and of what.
pub(crate) type Sighting = (Kpi, Incident);

/// The detectors of one VM.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    detectors: [Detector; WATCHED.len()],
    /// For each, the step to be looked at next, and how many were measured so far.
    next: [u64; WATCHED.len()],
    seen: [u64; WATCHED.len()],
}

impl Watch {
    /// For a VM of which nothing is known.
    pub(super) fn new() -> Self {
        Self { detectors: std::array::from_fn(|_| Detector::new()), next: [0; WATCHED.len()], seen: [0; WATCHED.len()] }
    }

    /// As if it had watched all that is kept; with the incidents that it would have told.
    pub(super) fn replay(archive: &Archive) -> (Self, Vec<Sighting>) {
        let mut watch = Self::new();
        let sightings = watch.look(archive);
        (watch, sightings)
    }

    /// Looks at the steps that were closed since the last time. O(1) for each.
    pub(super) fn look(&mut self, archive: &Archive) -> Vec<Sighting> {
        let mut sightings = Vec::new();
        let Self { detectors, next, seen } = self;
        for (((detector, next), seen), kpi) in detectors.iter_mut().zip(next).zip(seen).zip(WATCHED) {
            let Some((_, open)) = archive.span(kpi, Tier::Minutes5).filter(|(_, open)| open > next) else { continue };
            let at = |step: u64| Timestamp::from_unix_ms(step.saturating_mul(Tier::Minutes5.step_ms()));
            let Ok(steps) = archive.read(kpi, at(*next), at(open), STEP) else { continue };
            let first_end_s = i64::try_from((steps.start + STEP).unix_ms() / 1000).unwrap_or(i64::MAX);
            let ends_s = (first_end_s..).step_by(usize::try_from(STEP.as_secs()).unwrap_or(1));
            for (end_s, step) in ends_s.zip(steps.steps) {
                let Some(step) = step else { continue };
                *seen += 1;
                let alert = detector.push(end_s, step.mean).alert.filter(|_| *seen > LEARNING_STEPS);
                sightings.extend(alert.map(|incident| (kpi, incident)));
            }
            *next = open;
        }
        sightings
    }

    /// Bytes in memory beside itself.
    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        self.detectors.iter().map(Detector::memory_bytes).sum()
    }
}
