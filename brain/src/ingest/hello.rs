//! Judging a hello. Pure: what is known goes in, a verdict comes out.

use super::close::{CloseCode, Ending};
use crate::store::INTEGER_MAX;
use gnomon_common::wire::{
    COPIES_MAX, Fence, Hello, RECEIVING_DIRECTORY_BYTES_MAX, RECEIVING_URI_BYTES_MAX, VERSIONS, VersionRange,
};

/// How far above our own a believable lease term may be. A brain restored from a back-up is behind by as many starts as
/// were made since; a million is beyond any of them, and what is above it would let one agent use the terms up.
const TERM_AHEAD_MAX: u64 = 1_000_000;

/// What to do with a hello that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Welcome, speaking this version.
    Welcome(u16),
    /// The agent has obeyed a fence that this brain never sent: our own term must go above it first.
    Regressed(Fence),
}

/// Judges a hello against the names in the peer's certificate, our term, and the newest fence we sent to that host in
/// this term.
///
/// An agent that reconnects shows the fence of our own last command; only a newer one than we sent it proves that the
/// store we started from is older than the brain that sent it.
pub(super) fn judge(
    hello: &Hello,
    certificate_names: &[String],
    term: u64,
    newest_sent: Option<Fence>,
) -> Result<Verdict, Ending> {
    let version = hello.versions.negotiate(VERSIONS).ok_or_else(|| version(hello.versions))?;
    if !certificate_names.iter().any(|name| name == hello.host.as_str()) {
        return Err(Ending::new(
            CloseCode::Identity,
            format!(
                "the certificate is for {}, not for host {}; let it join as itself with: gnomon-brain token create --host {}",
                if certificate_names.is_empty() { "nobody".to_owned() } else { certificate_names.join(", ") },
                hello.host,
                hello.host
            ),
        ));
    }
    if hello.epoch.0 > INTEGER_MAX {
        return Err(Ending::new(CloseCode::Malformed, format!("epoch {} is out of range", hello.epoch.0)));
    }
    let facts = &hello.facts;
    let bounds = [facts.capacity_cores, facts.cpu_bounds.floor_cores, facts.cpu_bounds.ceiling_cores];
    if bounds.iter().any(|cores| !cores.is_finite() || *cores < 0.0) {
        return Err(Ending::new(CloseCode::Malformed, "capacity and CPU bounds must be finite and not negative"));
    }
    if !facts.copies.is_bounded() {
        let count = facts.copies.all().count();
        let text = format!(
            "copies of disks for {count} shadows; one host keeps at most {COPIES_MAX} of its own and as many of others"
        );
        return Err(Ending::new(CloseCode::Malformed, text));
    }
    let receives = facts.shadows.as_ref().and_then(|shadows| shadows.receives.as_ref());
    if receives.is_some_and(|to| !to.is_bounded()) {
        let text = format!(
            "it takes copies of disks at an address of more than {RECEIVING_URI_BYTES_MAX} bytes, or in no folder from / of at most {RECEIVING_DIRECTORY_BYTES_MAX}"
        );
        return Err(Ending::new(CloseCode::Malformed, text));
    }
    let Some(fence) = hello.fence_highest else { return Ok(Verdict::Welcome(version)) };
    if fence.term > term.saturating_add(TERM_AHEAD_MAX) {
        return Err(Ending::new(
            CloseCode::Malformed,
            format!("fence {fence} is not believable: this brain's term is {term}"),
        ));
    }
    let ours = newest_sent.unwrap_or(Fence { term, generation: 0 });
    Ok(if fence.term >= term && fence > ours { Verdict::Regressed(fence) } else { Verdict::Welcome(version) })
}

