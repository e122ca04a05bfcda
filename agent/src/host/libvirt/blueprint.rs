//! What of a running domain may be copied into a shadow of it. Pure.
//!
//! A whitelist: what [`Blueprint`] has no field for is not looked at, and so cannot get into a shadow: devices passed through, removable
//! media and seeds of cloud-init, SMBIOS, folders of the host, networks, identities.

use super::devices::children;
use super::limits::NETWORK_UNIT_BYTES_PER_S;
use super::{Hypervisor, HypervisorError, shadow};
use crate::host::cgroup::CpuWeight;
use gnomon_common::wire::{Base, Blueprint, Boot, CPU_WEIGHT_DEFAULT, DiskBlueprint, Unshadowable, VmId};
use roxmltree::{Document, Node};

/// What libvirt calls a CPU that is not a model by name but whatever the host has.
pub(crate) const CPU_MODES: [&str; 2] = ["host-passthrough", "maximum"];

impl Hypervisor {
    /// What a shadow of a running domain is made from, or why none can be. Blocks.
    pub fn blueprint(&self, vm: VmId) -> Result<Result<Blueprint, Unshadowable>, HypervisorError> {
        let domain = self.domain(vm)?;
        let xml = domain.xml_desc(0).map_err(|e| HypervisorError::call("read the definition", &e))?;
        let mut blueprint = match parse(&xml, CpuWeight::of_this_host) {
            Ok(blueprint) => blueprint,
            Err(why) => return Ok(Err(why)),
        };
        for disk in &mut blueprint.disks {
            let info = domain.block_info(&disk.device, 0);
            disk.size_bytes = info.map_err(|e| HypervisorError::call("tell the size of a disk", &e))?.capacity;
        }
        Ok(Ok(blueprint))
    }
}

/// Reads the XML of a running domain, whose weight is in the numbers of its host; the sizes of disks are not in it, and are 0. Whether its host copies
/// disks is not in it either.
pub(crate) fn parse(xml: &str, weight: impl Fn(u64) -> CpuWeight) -> Result<Blueprint, Unshadowable> {
    let refuse = |why: &str| Unshadowable::Definition(why.to_owned());
    if shadow::is_marked(xml) {
        return Err(refuse("it is a shadow itself"));
    }
    let document = Document::parse(xml).map_err(|error| Unshadowable::Definition(error.to_string()))?;
    let domain = document.root_element();
    let kvm = match domain.attribute("type") {
        Some("kvm") => true,
        Some("qemu") => false,
        _ => return Err(refuse("it is no domain of QEMU's")),
    };
    let lacks = |what: &'static str| move || refuse(what);
    let os = child(domain, "os").ok_or_else(lacks("it has no <os>"))?;
    let machine = child(os, "type").ok_or_else(lacks("it has no machine type"))?;
    let attribute = |name| machine.attribute(name).unwrap_or_default().to_owned();
    let vcpu = child(domain, "vcpu").ok_or_else(lacks("it has no <vcpu>"))?;
    let vcpus = vcpu.attribute("current").or(vcpu.text()).and_then(|count| count.trim().parse().ok());
    let memory = child(domain, "currentMemory").or(child(domain, "memory")).and_then(bytes);
    let devices = child(domain, "devices");
    let all = |name| devices.into_iter().flat_map(move |devices| children(devices, name));
    let shares = child(domain, "cputune").and_then(|tuning| number(tuning, "shares"));
    let blueprint = Blueprint {
        name: text(domain, "name").ok_or_else(lacks("it has no name"))?,
        kvm,
        arch: attribute("arch"),
        machine: attribute("machine"),
        cpu_model: child(domain, "cpu").and_then(cpu_model),
        boot: boot(os)?,
        vcpus: vcpus.ok_or_else(lacks("its <vcpu> is no number"))?,
        memory_bytes: memory.ok_or_else(lacks("its memory is no number"))?,
        cpu_weight: shares.map_or(CPU_WEIGHT_DEFAULT, |shares| weight(shares).nearest_weight()),
        disk_bytes_per_s_max: highest(all("disk").filter(|node| disk(*node).is_some()).map(disk_limit)),
        network_bytes_per_s_max: highest(all("interface").map(interface_limit)),
        disks: all("disk").filter_map(disk).collect(),
        interfaces: all("interface").map(model).collect(),
    };
    if !blueprint.is_bounded() {
        return Err(refuse("it has more disks or network interfaces than a shadow may have"));
    }
    Ok(blueprint)
}

