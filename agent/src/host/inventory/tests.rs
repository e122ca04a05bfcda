use super::*;
use std::collections::BTreeSet;

fn facts(id: u128) -> VmFacts {
    VmFacts {
        id: VmId(uuid::Uuid::from_u128(id)),
        name: format!("vm{id}"),
        state: VmState::Running,
        process: None,
        cgroup: None,
        vcpus: 1,
        vcpus_max: 1,
        memory_bytes: 1,
        balloon_bytes: None,
        memory: MemoryFacts::default(),
        interfaces: Vec::new(),
        disks_unseen: false,
        guest_disks: None,
        terms: None,
        keepsake: None,
        shadow_of: None,
        execution_changes: 0,
    }
}

#[test]
fn silence_makes_the_snapshot_incomplete_once_and_keeps_its_vms() {
    let now = Instant::now();
    let inventory = Inventory { vms: vec![facts(1)], complete: true, taken: now, hypervisor: String::new() };
    let (publish, receiver) = watch::channel(Arc::new(inventory));
    let silence_max = Duration::from_secs(10);
    assert!(!mark_silent(&publish, now + Duration::from_secs(10), silence_max));
    assert!(receiver.borrow().complete);
    assert!(mark_silent(&publish, now + Duration::from_secs(11), silence_max));
    assert!(!receiver.borrow().complete);
    assert_eq!(receiver.borrow().vms.len(), 1);
    assert!(!mark_silent(&publish, now + Duration::from_secs(12), silence_max), "the same silence is no news");
}

#[tokio::test]
async fn the_test_drivers_domain_appears_and_the_snapshot_is_complete() {
    let config = InventoryConfig { uri: "test:///default".into(), ..InventoryConfig::default() };
    let (mut receiver, _handle) = spawn(config, InventoryMetrics::default()).unwrap();
    let inventory = tokio::time::timeout(Duration::from_secs(10), receiver.wait_for(|inventory| inventory.complete))
        .await
        .unwrap()
        .unwrap()
        .clone();
    let vm = &inventory.vms[0];
    assert_eq!((vm.name.as_str(), vm.state), ("test", VmState::Running));
    assert_eq!(vm.process, None, "the test driver runs no QEMU");
    assert_eq!(inventory.vm(vm.id), Some(vm));
    assert!(inventory.hypervisor.starts_with("TEST"));
}

#[tokio::test]
async fn an_event_is_followed_by_a_survey_long_before_the_timer() {
    let config = InventoryConfig {
        uri: "test:///default".into(),
        reconcile: Duration::from_secs(3600),
        ..InventoryConfig::default()
    };
    let (mut receiver, _handle) = spawn(config, InventoryMetrics::default()).unwrap();
    let in_time = Duration::from_secs(10);
    tokio::time::timeout(in_time, receiver.wait_for(|inventory| inventory.complete)).await.unwrap().unwrap();

    // The test driver's default connections share their domains.
    let other = virt::connect::Connect::open(Some("test:///default")).unwrap();
    other.lookup_domain_by_name("test").unwrap().suspend().unwrap();
    let paused = |inventory: &Arc<Inventory>| inventory.vms[0].state == VmState::Paused;
    let inventory = tokio::time::timeout(in_time, receiver.wait_for(paused)).await.unwrap().unwrap().clone();
    assert_eq!(inventory.vms[0].execution_changes, 1);
    other.lookup_domain_by_name("test").unwrap().resume().unwrap();
}

#[tokio::test]
async fn without_libvirt_the_snapshot_stays_empty_and_incomplete() {
    let config =
        InventoryConfig { uri: "qemu:///system?socket=/nonexistent/gnomon.sock".into(), ..InventoryConfig::default() };
    let metrics = InventoryMetrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let (receiver, handle) = spawn(config, metrics).unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!receiver.borrow().complete);
    drop(handle);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let failures = text.lines().find_map(|line| line.strip_prefix("gnomon_agent_inventory_survey_failures_total "));
    let failures: u64 = failures.unwrap().parse().unwrap();
    assert!((1..=3).contains(&failures), "{failures} attempts in 1.2 s: the pauses between them are missing");
}

#[test]
fn ids_are_distinct_so_the_binary_search_finds_each() {
    let vms: Vec<_> = (0..50).map(facts).collect();
    let inventory = Inventory { vms, complete: true, taken: Instant::now(), hypervisor: String::new() };
    let found: BTreeSet<_> =
        (0..50).filter_map(|id| inventory.vm(facts(id).id)).map(|facts| facts.name.clone()).collect();
    assert_eq!(found.len(), 50);
    assert_eq!(inventory.vm(facts(99).id), None);
}
