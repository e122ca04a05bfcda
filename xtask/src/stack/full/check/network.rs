//! Packets for a guest whose interface is served by a worker of the kernel's (vhost), which under Linux 6.1 is a process of its own.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::{COMPARED, GUEST, TOLERANCE_CORES, TOLERANCE_SHARE, latest_windows, mean};
use crate::lab::full::Machine;
use crate::stack::full::FullStack;

/// The bridge that the guest is on, without an uplink, and the guest's address.
pub(super) const BRIDGE: &str = "net0";
const HOST_ADDRESS: &str = "10.88.0.1/24";
const GUEST_ADDRESS: &str = "10.88.0.2";
/// Before and after the windows that are looked at, packets flow as well.
const EDGE: Duration = Duration::from_secs(4);
/// What is sent is told by windows of two seconds, and not evenly under emulation.
const PACKETS_TOLERANCE_SHARE: f64 = 0.15;

/// Echo requests, which the guest answers.
#[derive(Debug)]
pub struct Carried {
    /// By the program that sent them.
    pub requests_per_s: f64,
    /// By the program that sent them.
    pub answers_per_s: f64,
    /// What the windows say that the guest's interface received.
    pub received_per_s: f64,
    /// What they say that it sent.
    pub sent_per_s: f64,
    /// CPU of the worker, by the kernel's own count, in cores.
    pub worker_cores: f64,
    /// CPU of QEMU's threads, by the kernel's own count, in cores.
    pub qemu_cores: f64,
    /// CPU of the VM, by the windows, in cores.
    pub ebpf_cores: f64,
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "echo requests and answers a second: {:.1} and {:.1}, received and sent by the guest's tap {:.1} and {:.1}; \
             CPU of the VM meanwhile: eBPF says {:.3} cores, the kernel {:.3} for QEMU and {:.3} for the vhost worker",
            self.requests_per_s,
            self.answers_per_s,
            self.received_per_s,
            self.sent_per_s,
            self.ebpf_cores,
            self.qemu_cores,
            self.worker_cores
        )
    }
}

/// Makes the bridge. No module of these is loaded on a machine that was just booted.
pub(super) fn prepare(host: &Machine) -> Result<()> {
    host.run(&format!(
        "modprobe -a vhost_net bridge
        ip link add {BRIDGE} type bridge forward_delay 0
        ip address add {HOST_ADDRESS} dev {BRIDGE}
        ip link set {BRIDGE} up"
    ))
    .map(|_| ())
}

/// A definition with the interface on the bridge, whose packets a worker carries or nobody.
pub(super) fn with_worker(xml: &str) -> String {
    let xml =
        xml.replace("<model type='virtio'/></interface>", "<model type='virtio'/><driver name='vhost'/></interface>");
    xml.replace("gnomon.load=", &format!("gnomon.address={GUEST_ADDRESS}/24 gnomon.load="))
}

