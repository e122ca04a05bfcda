//! What the eBPF programs of a process have cost, whoever loaded them; the kernel shows it beside their file descriptors.

use aya::programs::loaded_programs;
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// A program's counters. They stay as they are while nobody has the kernel time its programs.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    /// Its name, as far as the kernel keeps it.
    pub(crate) program: String,
    /// How often it ran.
    pub(crate) runs: u64,
    /// How long it ran, in nanoseconds.
    pub(crate) run_ns: u64,
}

/// The programs that a process holds, each once.
pub(crate) fn of_process(pid: u32) -> io::Result<Vec<Cost>> {
    let mut counters = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(runs), Some(run_ns)) = (field("prog_id:"), field("run_cnt:"), field("run_time_ns:")) {
            counters.insert(id, (runs, run_ns));
        }
    }
    if counters.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeMap<u64, String> = loaded_programs()
        .flatten()
        .map(|program| (u64::from(program.id()), program.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let name = |id: &u64| names.get(id).cloned().unwrap_or_default();
    Ok(counters.iter().map(|(id, &(runs, run_ns))| Cost { program: name(id), runs, run_ns }).collect())
}
