//! The definition of a shadow: from what may be copied of a production VM, and what its host gives. Pure.
//!
//! Everything in it is either made here (identity, addresses, files, network) or taken from a field of the blueprint that is checked first, so
//! that no text of a blueprint can be more than the value of its one field.

use crate::config::CPU_FLOOR_CORES_MIN;
use crate::host::libvirt::{
    CPU_MODES, NETWORK_UNIT_BYTES_PER_S, SHADOW_FILTER, SHADOW_NAMESPACE, SHADOW_NETWORK, SHADOW_PERIOD_US,
    SHADOW_SUFFIX, quota_us,
};
use crate::pacer::PORT;
use gnomon_common::wire::{Blueprint, Boot, ShadowSize, ShadowSpec, Unshadowable, VmId};
use std::path::Path;

/// The pacer's disk, whose content is worth nothing: a sparse file.
pub(super) const SCRATCH_FILE: &str = "scratch.raw";
/// How the guest knows it: by its serial number.
const SCRATCH_SERIAL: &str = "gnomon-scratch";
/// The socket on the host of the channel by which the pacer is spoken to.
pub(crate) const PACER_SOCKET: &str = "pacer.sock";
/// A UEFI guest's variables.
const VARIABLES_FILE: &str = "variables.fd";

/// Most of a production's name in its shadow's: libvirt and the kernel make names of files and groups of it.
const NAME_BYTES_MAX: usize = 48;
/// Most of the reason that is kept in the definition.
const POLICY_BYTES_MAX: usize = 200;
/// Buses on which disks are offered alike by all versions of QEMU.
const BUSES: [&str; 4] = ["virtio", "scsi", "sata", "ide"];
/// Locally administered and unicast, and none of the prefixes that QEMU, libvirt or container engines give out.
const MAC_PREFIX: u8 = 0x06;

/// What the host gives.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    /// The shadow's own folder.
    pub(super) folder: &'a Path,
    /// Its weight in the numbers of the host's version of control groups.
    pub(super) shares: u64,
    /// Now, as RFC 3339.
    pub(super) created: String,
    /// Why it is made, for a person.
    pub(super) policy: &'a str,
}

/// A shadow's name.
pub(super) fn name(blueprint: &Blueprint) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = blueprint.name.chars().map(plain).take(NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{}{SHADOW_SUFFIX}", if name.is_empty() { "vm" } else { name })
}

/// The file of a disk's layer in the shadow's folder.
pub(super) fn layer_file(device: &str) -> String {
    format!("{device}.qcow2")
}

/// Whether a shadow can be of this size.
pub fn is_size(size: &ShadowSize) -> bool {
    let ShadowSize { cpu_cores, vcpus, cpu_weight, memory_bytes, disk_bytes_per_s, network_bytes_per_s } = *size;
    cpu_cores.is_finite()
        && cpu_cores >= CPU_FLOOR_CORES_MIN
        && vcpus > 0
        && (1..=10_000).contains(&cpu_weight)
        && memory_bytes > 0
        && disk_bytes_per_s != Some(0)
        && network_bytes_per_s != Some(0)
}

/// The XML of a shadow with this identity.
///
/// # Errors
/// The blueprint has a value that its field cannot have.
pub(super) fn xml(vm: VmId, spec: &ShadowSpec, place: &Place<'_>) -> Result<String, Unshadowable> {
    let (blueprint, size) = (&spec.blueprint, &spec.size);
    let word = |what: &str, text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
        let is_word = (1..=64).contains(&text.len()) && text.bytes().all(plain);
        is_word.then(|| text.to_owned()).ok_or_else(|| Unshadowable::Definition(format!("the {what} {text:?}")))
    };
    let quota_us = quota_us(size.cpu_cores);
    let name = name(blueprint);
    let (id, of, created) = (vm.0.hyphenated(), spec.of.0.hyphenated(), escape(&place.created)?);
    let policy: String = place.policy.chars().filter(|c| !c.is_control()).take(POLICY_BYTES_MAX).collect();
    let policy = escape(&policy)?;
    let (kind, arch) = (if blueprint.kvm { "kvm" } else { "qemu" }, word("architecture", &blueprint.arch)?);
    let machine = word("machine type", &blueprint.machine)?;
    let cpu = match blueprint.cpu_model.as_deref() {
        None => String::new(),
        Some(mode) if CPU_MODES.contains(&mode) => format!("<cpu mode='{mode}'/>"),
        Some(model) => format!("<cpu mode='custom' match='exact'><model>{}</model></cpu>", word("CPU model", model)?),
    };
    let features = match arch.as_str() {
        "x86_64" | "i686" => "<features><acpi/><apic/></features>",
        _ => "",
    };
    let boot = boot(&blueprint.boot, place.folder)?;
    let devices = devices(vm, blueprint, size, place.folder, word)?;
    let (vcpus, memory, shares) = (size.vcpus, size.memory_bytes, place.shares);
    Ok(format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <uuid>{id}</uuid>
  <metadata><gnomon:shadow xmlns:gnomon='{SHADOW_NAMESPACE}' of='{of}' created='{created}' policy='{policy}'/></metadata>
  <memory unit='b'>{memory}</memory>
  <vcpu>{vcpus}</vcpu>
  <cputune><shares>{shares}</shares><global_period>{SHADOW_PERIOD_US}</global_period><global_quota>{quota_us}</global_quota></cputune>
  <os><type arch='{arch}' machine='{machine}'>hvm</type>{boot}</os>
  {features}
  {cpu}
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_crash>destroy</on_crash>
  <devices>
{devices}  </devices>
</domain>
"
    ))
}