fn boot(os: Node<'_, '_>) -> Result<Boot, Unshadowable> {
    if let Some(kernel) = text(os, "kernel") {
        let command_line = text(os, "cmdline").unwrap_or_default();
        return Ok(Boot::Kernel { kernel, initrd: text(os, "initrd"), command_line });
    }
    match child(os, "loader").filter(|loader| loader.attribute("type") == Some("pflash")) {
        Some(loader) if loader.attribute("secure") == Some("yes") => {
            Err(Unshadowable::Definition("it boots by Secure Boot, whose keys are in its variables".to_owned()))
        }
        Some(loader) => {
            let template = child(os, "nvram").and_then(|nvram| nvram.attribute("template"));
            let loader = loader.text().unwrap_or_default().trim().to_owned();
            Ok(Boot::Uefi { loader, template: template.map(str::to_owned) })
        }
        None => Ok(Boot::Bios),
    }
}

fn cpu_model(cpu: Node<'_, '_>) -> Option<String> {
    match cpu.attribute("mode") {
        Some(mode) if CPU_MODES.contains(&mode) => Some(mode.to_owned()),
        None | Some("custom") => text(cpu, "model"),
        Some(_) => None,
    }
}

/// Removable media are left out: what seeds a guest's identity comes on them.
fn disk(disk: Node<'_, '_>) -> Option<DiskBlueprint> {
    if !matches!(disk.attribute("device"), None | Some("disk" | "lun")) {
        return None;
    }
    let target = child(disk, "target")?;
    let is_layer = disk.attribute("device") != Some("lun") && matches!(disk.attribute("type"), Some("file" | "block"));
    // What QEMU reads of it is in clear text, and so would be its copy.
    let is_encrypted = disk.descendants().any(|node| node.tag_name().name() == "encryption");
    let base = child(disk, "backingStore").filter(|_| is_layer && !is_encrypted).and_then(image);
    let is_own = disk.attribute("device") != Some("lun")
        && !is_encrypted
        && matches!(disk.attribute("type"), Some("file" | "block" | "network"))
        && ["readonly", "shareable", "transient"].iter().all(|mark| child(disk, mark).is_none());
    Some(DiskBlueprint {
        device: target.attribute("dev")?.to_owned(),
        bus: target.attribute("bus").unwrap_or_default().to_owned(),
        size_bytes: 0,
        base: base.unwrap_or(if is_own { Base::Copyable } else { Base::None }),
    })
}

/// What a disk may read and write together, in bytes per second, whichever way that is said.
fn disk_limit(disk: Node<'_, '_>) -> Option<u64> {
    let tune = child(disk, "iotune")?;
    let limit = |name| number(tune, name).filter(|limit| *limit > 0);
    let apart = || Some(limit("read_bytes_sec")?.saturating_add(limit("write_bytes_sec")?));
    limit("total_bytes_sec").or_else(apart)
}

/// What an interface may carry in the one direction that may carry more, in bytes per second.
fn interface_limit(interface: Node<'_, '_>) -> Option<u64> {
    let bandwidth = child(interface, "bandwidth")?;
    let average = |way| child(bandwidth, way)?.attribute("average")?.parse::<u64>().ok().filter(|units| *units > 0);
    Some(average("inbound")?.max(average("outbound")?).saturating_mul(NETWORK_UNIT_BYTES_PER_S))
}

/// The highest of several limits; none where one of them is none, or there is nothing to limit.
fn highest(limits: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    limits.reduce(|one, other| Some(one?.max(other?))).flatten()
}

/// The layer below a disk's own, if it is a file or a block device of the host.
fn image(backing: Node<'_, '_>) -> Option<Base> {
    let place = match backing.attribute("type")? {
        "file" => "file",
        "block" => "dev",
        _ => return None,
    };
    let path = child(backing, "source")?.attribute(place)?.to_owned();
    let format = child(backing, "format")?.attribute("type")?.to_owned();
    Some(Base::Image { path, format })
}

fn model(interface: Node<'_, '_>) -> String {
    child(interface, "model").and_then(|model| model.attribute("type")).unwrap_or("virtio").to_owned()
}

pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

