//! The exits probe on the running kernel. Each test says so and passes where KVM is not loaded, or eBPF programs may not be.
//!
//! Which exits there are is tested where guests can run under KVM: `cargo xtask lab --full`.

use super::{ExitProbe, ProbeError, TracefsError};
use gnomon_common::wire::VmId;
use uuid::Uuid;

fn load() -> Option<ExitProbe> {
    match ExitProbe::load() {
        Ok(probe) => Some(probe),
        Err(
            error @ (ProbeError::NotPermitted { .. }
            | ProbeError::Tracefs(
                TracefsError::NotMounted | TracefsError::NotPermitted { .. } | TracefsError::Read { .. },
            )),
        ) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_process_without_a_vcpu_has_no_exits_and_can_be_forgotten() {
    let Some(mut probe) = load() else { return };
    let (one, other) = (VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)));
    probe.track(one, &[std::process::id()]).unwrap();
    probe.track(one, &[std::process::id(), 1]).unwrap();
    assert!(probe.drain().unwrap().is_empty());
    probe.untrack(one).unwrap();
    probe.untrack(other).unwrap();
    let programs: Vec<_> = probe.cost().unwrap().iter().map(|cost| cost.program).collect();
    assert_eq!(programs, ["guest_left", "guest_entered"]);
}
