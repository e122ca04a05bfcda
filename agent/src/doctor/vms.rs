//! libvirt, and every per-VM signal tried on the VMs that run now.

use super::{Check, State};
use crate::config::Config;
use crate::host::inventory::memory::Balloon;
use crate::host::inventory::{self, Inventory, InventoryConfig, InventoryMetrics, VmFacts};
use crate::host::libvirt::Hypervisor;
use crate::host::process::{Proc, ThreadRole};
use gnomon_common::wire::VmState;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long libvirt may take for a first survey.
const SURVEY_MAX: Duration = Duration::from_secs(5);

/// How long the VMs' monitors may take to tell of their balloons.
const BALLOONS_MAX: Duration = Duration::from_secs(3);

/// How long libvirt may take to tell of one VM's disks.
const DISKS_MAX: Duration = Duration::from_secs(3);

const LIBVIRT_ENABLE: &str = "start libvirtd (or virtqemud), and run as a member of the group libvirt, or as root";

pub(super) async fn examine(config: Option<&Config>) -> Vec<Check> {
    let defaults = InventoryConfig::default();
    let uri = config.map_or(defaults.uri.clone(), |config| config.host.libvirt_uri.clone());
    let mut checks = Vec::new();
    let asked = uri.clone();
    // The inventory keeps trying and says why only in the log: the reason is worth one connection of its own.
    let opened = tokio::task::spawn_blocking(move || Hypervisor::open(&asked)?.version());
    match timeout(SURVEY_MAX, opened).await {
        Ok(Ok(Ok(version))) => checks.push(Check::ok("libvirt", &uri, version).needed()),
        failed => {
            let why = match failed {
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(error)) => error.to_string(),
                _ => format!("does not answer within {} s", SURVEY_MAX.as_secs()),
            };
            checks.push(Check::unavailable("libvirt", &uri, why).needed().enable(LIBVIRT_ENABLE));
            return checks;
        }
    }
    let started = inventory::spawn(InventoryConfig { uri: uri.clone(), ..defaults }, InventoryMetrics::default());
    let Ok((mut receiver, handle)) = started else {
        checks.push(Check::unavailable("VMs", &uri, "no thread for a survey").enable("raise the limit of tasks"));
        return checks;
    };
    let _ = timeout(SURVEY_MAX, receiver.wait_for(|inventory| inventory.complete)).await;
    let balloons_told = |inventory: &Arc<Inventory>| running(inventory).all(|vm| vm.memory.balloon != Balloon::Unknown);
    let _ = timeout(BALLOONS_MAX, receiver.wait_for(balloons_told)).await;
    let inventory = latest(&receiver);
    drop(handle);
    checks.extend(per_vm(&inventory));
    checks.push(disk_limits(&uri, &inventory).await);
    checks.push(network_limits());
    checks
}

fn latest(receiver: &watch::Receiver<Arc<Inventory>>) -> Arc<Inventory> {
    receiver.borrow().clone()
}

fn running(inventory: &Inventory) -> impl Iterator<Item = &VmFacts> {
    inventory.vms.iter().filter(|vm| vm.state == VmState::Running)
}

fn per_vm(inventory: &Inventory) -> Vec<Check> {
    let proc = Proc::default();
    let vms: Vec<&VmFacts> = running(inventory).collect();
    let share = |signal, source, enable, works: &dyn Fn(&VmFacts) -> bool| {
        of_all(signal, source, enable, vms.iter().filter(|vm| works(vm)).count(), vms.len())
    };
    vec![
        share("VM processes", "/proc/PID/cmdline", "a /proc without hidepid, in the host's PID namespace", &|vm| {
            vm.process.is_some()
        }),
        share("CPU accelerator", "names of vCPU threads", "KVM (see above) and type='kvm' in the definition", &|vm| {
            is_accelerated(&proc, vm)
        }),
        share(
            "CPU usage, throttling",
            "control groups",
            "cgroup_controllers in qemu.conf, with cpu and cpuacct",
            &|vm| {
                vm.cgroup.as_ref().is_some_and(|cgroup| cgroup.read(0).is_ok_and(|reading| reading.usage_ns.is_some()))
            },
        ),
        share("memory, resident", "/proc/PID/status", "a /proc without hidepid", &|vm| {
            vm.process.as_ref().is_some_and(|process| proc.footprint(process.pid).is_ok())
        }),
        share("memory, balloon", "QEMU's monitor", "a balloon device, and its driver in the guest", &|vm| {
            vm.memory.balloon.movable_bytes().is_some()
        }),
        share(
            "memory, guest's view",
            "balloon statistics",
            "a stats period on the balloon: the daemon sets one",
            &|vm| vm.memory.guest.is_some(),
        ),
    ]
}