fn number(node: Node<'_, '_>, name: &'static str) -> Option<u64> {
    text(node, name)?.parse().ok()
}

fn text(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    child(node, name)?.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The bytes that an element with a unit tells; libvirt writes KiB, and `b` at our own wish.
pub(super) fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let count: u64 = node.text()?.trim().parse().ok()?;
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    count.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIVE: &str = "<domain type='kvm' id='3'><name>web</name><uuid>0a0a0a0a-0000-4000-8000-000000000001</uuid>\
        <memory unit='KiB'>2097152</memory><currentMemory unit='KiB'>1048576</currentMemory>\
        <vcpu placement='static' current='2'>4</vcpu><sysinfo type='smbios'><system><entry name='serial'>ds=nocloud</entry></system></sysinfo>\
        <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><smbios mode='sysinfo'/></os>\
        <cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu><devices>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/web.qcow2' index='1'/>\
        <backingStore type='file' index='2'><format type='raw'/><source file='/images/debian.raw'/><backingStore/></backingStore>\
        <target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='disk'><source file='/srv/data.qcow2'/><backingStore/><target dev='vdb' bus='virtio'/></disk>\
        <disk type='network' device='disk'><source protocol='rbd' name='p/x'/><target dev='vdc' bus='virtio'/></disk>\
        <disk type='file' device='cdrom'><source file='/srv/seed.iso'/><target dev='sda' bus='sata'/></disk>\
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='e1000'/></interface>\
        <interface type='network'><source network='lan'/></interface>\
        <hostdev mode='subsystem' type='pci'/><filesystem type='mount'><source dir='/home'/></filesystem></devices></domain>";

    fn read(xml: &str) -> Result<Blueprint, Unshadowable> {
        parse(xml, CpuWeight::Weight)
    }

    fn with(from: &str, to: &str) -> Result<Blueprint, Unshadowable> {
        assert!(LIVE.contains(from), "{from}");
        read(&LIVE.replace(from, to))
    }

    #[test]
    fn what_a_shadow_is_made_from_is_read_and_nothing_else() {
        let blueprint = read(LIVE).unwrap();
        let disk =
            |device: &str, base| DiskBlueprint { device: device.into(), bus: "virtio".into(), size_bytes: 0, base };
        let image = Base::Image { path: "/images/debian.raw".into(), format: "raw".into() };
        let expected = Blueprint {
            name: "web".into(),
            kvm: true,
            arch: "x86_64".into(),
            machine: "pc-q35-7.2".into(),
            cpu_model: Some("Skylake-Server".into()),
            boot: Boot::Bios,
            vcpus: 2,
            memory_bytes: 1 << 30,
            cpu_weight: CPU_WEIGHT_DEFAULT,
            disk_bytes_per_s_max: None,
            network_bytes_per_s_max: None,
            disks: vec![disk("vda", image), disk("vdb", Base::Copyable), disk("vdc", Base::Copyable)],
            interfaces: vec!["e1000".into(), "virtio".into()],
        };
        assert_eq!(blueprint, expected);
        let told = format!("{blueprint:?}");
        for secret in ["seed.iso", "br0", "lan", "52:54", "nocloud", "/home", "/srv", "0a0a0a0a"] {
            assert!(!told.contains(secret), "{secret} is in {told}");
        }
    }

    #[test]
    fn its_weight_and_the_highest_limit_on_each_kind_of_device_are_read() {
        let shares = "<cputune><shares>2048</shares></cputune>";
        let weighted = LIVE.replace("<devices>", &format!("{shares}<devices>"));
        assert_eq!(parse(&weighted, CpuWeight::Shares).unwrap().cpu_weight, 200);
        assert_eq!(parse(&weighted, CpuWeight::Weight).unwrap().cpu_weight, 2048);
        let limited = |disks: [&str; 3], interfaces: [&str; 2]| {
            let mut xml = LIVE.to_owned();
            for (target, limits) in ["vda", "vdb", "vdc"].into_iter().zip(disks) {
                let target = format!("<target dev='{target}' bus='virtio'/>");
                xml = xml.replace(&target, &format!("{target}<iotune>{limits}</iotune>"));
            }
            for (source, limits) in ["<source bridge='br0'/>", "<source network='lan'/>"].into_iter().zip(interfaces) {
                xml = xml.replace(source, &format!("{source}<bandwidth>{limits}</bandwidth>"));
            }
            let blueprint = read(&xml).unwrap();
            (blueprint.disk_bytes_per_s_max, blueprint.network_bytes_per_s_max)
        };
        let total = "<total_bytes_sec>500</total_bytes_sec>";
        let apart = "<read_bytes_sec>400</read_bytes_sec><write_bytes_sec>300</write_bytes_sec>";
        let (slow, fast) =
            ("<inbound average='3'/><outbound average='2'/>", "<inbound average='1'/><outbound average='8'/>");
        assert_eq!(limited([total, apart, total], [slow, fast]), (Some(700), Some(8_000)));
        // One that is free makes the whole free, a way that is free as well.
        assert_eq!(
            limited([total, "<read_bytes_sec>400</read_bytes_sec>", total], [slow, "<inbound average='1'/>"]),
            (None, None)
        );
    }

    #[test]
    fn a_disk_that_others_use_as_well_or_that_is_passed_through_is_not_copied() {
        let base = |to: &str| with("<source file='/srv/data.qcow2'/>", to).unwrap().disks[1].base.clone();
        assert_eq!(base("<source file='/srv/data.qcow2'/>"), Base::Copyable);
        for mark in ["readonly", "shareable", "transient"] {
            assert_eq!(base(&format!("<source file='/srv/data.qcow2'/><{mark}/>")), Base::None);
        }
        let passed = with("<disk type='network' device='disk'>", "<disk type='network' device='lun'>").unwrap();
        assert_eq!(passed.disks[2].base, Base::None);
    }

    #[test]
    fn an_encrypted_disk_has_no_base_and_is_not_copied() {
        let key = "<encryption format='luks'><secret type='passphrase' uuid='0a0a0a0a-0000-4000-8000-000000000002'/></encryption>";
        let own = "<source file='/srv/data.qcow2'/>";
        for to in [format!("{own}{key}"), format!("<source file='/srv/data.qcow2'>{key}</source>")] {
            assert_eq!(with(own, &to).unwrap().disks[1].base, Base::None, "{to}");
        }
        let image = "<source file='/images/debian.raw'/>";
        let below = with(image, &format!("<source file='/images/debian.raw'>{key}</source>")).unwrap();
        assert_eq!(below.disks[0].base, Base::None);
    }

    #[test]
    fn what_it_boots_is_told_apart() {
        let kernel = "<kernel>/boot/k</kernel><initrd>/boot/i</initrd><cmdline>a='b' &amp; c</cmdline></os>";
        let boot =
            Boot::Kernel { kernel: "/boot/k".into(), initrd: Some("/boot/i".into()), command_line: "a='b' & c".into() };
        assert_eq!(with("</os>", kernel).unwrap().boot, boot);
        let uefi = |secure| {
            let os = "<nvram template='/fw/vars.fd'>/var/web.fd</nvram></os>";
            with("</os>", &format!("<loader readonly='yes' type='pflash' {secure}>/fw/code.fd</loader>{os}"))
        };
        let boot = Boot::Uefi { loader: "/fw/code.fd".into(), template: Some("/fw/vars.fd".into()) };
        assert_eq!(uefi("").unwrap().boot, boot);
        assert!(matches!(uefi("secure='yes'"), Err(Unshadowable::Definition(_))));
    }

    #[test]
    fn a_cpu_is_a_model_by_name_or_the_hypervisor_s_own_choice() {
        let cpu = |cpu: &str| {
            let from = "<cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu>";
            with(from, cpu).unwrap().cpu_model
        };
        assert_eq!(cpu(""), None);
        assert_eq!(cpu("<cpu mode='host-model'/>"), None);
        assert_eq!(cpu("<cpu mode='host-passthrough'/>").as_deref(), Some("host-passthrough"));
    }

    #[test]
    fn what_is_no_vm_of_qemu_s_or_has_too_much_has_no_blueprint() {
        assert!(with("type='kvm'", "type='xen'").is_err());
        let many = "<interface type='bridge'/>".repeat(9);
        assert!(with("<hostdev", &format!("{many}<hostdev")).is_err());
        assert!(read("<domain").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = read(&text);
            let _ = read(&format!("<domain type='kvm'><name>a</name><os><type>{text}</type></os></domain>"));
        }
    }
}