fn boot(boot: &Boot, folder: &Path) -> Result<String, Unshadowable> {
    Ok(match boot {
        Boot::Bios => "<boot dev='hd'/>".to_owned(),
        Boot::Uefi { loader, template } => {
            let template = template.as_deref().map(escape).transpose()?;
            let template = template.map_or(String::new(), |template| format!(" template='{template}'"));
            let variables = file(folder, VARIABLES_FILE)?;
            format!(
                "<loader readonly='yes' type='pflash'>{}</loader><nvram{template}>{variables}</nvram><boot dev='hd'/>",
                escape(loader)?
            )
        }
        Boot::Kernel { kernel, initrd, command_line } => {
            let initrd = initrd.as_deref().map(escape).transpose()?;
            let initrd = initrd.map_or(String::new(), |initrd| format!("<initrd>{initrd}</initrd>"));
            format!("<kernel>{}</kernel>{initrd}<cmdline>{}</cmdline>", escape(kernel)?, escape(command_line)?)
        }
    })
}

fn devices(
    vm: VmId,
    blueprint: &Blueprint,
    size: &ShadowSize,
    folder: &Path,
    word: impl Fn(&str, &str) -> Result<String, Unshadowable>,
) -> Result<String, Unshadowable> {
    let tune = size.disk_bytes_per_s.map_or(String::new(), |bytes_per_s| {
        format!("<iotune><total_bytes_sec>{bytes_per_s}</total_bytes_sec></iotune>")
    });
    let disk = |format: &str, file: &str, device: &str, bus: &str, serial: &str| {
        format!(
            "    <disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{file}'/>\
             <target dev='{device}' bus='{bus}'/>{serial}{tune}</disk>\n"
        )
    };
    let mut devices = "    <controller type='usb' model='none'/>\n".to_owned();
    if blueprint.disks.iter().any(|disk| disk.bus == "scsi") {
        devices += "    <controller type='scsi' index='0' model='virtio-scsi'/>\n";
    }
    for blue in &blueprint.disks {
        if !is_device(&blue.device) {
            return Err(Unshadowable::Definition(format!("the disk {:?}", blue.device)));
        }
        if !BUSES.contains(&blue.bus.as_str()) {
            return Err(Unshadowable::Definition(format!("the bus {:?} of its disk {}", blue.bus, blue.device)));
        }
        devices += &disk("qcow2", &file(folder, &layer_file(&blue.device))?, &blue.device, &blue.bus, "");
    }
    let taken = |device: &String| blueprint.disks.iter().any(|disk| disk.device == *device);
    let free = ('a'..='z').map(|letter| format!("vd{letter}")).find(|device| !taken(device));
    let free = free.ok_or_else(|| Unshadowable::Definition("no name is left for the scratch disk".to_owned()))?;
    let serial = format!("<serial>{SCRATCH_SERIAL}</serial>");
    devices += &disk("raw", &file(folder, SCRATCH_FILE)?, &free, "virtio", &serial);
    let bandwidth = size.network_bytes_per_s.map_or(String::new(), |bytes_per_s| {
        let average = bytes_per_s.div_ceil(NETWORK_UNIT_BYTES_PER_S);
        format!("<bandwidth><inbound average='{average}'/><outbound average='{average}'/></bandwidth>")
    });
    for (index, model) in (0..=u8::MAX).zip(&blueprint.interfaces) {
        let (mac, model) = (mac(vm, index), word("network interface", model)?);
        devices += &format!(
            "    <interface type='network'><mac address='{mac}'/><source network='{SHADOW_NETWORK}'/>\
             <model type='{model}'/><port isolated='yes'/>\
             <filterref filter='{SHADOW_FILTER}'/>{bandwidth}</interface>\n"
        );
    }
    let socket = file(folder, PACER_SOCKET)?;
    devices += &format!(
        "    <channel type='unix'><source mode='bind' path='{socket}'/><target type='virtio' name='{PORT}'/></channel>\n    \
         <serial type='pty'><target port='0'/></serial>\n    \
         <memballoon model='virtio'><stats period='5'/></memballoon>\n"
    );
    Ok(devices)
}

/// A device's name is a file's name, too.
fn is_device(name: &str) -> bool {
    (3..=8).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// An address that follows from the shadow's identity alone.
fn mac(vm: VmId, index: u8) -> String {
    let [.., a, b, c, d, e] = *vm.0.as_bytes();
    format!("{MAC_PREFIX:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{:02x}", e ^ index)
}

fn file(folder: &Path, name: &str) -> Result<String, Unshadowable> {
    escape(&folder.join(name).to_string_lossy())
}

/// Text as it may stand between tags and in attributes; XML has no way to write most control characters.
fn escape(text: &str) -> Result<String, Unshadowable> {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                return Err(Unshadowable::Definition(format!("a text with the character {c:?}")));
            }
            c => escaped.push(c),
        }
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests;
