//! The host as a whole: CPU in use and memory left.

use super::cgroup::cpu_usage_ns;
use super::kernel_file::{ReadError, keyed_u64, read_value};
use super::process::Proc;
use std::path::PathBuf;

/// Where the host's own load is read.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    proc: Proc,
    /// The control group that stands for "this host" where several share a kernel; `None` is the whole machine.
    cgroup_root: Option<PathBuf>,
}

impl Machine {
    /// Reads from `proc`; CPU from `cgroup_root` where given (a directory with `cpu.stat` of version 2 or `cpuacct.usage`).
    pub fn new(proc: Proc, cgroup_root: Option<PathBuf>) -> Self {
        Self { proc, cgroup_root }
    }

    /// CPU time used within the scope since boot, in nanoseconds: guests, host processes, kernel and interrupts; neither idle time
    /// nor time that a hypervisor below this one took away.
    pub fn cpu_ns(&self) -> Result<u64, ReadError> {
        match &self.cgroup_root {
            Some(root) => cpu_usage_ns(root),
            None => {
                let ticks_per_s = rustix::param::clock_ticks_per_second();
                let parse = |text: &str| parse_cpu_ns(text, ticks_per_s);
                read_value(&self.proc.path("stat"), "a line `cpu` with seven numbers", parse)
            }
        }
    }

    /// How many CPUs are online, the whole machine's whatever the scope. Not from this process's affinity or quota, which say
    /// what the agent may use.
    pub fn cpus(&self) -> Result<u32, ReadError> {
        read_value(&self.proc.path("stat"), "lines cpu0, cpu1 ...", parse_cpus)
    }

    /// Memory that could be given away without swapping (`MemAvailable`), in bytes. The whole machine's, whatever the scope.
    pub fn memory_available_bytes(&self) -> Result<u64, ReadError> {
        let parse = |text: &str| keyed_u64(text, "MemAvailable")?.checked_mul(1024);
        read_value(&self.proc.path("meminfo"), "MemAvailable", parse)
    }
}

/// proc(5): `cpu user nice system idle iowait irq softirq steal guest guest_nice`; user contains guest, nice contains guest_nice.
fn parse_cpu_ns(text: &str, ticks_per_s: u64) -> Option<u64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let mut ticks = [0u64; 7];
    for slot in &mut ticks {
        *slot = fields.next()?.parse().ok()?;
    }
    let [user, nice, system, _idle, _iowait, irq, softirq] = ticks;
    let busy = [user, nice, system, irq, softirq].into_iter().try_fold(0u64, u64::checked_add)?;
    busy.checked_mul(1_000_000_000_u64.checked_div(ticks_per_s)?)
}

fn parse_cpus(text: &str) -> Option<u32> {
    let is_cpu =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    u32::try_from(text.lines().filter(is_cpu).count()).ok().filter(|&cpus| cpus > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn idle_iowait_steal_and_guest_are_not_added() {
        let text = "cpu  10 20 30 1000 2000 40 50 4000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_cpu_ns(text, 100), Some(1_500_000_000));
        assert_eq!(parse_cpu_ns("cpu  10 20 30", 100), None);
        assert_eq!(parse_cpu_ns(text, 0), None);
        assert_eq!((parse_cpus(text), parse_cpus("cpu  1 2\nintr 1\n")), (Some(1), None));
    }

    #[test]
    fn this_machine_has_used_cpu_and_has_memory() {
        let machine = Machine::default();
        assert!(machine.cpu_ns().unwrap() > 0);
        assert!(machine.cpus().unwrap() >= u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap());
        assert!(machine.memory_available_bytes().unwrap() > 0);
    }

    #[test]
    fn a_scope_is_read_from_its_group() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.stat"), "usage_usec 12\n").unwrap();
        let scoped = |dir: &std::path::Path| Machine::new(Proc::default(), Some(dir.to_owned())).cpu_ns();
        assert_eq!(scoped(dir.path()).unwrap(), 12_000);
        std::fs::write(dir.path().join("cpuacct.usage"), "34\n").unwrap();
        assert_eq!(scoped(dir.path()).unwrap(), 34);
        assert!(scoped(&dir.path().join("missing")).unwrap_err().is_gone());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "cpu [ -~\\n]{0,100}", ticks_per_s: u64) {
            let _ = parse_cpu_ns(&text, ticks_per_s);
        }
    }
}
