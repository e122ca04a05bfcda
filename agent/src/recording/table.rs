//! Windows for people.

use crate::sample::HostReport;
use gnomon_common::wire::{CpuWindow, Culprits, MeanMax, VmId, VmState, VmWindow, Who};

/// Heads the rows of VMs.
pub const HEADINGS: &str = "  \
    VM              STATE     RAN..WANTED  USED  HELD BACK  LIMIT     MEMORY     WANTED     READ/S  WRITTEN/S  RECEIVED/S     SENT/S  WAITED FOR";

/// Culprits that are named in a row.
const CULPRITS_TOLD: usize = 3;

/// A line for the window and the host, and one for each VM. CPU is in cores, means of the window; what was not measured is a dash.
pub fn rows(report: &HostReport) -> String {
    let host = &report.host_window;
    let incomplete = if report.inventory_complete { "" } else { "; libvirt did not answer: VMs may be missing" };
    let mut text = format!(
        "{}  {} s  host: {:.2} cores, {} free{incomplete}\n",
        instant(report.start.unix_ms()),
        f64::from(report.window_ms) / 1e3,
        host.cpu_cores.mean,
        bytes(host.memory_available_bytes as f64),
    );
    for vm in &report.vms {
        text += &row(vm, report);
    }
    text
}

fn row(vm: &VmWindow, report: &HostReport) -> String {
    let told = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cpu = |of: fn(&CpuWindow) -> String| told(vm.cpu.as_ref().map(of));
    let limit = vm.allocation.cpu_limit_cores();
    let memory = vm.memory.as_ref();
    let traffic = |of: fn(&VmWindow) -> Vec<f64>| {
        let flows = of(vm);
        told((!flows.is_empty()).then(|| bytes(flows.iter().sum())))
    };
    let disk = |of: fn(&gnomon_common::wire::DiskWindow) -> MeanMax| told(vm.disk.as_ref().map(|d| bytes(of(d).mean)));
    format!(
        "  {:14}  {:8}  {:>11}  {:>4}  {:>9}  {limit:>5.2}  {:>9}  {:>9}  {:>9}  {:>9}  {:>10}  {:>9}  {}\n",
        vm.name,
        state(vm.state),
        cpu(|cpu| format!("{:.2}..{:.2}", cpu.demand_low.mean, cpu.demand_high.mean)),
        cpu(|cpu| format!("{:.2}", cpu.usage.mean)),
        cpu(|cpu| format!("{:.0} %", cpu.throttled.mean * 100.0)),
        told(memory.map(|memory| bytes(memory.resident_bytes as f64))),
        told(memory.and_then(|memory| Some(bytes(memory.demand?.high_bytes as f64)))),
        disk(|disk| disk.read.bytes_per_s),
        disk(|disk| disk.write.bytes_per_s),
        traffic(|vm| vm.interfaces.iter().map(|interface| interface.received.bytes_per_s.mean).collect()),
        traffic(|vm| vm.interfaces.iter().map(|interface| interface.sent.bytes_per_s.mean).collect()),
        told(vm.culprits.as_ref().map(|culprits| waited(culprits, report))),
    )
}

/// The largest causes of waits, in cores.
fn waited(culprits: &Culprits, report: &HostReport) -> String {
    let name = |id: VmId| report.vms.iter().find(|vm| vm.vm == id).map_or_else(|| id.to_string(), |vm| vm.name.clone());
    let who = |who: &Who| match who {
        Who::Vm(id) => name(*id),
        Who::Task(command) => command.clone(),
    };
    let mut causes: Vec<(f32, String)> = culprits.named.iter().map(|share| (share.cores, who(&share.who))).collect();
    causes.push((culprits.own_quota_cores.unwrap_or(0.0), "its quota".to_owned()));
    causes.push((culprits.own_cores, "itself".to_owned()));
    causes.retain(|(cores, _)| *cores >= 0.005);
    causes.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    causes.truncate(CULPRITS_TOLD);
    causes.iter().map(|(cores, who)| format!("{who} {cores:.2}")).collect::<Vec<_>>().join(", ")
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Arriving => "arriving",
        VmState::ShutOff => "shut off",
        VmState::Crashed => "crashed",
        VmState::Other => "other",
    }
}

fn instant(unix_ms: u64) -> String {
    let instant = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    instant.map_or_else(|| format!("{unix_ms} ms"), |instant| format!("{instant:.0}"))
}

fn bytes(count: f64) -> String {
    let mut rest = count;
    for unit in ["B", "KiB", "MiB"] {
        if rest < 1024.0 {
            return if unit == "B" { format!("{rest:.0} B") } else { format!("{rest:.1} {unit}") };
        }
        rest /= 1024.0;
    }
    format!("{rest:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::time::Timestamp;
    use gnomon_common::wire::{Allocation, CulpritShare, HostWindow, Losses, MemoryWindow, VmTerms};

    #[test]
    fn a_window_is_told_under_its_headings_and_what_is_unknown_is_a_dash() {
        let mean = |mean| MeanMax { mean, max: mean };
        let id = VmId(uuid::Uuid::from_u128(1));
        let share = |who, cores| CulpritShare { who, cores };
        let named = vec![share(Who::Vm(id), 0.2), share(Who::Task("task4".to_owned()), 0.05)];
        let cpu =
            CpuWindow { demand_low: mean(0.5), demand_high: mean(0.75), usage: mean(0.5), ..CpuWindow::default() };
        let vm = VmWindow {
            vm: id,
            name: "vm1".to_owned(),
            state: VmState::Running,
            cpu: Some(cpu),
            culprits: Some(Culprits { named, ..Culprits::default() }),
            memory: Some(MemoryWindow { resident_bytes: 3 << 29, ..MemoryWindow::default() }),
            interfaces: Vec::new(),
            disk: None,
            exits: None,
            allocation: Allocation { quota_cores: Some(1.5), vcpus: 2, ..Allocation::default() },
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: None,
        };
        let report = HostReport {
            start: Timestamp::from_unix_ms(1_796_000_000_000),
            window_ms: 10_000,
            host_window: HostWindow {
                cpu_cores: mean(1.234),
                memory_available_bytes: 1 << 20,
                ..HostWindow::default()
            },
            vms: vec![vm],
            inventory_complete: true,
            losses: Losses::default(),
        };
        let told = rows(&report);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "2026-11-30T00:53:20Z  10 s  host: 1.23 cores, 1.0 MiB free");
        let under = |heading: &str| {
            let end = HEADINGS.find(heading).unwrap() + heading.len();
            lines[1][..end].split("  ").last().unwrap().trim().to_owned()
        };
        assert_eq!(
            (under("RAN..WANTED"), under("LIMIT"), under("MEMORY")),
            ("0.50..0.75".into(), "1.50".into(), "1.5 GiB".into())
        );
        assert_eq!((under("READ/S"), under("SENT/S")), ("-".into(), "-".into()));
        assert!(lines[1].ends_with("vm1 0.20, task4 0.05"), "{}", lines[1]);
    }
}
