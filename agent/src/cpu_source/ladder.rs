//! The climb: from the best rung down, until one holds. Pure but for the rungs themselves.

use gnomon_common::wire::CpuSource;
use serde::Deserialize;
use std::fmt;

/// Which source to use (`probe.source`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Choice {
    /// The best that works here.
    #[default]
    Auto,
    /// This one, or none.
    Only(CpuSource),
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = CpuSource::ALL.into_iter().find(|source| source.name() == text);
        match known {
            Some(source) => Ok(Self::Only(source)),
            None if text == "auto" => Ok(Self::Auto),
            None => {
                let names = CpuSource::ALL.map(|source| format!("{:?}", source.name())).join(", ");
                Err(format!("{text:?} is no source: \"auto\", {names}"))
            }
        }
    }
}

/// The rungs, as they are on some host.
pub trait Rungs {
    /// What stands on one.
    type Source;
    /// Why one does not hold.
    type Error: std::error::Error;

    /// Stands on a rung.
    ///
    /// # Errors
    /// Why it does not hold, and what would make it.
    fn stand(&self, rung: CpuSource) -> Result<Self::Source, Self::Error>;
}

/// A rung that did not hold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fall {
    /// Which.
    pub rung: CpuSource,
    /// Why, in words for a person.
    pub why: String,
}

/// How the climb ended.
#[derive(Debug)]
pub struct Climb<S> {
    /// The rung that holds.
    pub rung: CpuSource,
    /// What stands on it.
    pub source: S,
    /// The better ones, which do not hold.
    pub falls: Vec<Fall>,
}

/// No rung that was allowed holds.
#[derive(Debug, thiserror::Error)]
pub struct SourceUnavailable(pub Vec<Fall>);

impl fmt::Display for SourceUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no source of CPU readings works")?;
        for Fall { rung, why } in &self.0 {
            write!(f, "; {rung}: {why}")?;
        }
        f.write_str("; `probe.source = \"auto\"` takes the best that does")
    }
}

/// Takes the best rung that is allowed and holds.
///
/// # Errors
/// Where none does: only if a rung was demanded.
pub fn climb<R: Rungs>(choice: Choice, rungs: &R) -> Result<Climb<R::Source>, SourceUnavailable> {
    let allowed = CpuSource::ALL.into_iter().filter(|&rung| match choice {
        Choice::Auto => true,
        Choice::Only(only) => rung == only,
    });
    let mut falls = Vec::new();
    for rung in allowed {
        match rungs.stand(rung) {
            Ok(source) => return Ok(Climb { rung, source, falls }),
            Err(error) => falls.push(Fall { rung, why: error.to_string() }),
        }
    }
    Err(SourceUnavailable(falls))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host where only these rungs hold.
    struct Only(Vec<CpuSource>);

    #[derive(Debug, thiserror::Error)]
    #[error("sawn through")]
    struct Sawn;

    impl Rungs for Only {
        type Source = CpuSource;
        type Error = Sawn;

        fn stand(&self, rung: CpuSource) -> Result<CpuSource, Sawn> {
            if self.0.contains(&rung) { Ok(rung) } else { Err(Sawn) }
        }
    }

    #[test]
    fn the_best_rung_that_holds_is_taken_and_the_better_ones_are_named() {
        use CpuSource::*;
        for (index, rung) in CpuSource::ALL.into_iter().enumerate() {
            let climb = climb(Choice::Auto, &Only(CpuSource::ALL[index..].to_vec())).unwrap();
            assert_eq!((climb.rung, climb.source), (rung, rung));
            let fallen: Vec<_> = climb.falls.iter().map(|fall| fall.rung).collect();
            assert_eq!(fallen, CpuSource::ALL[..index]);
        }
        let climb = climb(Choice::Auto, &Only(vec![Schedstat, Cgroup])).unwrap();
        assert_eq!(climb.falls[1], Fall { rung: Tracepoints, why: "sawn through".into() });
    }

    #[test]
    fn a_demanded_rung_is_taken_though_a_better_one_holds_and_nothing_stands_in_for_it() {
        let all = Only(CpuSource::ALL.to_vec());
        let taken = climb(Choice::Only(CpuSource::Schedstat), &all).unwrap();
        assert_eq!((taken.rung, taken.falls.len()), (CpuSource::Schedstat, 0));
        let error = climb(Choice::Only(CpuSource::Tracepoints), &Only(vec![CpuSource::Cgroup])).unwrap_err();
        assert!(error.to_string().contains("tracepoints: sawn through"), "{error}");
    }

    #[test]
    fn every_source_can_be_chosen_by_its_name() {
        for source in CpuSource::ALL {
            assert_eq!(Choice::try_from(source.name().to_owned()), Ok(Choice::Only(source)));
        }
        assert_eq!(Choice::try_from("auto".to_owned()), Ok(Choice::Auto));
        let error = Choice::try_from("ebpf".to_owned()).unwrap_err();
        assert!(error.contains("\"task_storage\""), "{error}");
    }
}
