//! Whatever a production VM is, its shadow has nothing of it but what is listed.

use super::*;
use crate::host::cgroup::CpuWeight;
use crate::host::libvirt::parse_blueprint;
use gnomon_common::wire::{Base, CPU_WEIGHT_DEFAULT, DiskBlueprint};
use proptest::prelude::*;
use roxmltree::Document;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Every element that a shadow may have.
const ELEMENTS: [&str; 46] = [
    "domain",
    "name",
    "uuid",
    "metadata",
    "shadow",
    "memory",
    "vcpu",
    "cputune",
    "shares",
    "global_period",
    "global_quota",
    "os",
    "type",
    "boot",
    "loader",
    "nvram",
    "kernel",
    "initrd",
    "cmdline",
    "features",
    "acpi",
    "apic",
    "cpu",
    "model",
    "clock",
    "on_poweroff",
    "on_crash",
    "devices",
    "controller",
    "disk",
    "driver",
    "source",
    "target",
    "serial",
    "iotune",
    "total_bytes_sec",
    "interface",
    "mac",
    "port",
    "bandwidth",
    "inbound",
    "outbound",
    "channel",
    "memballoon",
    "stats",
    "filterref",
];

const FOLDER: &str = "/var/lib/gnomon/shadows/0a0a0a0a-0000-4000-8000-000000000001";

fn shadow() -> VmId {
    VmId(Uuid::from_u128(0x0a0a_0a0a_0000_4000_8000_0000_0000_0001))
}

fn production() -> VmId {
    VmId(Uuid::from_u128(0x0b0b_0b0b_0000_4000_8000_0000_0000_0002))
}

fn size() -> ShadowSize {
    ShadowSize {
        cpu_cores: 0.2,
        vcpus: 1,
        cpu_weight: 10,
        memory_bytes: 64 << 20,
        disk_bytes_per_s: Some(1_000_000),
        network_bytes_per_s: Some(1_500),
    }
}

fn place() -> Place<'static> {
    let created = "2026-01-01T00:00:00Z".to_owned();
    Place { folder: Path::new(FOLDER), shares: 102, created, policy: "it's \"new\" & <small>" }
}

fn of(blueprint: Blueprint) -> Result<String, Unshadowable> {
    xml(shadow(), &ShadowSpec { of: production(), blueprint, size: size() }, &place())
}

fn blueprint() -> Blueprint {
    Blueprint {
        name: "web".into(),
        kvm: false,
        arch: "x86_64".into(),
        machine: "pc-q35-7.2".into(),
        cpu_model: Some("qemu64".into()),
        boot: Boot::Bios,
        vcpus: 4,
        memory_bytes: 1 << 30,
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks: vec![DiskBlueprint {
            device: "vda".into(),
            bus: "virtio".into(),
            size_bytes: 1 << 30,
            base: Base::Image { path: "/images/base.raw".into(), format: "raw".into() },
        }],
        interfaces: vec!["virtio".into(), "e1000".into()],
    }
}

#[test]
fn a_shadow_has_its_own_identity_and_the_size_that_was_ordered() {
    let xml = of(blueprint()).unwrap();
    for part in [
        "<domain type='qemu'>",
        "<name>web.shadow</name>",
        "<uuid>0a0a0a0a-0000-4000-8000-000000000001</uuid>",
        "of='0b0b0b0b-0000-4000-8000-000000000002' created='2026-01-01T00:00:00Z' policy='it&apos;s &quot;new&quot; &amp; &lt;small&gt;'",
        "<memory unit='b'>67108864</memory>",
        "<shares>102</shares><global_period>100000</global_period><global_quota>20000</global_quota>",
        "<source file='/var/lib/gnomon/shadows/0a0a0a0a-0000-4000-8000-000000000001/vda.qcow2'/><target dev='vda' bus='virtio'/><iotune><total_bytes_sec>1000000",
        "/scratch.raw'/><target dev='vdb' bus='virtio'/><serial>gnomon-scratch</serial><iotune>",
        "<mac address='06:00:00:00:00:01'/><source network='gnomon-shadows'/><model type='virtio'/><port isolated='yes'/><filterref filter='gnomon-shadow-sink'/><bandwidth><inbound average='2'/><outbound average='2'/>",
        "<mac address='06:00:00:00:00:00'/>",
        "/pacer.sock'/><target type='virtio' name='org.gnomon.pacer.0'/>",
        "<on_poweroff>destroy</on_poweroff>",
    ] {
        assert!(xml.contains(part), "{part} is not in {xml}");
    }
    assert!(!xml.contains("/images/") && !xml.contains("graphics") && !xml.contains("1073741824"), "{xml}");
    let document = Document::parse(&xml).unwrap();
    let seen = crate::host::libvirt::parse_shadow(&xml).unwrap();
    assert_eq!(
        (seen.vm, seen.of, seen.limits.quota_cores(), seen.memory_bytes),
        (shadow(), production(), Some(0.2), 64 << 20)
    );
    assert!(document.descendants().any(|node| node.has_tag_name("channel")));
}

