//! Against libvirt's own test driver, which lives inside this process.

use super::*;
use std::sync::mpsc;
use std::time::Duration;

const XML: &str = "<domain type='test'><name>gnomon-web</name><uuid>0b5f8a5e-1e54-4a2b-9d6a-2f3c1d0e9f11</uuid>\
    <memory unit='KiB'>262144</memory><currentMemory unit='KiB'>131072</currentMemory>\
    <vcpu current='2'>4</vcpu><os><type>hvm</type></os></domain>";

fn find(hypervisor: &Hypervisor, vm: VmId) -> Option<DomainFacts> {
    hypervisor.domains().unwrap().described.into_iter().find(|facts| facts.vm == vm)
}

#[test]
fn a_domains_life_is_seen_in_facts_and_in_events() {
    let mut hypervisor = Hypervisor::open("test:///default").unwrap();
    let (sender, events) = mpsc::sync_channel(64);
    hypervisor.on_lifecycle(move |event| sender.try_send(event).unwrap_or_default()).unwrap();
    let vm: VmId = "0b5f8a5e-1e54-4a2b-9d6a-2f3c1d0e9f11".parse().unwrap();
    let expect = |kinds: &[LifecycleKind]| {
        for &kind in kinds {
            // The default domain of the driver is shared by all connections of this process: pass its events over.
            let event = std::iter::from_fn(|| events.recv_timeout(Duration::from_secs(5)).ok()).find(|e| e.vm == vm);
            assert_eq!(event.map(|event| event.kind), Some(kind));
        }
    };

    let domain = hypervisor.connect.define_domain_xml(XML).unwrap();
    let defined = find(&hypervisor, vm).unwrap();
    assert_eq!((defined.name.as_str(), defined.state), ("gnomon-web", VmState::ShutOff));
    assert_eq!((defined.memory_bytes, defined.balloon_bytes), (256 << 20, None));
    expect(&[LifecycleKind::Defined]);

    domain.create().unwrap();
    let running = find(&hypervisor, vm).unwrap();
    assert_eq!((running.state, running.vcpus, running.balloon_bytes), (VmState::Running, 2, Some(128 << 20)));
    domain.suspend().unwrap();
    assert_eq!(find(&hypervisor, vm).unwrap().state, VmState::Paused);
    domain.resume().unwrap();
    domain.destroy().unwrap();
    expect(&[LifecycleKind::Started, LifecycleKind::Suspended, LifecycleKind::Resumed, LifecycleKind::Stopped]);

    domain.undefine().unwrap();
    assert_eq!(find(&hypervisor, vm), None);
    expect(&[LifecycleKind::Undefined]);
}

#[test]
fn an_unknown_domain_and_a_driver_without_quota_are_told_apart() {
    let hypervisor = Hypervisor::open("test:///default").unwrap();
    let nobody = VmId(uuid::Uuid::nil());
    assert!(matches!(hypervisor.cpu_quota(nobody), Err(HypervisorError::NoSuchDomain(vm)) if vm == nobody));
    let vm = hypervisor.domains().unwrap().described[0].vm;
    let error = hypervisor.set_cpu_quota(vm, Some(1.0)).unwrap_err();
    assert!(error.to_string().starts_with("libvirt cannot read the CPU quota"), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn only_a_domain_that_is_gone_or_does_not_run_is_said_to_have_no_job() {
    let hypervisor = Hypervisor::open("test:///default").unwrap();
    let nobody = VmId(uuid::Uuid::nil());
    assert!(hypervisor.backup_job(nobody).unwrap_err().is_of_no_process());
    assert!(HypervisorError::NotRunning(nobody).is_of_no_process());
    // This driver has no jobs to tell of, which says nothing of whether there are any.
    let vm = hypervisor.domains().unwrap().described[0].vm;
    let error = hypervisor.backup_job(vm).unwrap_err();
    assert!(!error.is_of_no_process(), "{error}");
    let (what, message) = ("tell of its jobs", "internal error: backup job data missing".to_owned());
    let internal = HypervisorError::Call { what, message, retryable: false };
    assert!(!internal.is_of_no_process() && backup::unknown(internal).is_retryable());
}

#[test]
fn the_version_names_driver_and_library() {
    let version = Hypervisor::open("test:///default").unwrap().version().unwrap();
    assert!(version.starts_with("TEST ") && version.contains(", libvirt "), "{version}");
}

#[test]
fn no_libvirtd_is_a_retryable_error_that_names_the_address() {
    let error = Hypervisor::open("qemu:///system?socket=/nonexistent/gnomon.sock").map(|_| ()).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("/nonexistent/gnomon.sock"), "{error}");
}
