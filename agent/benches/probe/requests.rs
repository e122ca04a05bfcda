//! What a disk request costs.
//!
//! A process reads blocks of a file past the page cache, one after the other, from whichever disk has the directory of temporary files. What all
//! programs of a candidate ran is divided by the requests that completed meanwhile: ours look at a request where it is made, issued and completed;
//! `biolatency` where it is issued and completed, and with `-Q` where it is queued, too. Ours know whose it is, and by which disk; `-D` knows the disk.

use super::attached::{Attached, Peer};
use super::number;
use super::spread::median;
use super::workload::{Workload, settle};
use anyhow::{Context, Result};
use gnomon_agent::probe::BlockProbe;
use gnomon_common::wire::VmId;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use uuid::Uuid;

/// In libbpf-tools' Debian package, which is not on every user's PATH.
const BIOLATENCY: &str = "/usr/sbin/biolatency";
const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 4096;

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Nothing,
    NoVm,
    Vm,
    Biolatency,
    BiolatencyPerDisk,
}

impl Candidate {
    const ALL: [Self; 5] = [Self::Nothing, Self::NoVm, Self::Vm, Self::Biolatency, Self::BiolatencyPerDisk];

    fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NoVm => "probe, requests of no VM",
            Self::Vm => "probe, requests of a VM",
            Self::Biolatency => "biolatency",
            Self::BiolatencyPerDisk => "biolatency -D -Q",
        }
    }

    /// `None` if it is not installed.
    fn attach(self, workload: &Workload) -> Result<Option<Attached>> {
        Ok(Some(match self {
            Self::Nothing => Attached::Nothing,
            Self::NoVm => Attached::Block(Box::new(BlockProbe::load()?)),
            Self::Vm => {
                let mut probe = BlockProbe::load()?;
                probe.track(VmId(Uuid::from_u128(1)), &[workload.pid()], &[])?;
                Attached::Block(Box::new(probe))
            }
            // One report, long after the measurement.
            Self::Biolatency => return Peer::start(BIOLATENCY, &["600", "1"], 2),
            Self::BiolatencyPerDisk => return Peer::start(BIOLATENCY, &["-D", "-Q", "600", "1"], 3),
        }))
    }
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    candidate: &'static str,
    request_ns: Option<f64>,
    attached_cpu_us_per_op: f64,
    slowdown_cpu_us_per_op: f64,
}

/// The medians of all, and how they compare.
#[derive(Serialize)]
pub(super) struct Summary {
    rows: Vec<Row>,
    vm_to_biolatency: Option<f64>,
    vm_to_biolatency_per_disk: Option<f64>,
}

#[derive(Clone, Debug, Default)]
struct Samples {
    request_ns: Vec<f64>,
    attached_us: Vec<f64>,
    slowdown_us: Vec<f64>,
}

/// `None` where the directory of temporary files is on no disk.
pub(super) fn measure(rounds: usize) -> Result<Option<Summary>> {
    let dir = tempfile::tempdir()?;
    let device = dir.path().metadata()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    if !Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists() {
        println!("Requests are not measured: {} is on no disk.", dir.path().display());
        return Ok(None);
    }
    let path = dir.path().join("read");
    // Written, so that there is something on the disk to be read.
    let file = File::create(&path)?;
    let block = Block([7; BLOCK_BYTES]);
    for number in 0..BLOCKS {
        file.write_all_at(&block.0, number * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let mut workload = Workload::start(&["--read".as_ref(), path.as_os_str()])?;
    let mut samples = vec![Samples::default(); Candidate::ALL.len()];
    for round in 1..=rounds {
        for (candidate, samples) in Candidate::ALL.into_iter().zip(&mut samples) {
            take(candidate, &mut workload, samples)
                .with_context(|| format!("{} in round {round}", candidate.title()))?;
        }
    }
    Ok(Some(summarise(&samples)))
}

fn take(candidate: Candidate, workload: &mut Workload, samples: &mut Samples) -> Result<()> {
    let Some(attached) = candidate.attach(workload)? else { return Ok(()) };
    let measured = super::measure(attached, workload)?;
    // The kernel keeps 15 characters of a name: `block_rq_comple` is one of them.
    let (completed, _) = measured.spent(|program| program.contains("comple"));
    let (_, run_ns) = measured.spent(|_| true);
    samples.request_ns.extend((completed > 0).then(|| run_ns as f64 / completed as f64));
    samples.attached_us.push(measured.attached_us);
    samples.slowdown_us.push(measured.slowdown_us);
    Ok(())
}

/// Reads the file round and round, for ever.
pub(super) fn read(path: &Path, cpu: usize) -> Result<()> {
    settle(cpu)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut block = Block([0; BLOCK_BYTES]);
    for number in (0..BLOCKS).cycle() {
        file.read_exact_at(&mut block.0, number * BLOCK_BYTES as u64)?;
    }
    Ok(())
}

fn summarise(samples: &[Samples]) -> Summary {
    let rows: Vec<Row> = Candidate::ALL
        .iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.attached_us.is_empty())
        .map(|(candidate, samples)| Row {
            candidate: candidate.title(),
            request_ns: median(&samples.request_ns),
            attached_cpu_us_per_op: median(&samples.attached_us).unwrap_or(f64::NAN),
            slowdown_cpu_us_per_op: median(&samples.slowdown_us).unwrap_or(f64::NAN),
        })
        .collect();
    let cost = |candidate: Candidate| rows.iter().find(|row| row.candidate == candidate.title())?.request_ns;
    let ratio = |theirs: Candidate| Some(cost(Candidate::Vm)? / cost(theirs)?);
    Summary {
        vm_to_biolatency: ratio(Candidate::Biolatency),
        vm_to_biolatency_per_disk: ratio(Candidate::BiolatencyPerDisk),
        rows,
    }
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let line = |name: &str, request: &str, attached: &str, slowdown: &str| {
            format!("{name:<26} {request:>10} {attached:>12} {slowdown:>12}\n")
        };
        let mut text = line("", "request ns", "CPU us/op", "slowdown us");
        for row in &self.rows {
            let attached = number(Some(row.attached_cpu_us_per_op), 3);
            let slowdown = number(Some(row.slowdown_cpu_us_per_op), 3);
            text += &line(row.candidate, &number(row.request_ns, 0), &attached, &slowdown);
        }
        text += &line("VM / biolatency", &number(self.vm_to_biolatency, 2), "", "");
        text + &line("VM / biolatency -D -Q", &number(self.vm_to_biolatency_per_disk, 2), "", "")
    }
}