/// How a signal is that works for some of the VMs.
fn of_all(signal: &'static str, source: &'static str, enable: &'static str, works: usize, vms: usize) -> Check {
    let why = format!("{works} of {vms} running VMs");
    match works {
        _ if vms == 0 => {
            Check::degraded(signal, source, "not tried: no VM runs now").enable("run again when a VM does")
        }
        0 => Check::new(signal, State::Unavailable, source, why).enable(enable),
        _ if works < vms => Check::degraded(signal, source, why).enable(enable),
        _ => Check::ok(signal, source, why),
    }
}

/// QEMU names a vCPU's thread after its accelerator (`CPU 0/KVM`).
fn is_accelerated(proc: &Proc, vm: &VmFacts) -> bool {
    let Some(process) = &vm.process else { return false };
    process
        .threads
        .iter()
        .filter(|thread| matches!(thread.role, ThreadRole::Vcpu(_)))
        .any(|thread| proc.thread_name(process.pid, thread.tid).is_ok_and(|name| name.ends_with("/KVM")))
}

/// Disks are limited by QEMU itself: whether it can be asked is tried on the first VM that has a disk.
async fn disk_limits(uri: &str, inventory: &Inventory) -> Check {
    let (signal, source) = ("disk limits", "QEMU, through libvirt");
    let (uri, vms): (String, Vec<_>) = (uri.to_owned(), running(inventory).map(|vm| vm.id).collect());
    let ask = move || {
        let hypervisor = Hypervisor::open(&uri)?;
        for vm in vms {
            if let Some(disk) = hypervisor.devices(vm)?.disks.first() {
                return hypervisor.disk_tune(vm, disk).map(Some);
            }
        }
        Ok::<_, crate::host::libvirt::HypervisorError>(None)
    };
    let enable = "see libvirt above";
    match timeout(DISKS_MAX, tokio::task::spawn_blocking(ask)).await {
        Ok(Ok(Ok(Some(_)))) => Check::ok(signal, source, "read from a running VM's disk"),
        Ok(Ok(Ok(None))) => Check::degraded(signal, source, "not tried: no running VM has a disk")
            .enable("run again when a VM with a disk does"),
        Ok(Ok(Err(error))) => Check::unavailable(signal, source, error.to_string()).enable(enable),
        _ => Check::unavailable(signal, source, "libvirt does not answer").enable(enable),
    }
}

/// libvirt limits network interfaces by running `tc`.
fn network_limits() -> Check {
    let (signal, source) = ("network limits", "tc, run by libvirt");
    match Command::new("tc").arg("-V").output() {
        Ok(output) if output.status.success() => {
            Check::ok(signal, source, String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Check::unavailable(signal, source, format!("tc -V ended with {}", output.status))
            .enable("reinstall the package iproute2"),
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("install the package iproute2; its folder (/sbin) must be on the PATH of libvirtd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_of_some_vms_is_degraded_and_of_none_unavailable() {
        let of = |works, vms| of_all("x", "y", "z", works, vms);
        assert_eq!(of(2, 2).state, State::Ok);
        assert_eq!((of(1, 2).state, of(1, 2).enable.as_deref()), (State::Degraded, Some("z")));
        assert_eq!(of(0, 2).state, State::Unavailable);
        assert_eq!((of(0, 0).state, of(0, 0).why.as_str()), (State::Degraded, "not tried: no VM runs now"));
    }
}