fn version(theirs: VersionRange) -> Ending {
    let newer = if theirs.min > VERSIONS.max { "the brain" } else { "the agent" };
    let reason = format!("the agent speaks versions {theirs}, the brain {VERSIONS}; update {newer}");
    Ending::new(CloseCode::Version, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{
        AgentEpoch, CpuBounds, CpuSource, HostFacts, HostId, KeptCopies, Labels, Means, MemoryBounds, Receiving,
        ShadowFacts, VmId,
    };
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            versions: VERSIONS,
            host: HostId::new("host-a").unwrap(),
            epoch: AgentEpoch(1),
            fence_highest: None,
            agent_version: "0.1.0".into(),
            facts: HostFacts {
                capacity_cores: 2.0,
                memory_bytes: 1 << 30,
                kernel: "6.1".into(),
                hypervisor: String::new(),
                cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 2.0 },
                memory_bounds: MemoryBounds::default(),
                means: vec![Means::CpuQuota],
                migration: None,
                zone: None,
                numa: Vec::new(),
                labels: Labels::default(),
                shadows: None,
                copies: KeptCopies::default(),
                dry_run: false,
                cpu_source: CpuSource::TaskStorage,
            },
        }
    }

    fn names() -> Vec<String> {
        vec!["host-a".into()]
    }

    #[test]
    fn a_good_hello_is_welcome() {
        assert_eq!(judge(&hello(), &names(), 3, None), Ok(Verdict::Welcome(1)));
    }

    #[test]
    fn a_disjoint_version_range_is_refused_and_told_who_must_update() {
        let mut newer = hello();
        newer.versions = VersionRange { min: 7, max: 9 };
        let ending = judge(&newer, &names(), 3, None).unwrap_err();
        assert_eq!(ending.code, CloseCode::Version);
        assert!(ending.reason.ends_with("update the brain"), "{}", ending.reason);
    }

    #[test]
    fn a_name_that_only_resembles_the_certificates_is_refused() {
        for name in ["host-b", "host-a.rack", "*", "HOST-A"] {
            assert_eq!(judge(&hello(), &[name.into()], 3, None).unwrap_err().code, CloseCode::Identity, "{name}");
        }
        assert_eq!(judge(&hello(), &[], 3, None).unwrap_err().code, CloseCode::Identity);
    }

    #[test]
    fn a_fence_of_our_own_last_command_is_no_regression_but_a_newer_one_is() {
        let fence = |term, generation| Fence { term, generation };
        let with = |fence| Hello { fence_highest: Some(fence), ..hello() };
        let verdict = |shown, sent| judge(&with(shown), &names(), 3, sent).unwrap();
        assert_eq!(verdict(fence(2, 900), None), Verdict::Welcome(1));
        assert_eq!(verdict(fence(3, 5), Some(fence(3, 5))), Verdict::Welcome(1));
        assert_eq!(verdict(fence(3, 6), Some(fence(3, 5))), Verdict::Regressed(fence(3, 6)));
        assert_eq!(verdict(fence(3, 1), None), Verdict::Regressed(fence(3, 1)));
        assert_eq!(verdict(fence(4, 0), Some(fence(3, 5))), Verdict::Regressed(fence(4, 0)));
    }

    #[test]
    fn more_copies_of_disks_than_a_host_may_keep_are_malformed() {
        let with = |count| {
            let mut hello = hello();
            let kept = (0..count as u64).map(|number| VmId::made_of(1, number)).collect();
            hello.facts.copies = KeptCopies { made: Some(kept), received: None };
            judge(&hello, &names(), 3, None).map_err(|ending| ending.code)
        };
        assert_eq!(with(COPIES_MAX), Ok(Verdict::Welcome(1)));
        assert_eq!(with(COPIES_MAX + 1), Err(CloseCode::Malformed));
    }

    #[test]
    fn a_place_for_copies_that_is_out_of_bounds_is_malformed() {
        let with = |directory: &str| {
            let mut hello = hello();
            let (uri, directory) = ("qemu+tls://host-a/system".to_owned(), directory.to_owned());
            let receives = Some(Box::new(Receiving { uri, directory, owner: 1, group: 1, bytes_max: 1 }));
            hello.facts.shadows = Some(ShadowFacts { shadows_max: 1, share_max: 0.5, receives });
            judge(&hello, &names(), 3, None).map_err(|ending| ending.code)
        };
        assert_eq!(with("/srv/received"), Ok(Verdict::Welcome(1)));
        assert_eq!(with("received"), Err(CloseCode::Malformed));
    }

    #[test]
    fn an_absurd_fence_epoch_or_capacity_is_malformed() {
        let absurd_fence = Hello { fence_highest: Some(Fence { term: u64::MAX, generation: 0 }), ..hello() };
        assert_eq!(judge(&absurd_fence, &names(), 3, None).unwrap_err().code, CloseCode::Malformed);
        let absurd_epoch = Hello { epoch: AgentEpoch(u64::MAX), ..hello() };
        assert_eq!(judge(&absurd_epoch, &names(), 3, None).unwrap_err().code, CloseCode::Malformed);
        let mut absurd_capacity = hello();
        absurd_capacity.facts.capacity_cores = f64::NAN;
        assert_eq!(judge(&absurd_capacity, &names(), 3, None).unwrap_err().code, CloseCode::Malformed);
    }

    proptest! {
        // An agent obeys a fence that is newer than any it has seen: whoever is welcome must obey our next command.
        #[test]
        fn a_welcome_agent_finds_our_next_command_newer_than_anything_it_obeyed(
            term in 1u64..6,
            sent in proptest::option::of(0u64..6),
            shown in proptest::option::of((0u64..8, 0u64..8)),
        ) {
            let sent = sent.map(|generation| Fence { term, generation });
            let shown = shown.map(|(term, generation)| Fence { term, generation });
            let next = Fence { term, generation: sent.map_or(1, |sent| sent.generation + 1) };
            let verdict = judge(&Hello { fence_highest: shown, ..hello() }, &names(), term, sent).unwrap();
            prop_assert_eq!(verdict == Verdict::Welcome(1), shown.is_none_or(|shown| shown < next));
        }
    }
}
