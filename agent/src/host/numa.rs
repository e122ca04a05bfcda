//! The host's NUMA nodes, as `/sys/devices/system/node` tells them (Documentation/ABI/stable/sysfs-devices-node).

use super::kernel_file::{ReadError, read_value};
use gnomon_common::wire::{NUMA_NODES_MAX, NumaNode};
use std::path::PathBuf;

/// Numbers in one list of the kernel's: beyond any machine's CPUs.
const LIST_MAX: usize = 1 << 16;

/// Where they are read.
#[derive(Clone, Debug)]
pub struct Numa {
    root: PathBuf,
}

impl Default for Numa {
    fn default() -> Self {
        Self { root: PathBuf::from("/sys/devices/system/node") }
    }
}

impl Numa {
    /// The nodes that are online, by number, [`NUMA_NODES_MAX`] at most; none where the kernel knows of no such thing. A node may have memory alone,
    /// or CPUs alone.
    pub fn nodes(&self) -> Result<Vec<NumaNode>, ReadError> {
        const LIST: &str = "a list of numbers";
        let online = match read_value(&self.root.join("online"), LIST, parse_list) {
            Err(error) if error.is_gone() => return Ok(Vec::new()),
            online => online?,
        };
        let node = |node: u32| {
            let folder = self.root.join(format!("node{node}"));
            let cpus = read_value(&folder.join("cpulist"), LIST, parse_list)?;
            let memory_bytes = read_value(&folder.join("meminfo"), "MemTotal", parse_memory_bytes)?;
            Ok(NumaNode { node, cpus: u32::try_from(cpus.len()).unwrap_or(u32::MAX), memory_bytes })
        };
        online.into_iter().take(NUMA_NODES_MAX).map(node).collect()
    }
}

/// `0-3,8`; nothing is the empty list.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = first.parse::<u32>().ok()?..=last.parse().ok()?;
        numbers.extend(range.take(LIST_MAX.checked_sub(numbers.len())?));
    }
    Some(numbers)
}

/// `Node 0 MemTotal:       16310188 kB`
fn parse_memory_bytes(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    total.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn nodes_are_told_with_their_cpus_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let numa = Numa { root: folder.path().join("node") };
        assert_eq!(numa.nodes().unwrap(), [], "a kernel without NUMA");
        let node = |number: u32, cpus: &str, memory_kib: u64| {
            let folder = numa.root.join(format!("node{number}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpulist"), cpus).unwrap();
            let text = format!("Node {number} MemTotal: {memory_kib:>14} kB\nNode {number} MemFree: 1 kB\n");
            fs::write(folder.join("meminfo"), text).unwrap();
        };
        node(0, "0-15,32-47\n", 131_072_000);
        node(1, "16-31,48-62,63\n", 131_072_000);
        // Memory of a device.
        node(4, "\n", 65_536_000);
        fs::write(numa.root.join("online"), "0-1,4\n").unwrap();
        let expected = [(0, 32, 131_072_000 << 10), (1, 32, 131_072_000 << 10), (4, 0, 65_536_000 << 10)];
        assert_eq!(
            numa.nodes().unwrap(),
            expected.map(|(node, cpus, memory_bytes)| NumaNode { node, cpus, memory_bytes })
        );
        fs::write(numa.root.join("node1/meminfo"), "Node 1 MemFree: 1 kB\n").unwrap();
        assert!(numa.nodes().unwrap_err().to_string().contains("node1/meminfo"));
        fs::write(numa.root.join("online"), "all\n").unwrap();
        assert!(numa.nodes().unwrap_err().to_string().contains("a list of numbers"));
    }

    #[test]
    fn this_machines_nodes_have_all_cpus_that_are_online() {
        let nodes = Numa::default().nodes().unwrap();
        let cpus: u32 = nodes.iter().map(|node| node.cpus).sum();
        assert!(nodes.is_empty() || cpus == crate::host::machine::Machine::default().cpus().unwrap(), "{nodes:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[0-9,\\-]{0,40}", line in "(Node 0 )?MemTotal:[ -~\\n]{0,60}") {
            let numbers = parse_list(&text).map_or(0, |numbers| numbers.len());
            prop_assert!(numbers <= LIST_MAX);
            let _ = parse_memory_bytes(&line);
        }
    }
}