/// The worker is one of the VM's threads, its CPU is the VM's, and the tap's packets are those that were sent.
pub(super) fn compare(stack: &FullStack, host: &Machine) -> Result<Carried> {
    let metrics = host.run(
        "exec 3<> /dev/tcp/127.0.0.1/9479; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3
        grep -a '^gnomon_agent_vm_threads' <&3",
    )?;
    ensure!(metrics.contains("gnomon_agent_vm_threads{role=\"vhost\"} 1"), "the VM's threads are {metrics}");
    let flow_s = (COMPARED + 2 * EDGE).as_secs();
    // busybox tells its counts when it is interrupted.
    let script = format!(
        "pid=$(cat /run/libvirt/qemu/{GUEST}.pid)
        worker=$(grep -lx \"vhost-$pid\" /proc/[0-9]*/comm | cut -d / -f 3)
        count() {{
            read -r worker_ns _ < /proc/$worker/schedstat
            echo \"count $(date +%s%3N) $worker_ns $(cat /proc/$pid/task/*/schedstat | busybox awk '{{ ns += $1 }} END {{ printf \"%.0f\", ns }}')\"
        }}
        count
        timeout -s INT {flow_s} busybox ping -q -i 0.01 -s 1000 {GUEST_ADDRESS} || true
        count"
    );
    let (said, views) = thread::scope(|scope| -> Result<_> {
        let flow = scope.spawn(|| host.run_within(&script, Duration::from_secs(2 * flow_s)));
        thread::sleep(EDGE);
        let views = latest_windows(stack, COMPARED);
        let said = flow.join().map_err(|_| anyhow!("the thread that has packets sent panicked"))?;
        Ok((said?, views?.0))
    })?;
    let truth = Truth::parse(&said).with_context(|| format!("no counts in {said}"))?;
    let carried = Carried {
        requests_per_s: truth.requests / truth.elapsed_s,
        answers_per_s: truth.answers / truth.elapsed_s,
        received_per_s: mean(&views, "/interfaces/0/received/packets_per_s")?,
        sent_per_s: mean(&views, "/interfaces/0/sent/packets_per_s")?,
        worker_cores: truth.worker_s / truth.elapsed_s,
        qemu_cores: truth.qemu_s / truth.elapsed_s,
        ebpf_cores: mean(&views, "/cpu/demand_low/mean")?,
    };
    for (told, sent, what) in [
        (carried.received_per_s, carried.requests_per_s, "requests"),
        (carried.sent_per_s, carried.answers_per_s, "answers"),
    ] {
        ensure!(sent > 1.0 && (told - sent).abs() <= PACKETS_TOLERANCE_SHARE * sent, "{what} of {carried:?}");
    }
    let counted = carried.qemu_cores + carried.worker_cores;
    ensure!((carried.ebpf_cores - counted).abs() <= TOLERANCE_CORES + TOLERANCE_SHARE * counted, "{carried:?}");
    ensure!(
        carried.worker_cores > 0.01
            && (carried.ebpf_cores - counted).abs() < (carried.ebpf_cores - carried.qemu_cores).abs(),
        "the worker's CPU is not the VM's: {carried:?}"
    );
    Ok(carried)
}

/// What was sent, and what the kernel counted meanwhile.
#[derive(Debug, PartialEq)]
struct Truth {
    elapsed_s: f64,
    worker_s: f64,
    qemu_s: f64,
    requests: f64,
    answers: f64,
}

impl Truth {
    /// Of two lines `count MS WORKER_NS QEMU_NS` and ping's `N packets transmitted, M packets received, ...`.
    fn parse(said: &str) -> Option<Self> {
        let mut counts = said.lines().filter_map(|line| line.strip_prefix("count ")).map(numbers);
        let (before, after) = (counts.next()?, counts.next()?);
        let since = |at: usize| Some(after.get(at)? - before.get(at)?);
        let [requests, answers, ..] = numbers(said.lines().find(|line| line.contains("packets transmitted"))?)[..]
        else {
            return None;
        };
        Some(Truth {
            elapsed_s: since(0)? / 1e3,
            worker_s: since(1)? / 1e9,
            qemu_s: since(2)? / 1e9,
            requests,
            answers,
        })
    }
}

fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_and_counted_is_read_from_what_the_script_says() {
        let said = "count 1000 500000000 2000000000\n\
                    --- 10.88.0.2 ping statistics ---\n\
                    300 packets transmitted, 299 packets received, 0% packet loss\n\
                    round-trip min/avg/max = 0.2/0.5/1.9 ms\n\
                    count 4000 800000000 3500000000\n";
        let truth = Truth { elapsed_s: 3.0, worker_s: 0.3, qemu_s: 1.5, requests: 300.0, answers: 299.0 };
        let read = Truth::parse(said).unwrap();
        assert!((read.worker_s - 0.3).abs() < 1e-9);
        assert_eq!(Truth { worker_s: 0.3, ..read }, truth);
        assert_eq!(Truth::parse("count 1000 5 2\n"), None);
    }
}
