//! `gnomon set`: one means of one VM by hand, and what became of it.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::{in_words, print_json};
use super::quantity::{self, Limit};
use crate::api::{SetAnswer, SetBody};
use clap::Args;
use gnomon_common::wire::{CommandId, OutcomeResult, Setting, VmId};
use gnomon_core::view::Explanation;
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

/// How often the brain is asked what became of a command. Agents answer within milliseconds.
const POLL: Duration = Duration::from_millis(100);

/// Which VM, and what.
#[derive(Debug, Args)]
#[command(
    after_help = "One means at a time; disk and network take several flags, and what is left out is unlimited then.\n\
    The agent keeps to its own bounds: what it refuses is said, and not held.\n\n\
    Examples:\n  gnomon set web-1 --cpu 1.5\n  gnomon set web-1 --memory 2GiB --dry-run\n  \
    gnomon set web-1 --disk-bytes 50MB/s --disk-operations 500\n  gnomon resume --vm web-1"
)]
pub struct SetArguments {
    /// UUID, or name
    vm: String,
    #[command(flatten)]
    means: MeansArguments,
    /// Only show what would be set
    #[arg(long)]
    dry_run: bool,
    /// Wait this long for the agent's answer, in seconds; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    wait: u64,
}

/// The means, at least one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct MeansArguments {
    /// CPU quota in cores, or `unlimited`
    #[arg(long, value_name = "CORES", value_parser = quantity::cores)]
    cpu: Option<Limit<f64>>,
    /// CPU weight under contention, 1 to 10000; 100 is ordinary
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    cpu_weight: Option<u32>,
    /// Memory that the balloon leaves to the guest, like 2GiB or 2G, the same: K, M, G and T are powers of 1024, as for QEMU and libvirt
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// vCPUs plugged in
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,
    /// Traffic of each disk, like 50MB/s, or `unlimited`
    #[arg(long, value_name = "BYTES/S", value_parser = quantity::bytes_per_s)]
    disk_bytes: Option<Limit<u64>>,
    /// Operations of each disk per second, or `unlimited`
    #[arg(long, value_name = "COUNT/S", value_parser = quantity::operations_per_s)]
    disk_operations: Option<Limit<u64>>,
    /// Traffic into each network interface, like 10MB/s, or `unlimited`
    #[arg(long, value_name = "BYTES/S", value_parser = quantity::bytes_per_s)]
    network_in: Option<Limit<u64>>,
    /// Traffic out of each network interface, like 10MB/s, or `unlimited`
    #[arg(long, value_name = "BYTES/S", value_parser = quantity::bytes_per_s)]
    network_out: Option<Limit<u64>>,
}

impl MeansArguments {
    fn settings(&self) -> Vec<Setting> {
        let limit = |limit: Option<Limit<u64>>| limit.and_then(|Limit(value)| value);
        let disk = self.disk_bytes.or(self.disk_operations).map(|_| Setting::DiskLimit {
            bytes_per_s: limit(self.disk_bytes),
            operations_per_s: limit(self.disk_operations),
        });
        let network = self.network_in.or(self.network_out).map(|_| Setting::NetworkLimit {
            in_bytes_per_s: limit(self.network_in),
            out_bytes_per_s: limit(self.network_out),
        });
        let means = [
            self.cpu.map(|Limit(cores)| Setting::CpuQuota { cores }),
            self.cpu_weight.map(|weight| Setting::CpuWeight { weight }),
            self.memory.map(|bytes| Setting::Memory { bytes }),
            self.vcpus.map(|count| Setting::Vcpus { count }),
            disk,
            network,
        ];
        means.into_iter().flatten().collect()
    }
}

pub(super) fn set(client: &Client, json: bool, arguments: &SetArguments) -> Result<(), Failure> {
    let SetArguments { vm, means, dry_run, wait } = arguments;
    let [setting] = means.settings()[..] else {
        return Err(Failure::Usage("one means at a time: the command for each can be refused on its own".into()));
    };
    let deadline = Instant::now() + Duration::from_secs(*wait);
    let answer = ask(client, vm, SetBody { setting }, *dry_run, deadline)?;
    let SetAnswer { host, before, target, command, .. } = &answer;
    let before = before.map_or_else(|| "unknown".to_owned(), |before| before.to_string());
    let Some(command) = *command else {
        if json {
            return print_json(&json!(answer));
        }
        println!("would set the {} of {vm} on {host}: {before} -> {target}", target.means());
        return Ok(());
    };
    let result = if *wait == 0 { None } else { wait_for(client, answer.vm, command, deadline)? };
    if json {
        let mut value = json!(answer);
        value["result"] = json!(result);
        print_json(&value)?;
    }
    match result {
        Some(OutcomeResult::Applied { .. }) | None if json => Ok(()),
        Some(ref result @ OutcomeResult::Applied { .. }) => {
            println!("{} of {vm} on {host}: {before} -> {target}", target.means());
            println!("{}; held until: gnomon resume --vm {vm}", in_words(result));
            Ok(())
        }
        None if *wait == 0 => {
            println!("command {command} was sent; what becomes of it: gnomon explain {vm}");
            Ok(())
        }
        None => Err(Failure::Refused(format!(
            "command {command} was sent, but not answered within {wait} s; it may still be: gnomon explain {vm}"
        ))),
        Some(
            result @ (OutcomeResult::Moved(_)
            | OutcomeResult::NotMoved { .. }
            | OutcomeResult::Immovable(_)
            | OutcomeResult::Described(_)
            | OutcomeResult::Imaged(_)
            | OutcomeResult::DirtyRate { .. }
            | OutcomeResult::Shadow(_)
            | OutcomeResult::Unshadowable(_)),
        ) => Err(Failure::Refused(format!("the agent of host {host} answered something else: {}", in_words(&result)))),
        Some(OutcomeResult::DryRun) => Err(Failure::Refused(format!(
            "the agent of host {host} runs dry: it judged the command and changed nothing"
        ))),
        Some(OutcomeResult::Refused(why)) => Err(Failure::Refused(format!(
            "the agent of host {host} refused: {why}; the {} is as before",
            target.means()
        ))),
        Some(OutcomeResult::Failed { error, retryable }) => {
            let next = if retryable { "; it may succeed later" } else { "" };
            Err(Failure::Refused(format!("the agent of host {host} failed: {error}{next}")))
        }
    }
}

/// Asks until no other command is on its way to this VM.
fn ask(client: &Client, vm: &str, body: SetBody, dry_run: bool, deadline: Instant) -> Result<SetAnswer, Failure> {
    let query = if dry_run { "?dry_run=true" } else { "" };
    loop {
        match client.post(&format!("vms/{}/set{query}", segment(vm)), &body) {
            Err(Failure::Conflict(_)) if Instant::now() + POLL < deadline => thread::sleep(POLL),
            answer => return typed(answer?),
        }
    }
}

/// What became of a command, or `None` once the time is over.
pub(super) fn wait_for(
    client: &Client,
    vm: VmId,
    command: CommandId,
    deadline: Instant,
) -> Result<Option<OutcomeResult>, Failure> {
    loop {
        let explanation: Explanation = typed(client.get(&format!("vms/{vm}/explain"))?)?;
        let action = explanation.recent.into_iter().find(|action| action.id == Some(command));
        if let Some(result) = action.and_then(|action| action.result) {
            return Ok(Some(result));
        }
        if Instant::now() + POLL >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}