#[test]
fn kernels_firmware_and_cpus_are_what_the_blueprint_names() {
    let boot = |boot| of(Blueprint { boot, ..blueprint() }).unwrap();
    let kernel = Boot::Kernel { kernel: "/k'".into(), initrd: None, command_line: "a=\"b\" <c>".into() };
    assert!(boot(kernel).contains("<kernel>/k&apos;</kernel><cmdline>a=&quot;b&quot; &lt;c&gt;</cmdline>"));
    let uefi = boot(Boot::Uefi { loader: "/fw/code.fd".into(), template: Some("/fw/vars.fd".into()) });
    assert!(
        uefi.contains("type='pflash'>/fw/code.fd</loader><nvram template='/fw/vars.fd'>/var/lib/gnomon/"),
        "{uefi}"
    );
    let cpu = |model: &str| of(Blueprint { cpu_model: Some(model.to_owned()), ..blueprint() });
    assert!(cpu("host-passthrough").unwrap().contains("<cpu mode='host-passthrough'/>"));
    assert!(cpu("x'/>").is_err());
}

#[test]
fn a_value_that_its_field_cannot_have_is_refused() {
    let disk = |device: &str, bus: &str| {
        let mut with = blueprint();
        (with.disks[0].device, with.disks[0].bus) = (device.to_owned(), bus.to_owned());
        of(with)
    };
    assert!(disk("vda", "usb").is_err() && disk("../x", "virtio").is_err() && disk("", "virtio").is_err());
    assert!(of(Blueprint { machine: "pc' x='".into(), ..blueprint() }).is_err());
    assert!(of(Blueprint { interfaces: vec!["virtio<".into()], ..blueprint() }).is_err());
    let control = Boot::Kernel { kernel: "/k".into(), initrd: None, command_line: "a\u{1}".into() };
    assert!(of(Blueprint { boot: control, ..blueprint() }).is_err());
    assert!(!is_size(&ShadowSize { cpu_cores: f64::NAN, ..size() }) && !is_size(&ShadowSize { vcpus: 0, ..size() }));
    assert!(!is_size(&ShadowSize { disk_bytes_per_s: Some(0), ..size() }) && is_size(&size()));
}

#[test]
fn names_are_plain_and_short_whatever_the_production_is_called() {
    let called = |production: &str| name(&Blueprint { name: production.to_owned(), ..blueprint() });
    assert_eq!(called("web"), "web.shadow");
    assert_eq!(called("..'<x> y"), "x--y.shadow");
    assert_eq!(called("äöü"), "vm.shadow");
    assert_eq!(called(&"n".repeat(300)).len(), NAME_BYTES_MAX + SHADOW_SUFFIX.len());
}

