//! What the brain of the small world is told by its store when it starts again.

use std::collections::BTreeMap;

use gnomon_common::wire::VmId;

use super::super::bench::host;
use super::{HOSTS, Town};
use crate::Core;
use crate::io::Restored;
use crate::shadow::Shadow;

impl Town {
    /// The brain is killed: what was on its way from it may be lost, and what its store has is all that it knows.
    pub(in crate::core::tests) fn restart_brain(&mut self) {
        self.term += 1;
        self.core = Core::new(self.policy.clone(), 1, self.term);
        for (name, facts) in &self.facts {
            self.core.restore(Restored::Host { host: name.clone(), facts: facts.clone() });
        }
        for lesson in self.lessons.values() {
            self.core.restore(Restored::Lesson(lesson.clone()));
        }
        for report in self.reports.values() {
            self.core.restore(Restored::Report(Box::new(report.clone())));
        }
        let mut latest: BTreeMap<VmId, (usize, &Shadow)> = BTreeMap::new();
        for (place, shadow) in self.kept.iter().enumerate() {
            latest.insert(shadow.id, (place, shadow));
        }
        let mut latest: Vec<(usize, &Shadow)> = latest.into_values().collect();
        latest.sort_by_key(|(place, _)| *place);
        for (_, shadow) in latest {
            self.core.restore(Restored::Shadow(Box::new(shadow.clone())));
        }
        for record in self.open.values() {
            self.core.restore(Restored::Command(record.clone()));
        }
        self.drain();
        for name in HOSTS {
            if self.up[&host(name)] {
                self.connect(&host(name));
            }
        }
    }
}
