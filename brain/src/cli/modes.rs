//! `gnomon mode`: what is done with plans, scope by scope.

use super::client::{Client, typed};
use super::commands::print_json;
use super::table::table;
use super::{Failure, scope};
use crate::api::{ModeBody, Operated, Status};
use clap::Args;
use gnomon_core::Mode;
use gnomon_core::view::{ModeSource, ModeView, ScopedMode};

/// What is to be done with plans, and where.
#[derive(Debug, Args)]
pub struct ModeArguments {
    /// observe, recommend, approve, or auto, which leaves it to wider scopes and policy; without it, what is said is shown
    #[arg(requires = "where")]
    pub mode: Option<Mode>,
    /// One VM, by UUID or name
    #[arg(long, group = "where", requires = "mode")]
    pub vm: Option<String>,
    /// Every VM on a host, also those that come later
    #[arg(long, group = "where", requires = "mode")]
    pub host: Option<String>,
    /// Everything
    #[arg(long, group = "where", requires = "mode")]
    pub fleet: bool,
}

pub(super) fn mode(client: &Client, json: bool, arguments: ModeArguments) -> Result<(), Failure> {
    let ModeArguments { mode, vm, host, .. } = arguments;
    let Some(mode) = mode else { return list(client, json) };
    let value = client.post("mode", &ModeBody { scope: scope(vm, host), mode })?;
    if json {
        return print_json(&value);
    }
    let operated: Operated = typed(value)?;
    println!("mode {mode}: {}, {} VMs", operated.scope, operated.vms.len());
    Ok(())
}

fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("mode")?;
    if json {
        return print_json(&value);
    }
    let status: Status = typed(client.get("status")?)?;
    println!("{} is the mode of the fleet", status.mode);
    let modes: Vec<ScopedMode> = typed(value)?;
    if modes.is_empty() {
        return Ok(());
    }
    let mut table = table(&["SCOPE", "MODE"], &[]);
    for ScopedMode { scope, mode } in modes {
        table.add_row([scope.to_string(), mode.to_string()]);
    }
    println!("{table}");
    Ok(())
}

/// A mode, and whose word it is where that is not policy's.
pub(super) fn in_words(ModeView { mode, by }: ModeView) -> String {
    let by = match by {
        ModeSource::Policy => return mode.to_string(),
        ModeSource::Fleet => "fleet",
        ModeSource::Host => "host",
        ModeSource::Vm => "VM",
        ModeSource::Owner => "owner",
    };
    format!("{mode} ({by})")
}