/// A production VM as owners define them, with all that must not get out of it.
fn productions() -> impl Strategy<Value = String> {
    let odd = prop_oneof!["[a-z]{1,8}", "[ -~]{1,20}", Just("it's \"odd\" & <b>".to_owned())];
    let extra = prop::sample::subsequence(
        vec![
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='3' slot='0' function='0'/></source></hostdev>",
            "<disk type='file' device='cdrom'><source file='/SECRET/seed.iso'/><target dev='sdz' bus='sata'/></disk>",
            "<disk type='file' device='floppy'><source file='/SECRET/x.img'/><target dev='fda' bus='fdc'/></disk>",
            "<filesystem type='mount'><source dir='/SECRET'/><target dir='SECRET'/></filesystem>",
            "<shmem name='SECRET'/>",
            "<interface type='bridge'><mac address='52:54:00:5e:c2:e7'/><source bridge='SECRET'/><model type='virtio'/></interface>",
            "<interface type='network'><mac address='52:54:00:5e:c2:e7'/><source network='SECRET'/></interface>",
            "<interface type='direct'><source dev='SECRET' mode='bridge'/></interface>",
            "<channel type='unix'><source mode='bind' path='/SECRET'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
            "<graphics type='vnc' passwd='SECRET'/>",
            "<tpm><backend type='passthrough'><device path='/SECRET'/></backend></tpm>",
            "<serial type='file'><source path='/SECRET'/></serial>",
            "<rng><backend model='random'>/SECRET</backend></rng>",
        ],
        0..=13,
    );
    // libvirt takes no name of blanks alone.
    let name = odd.clone().prop_filter("a name", |name| !name.trim().is_empty());
    (name, odd, extra, any::<bool>()).prop_map(|(name, line, extra, kernel)| {
        let escape = |text: &str| escape(text).unwrap();
        let boot = if kernel {
            format!("<kernel>/boot/k</kernel><cmdline>{}</cmdline>", escape(&line))
        } else {
            String::new()
        };
        format!(
            "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{}</name>\
             <uuid>0b0b0b0b-0000-4000-8000-000000000002</uuid><title>SECRET</title><genid>SECRET</genid>\
             <metadata><owner xmlns='urn:x'>SECRET</owner></metadata><memory>1048576</memory><vcpu>2</vcpu>\
             <sysinfo type='smbios'><system><entry name='serial'>SECRET</entry></system></sysinfo>\
             <sysinfo type='fwcfg'><entry name='opt/SECRET'>x</entry></sysinfo>\
             <os><type arch='x86_64' machine='q35'>hvm</type>{boot}<smbios mode='sysinfo'/></os><devices>\
             <disk type='file' device='disk'><source file='/SECRET/web.qcow2'/><backingStore type='file'>\
             <format type='qcow2'/><source file='/images/base.qcow2'/></backingStore><target dev='vda' bus='virtio'/>\
             <serial>SECRET</serial></disk>{}</devices>\
             <qemu:commandline><qemu:arg value='SECRET'/></qemu:commandline></domain>",
            escape(&name),
            extra.concat()
        )
    })
}

proptest! {
    #[test]
    fn a_shadow_of_any_production_has_listed_elements_only_and_nothing_of_its_surroundings(xml in productions()) {
        let blueprint = parse_blueprint(&xml, CpuWeight::Weight).unwrap();
        let line = match &blueprint.boot {
            Boot::Kernel { command_line, .. } => command_line.clone(),
            _ => String::new(),
        };
        let made = of(blueprint).unwrap();
        let document = Document::parse(&made).unwrap();
        let elements: BTreeSet<&str> = document.descendants().filter(|node| node.is_element()).map(|node| node.tag_name().name()).collect();
        for element in &elements {
            prop_assert!(ELEMENTS.contains(element), "<{element}> in {made}");
        }
        let text = |name: &str| document.descendants().find(|node| node.has_tag_name(name)).and_then(|node| node.text()).unwrap_or_default().to_owned();
        prop_assert_eq!(text("uuid"), "0a0a0a0a-0000-4000-8000-000000000001");
        // A command line is copied, whatever it says; of all else nothing that is the production's may be there.
        let mut rest = made.clone();
        if !line.is_empty() {
            prop_assert_eq!(text("cmdline"), line.trim());
            rest = rest.replace(&escape(line.trim()).unwrap(), "");
        }
        prop_assert!(!rest.contains("SECRET") && !rest.contains("52:54"), "{made}");
        for node in document.descendants() {
            match node.tag_name().name() {
                "source" => {
                    let path = node.attribute("file").or(node.attribute("path"));
                    let own = path.map_or(node.attribute("network") == Some(SHADOW_NETWORK), |path| path.starts_with(FOLDER));
                    prop_assert!(own, "{made}");
                }
                "interface" => prop_assert!(node.children().any(|child| child.has_tag_name("filterref"))),
                _ => {}
            }
        }
        prop_assert!(crate::host::libvirt::parse_shadow(&made).is_some());
    }
}
