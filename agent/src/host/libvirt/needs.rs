//! What a domain needs of the host that it is to go to, by its definition. Pure.

use super::devices::children;
use roxmltree::{Document, Node};
use std::path::PathBuf;

/// What a domain needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Its name, which must be free there.
    pub name: String,
    /// Its CPU.
    pub cpu: CpuNeed,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// libvirt networks that it is connected to.
    pub networks: Vec<String>,
    /// Bridges that it is connected to.
    pub bridges: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// What a domain's CPU asks of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuNeed {
    /// It is emulated, or the hypervisor's own.
    Any,
    /// The host must have what this `<cpu>` has.
    Features(String),
    /// The guest sees all of the CPU of the host that it is on, whose `<cpu>` is to be filled in: the other one must be the same.
    SameAs(String),
}

/// Where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What the guest knows it by (`vda`).
    pub target: String,
    /// Where it is.
    pub place: Place,
}

/// Places of disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the network: every host reaches it the same way.
    Network,
    /// At this path, which must be the same on both hosts, and mean the same.
    Path(PathBuf),
    /// A volume of this pool, or what this release does not know.
    Other(String),
}

impl Needs {
    /// Reads a domain's XML; `None` if it is none.
    pub fn parse(xml: &str) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let domain = document.root_element();
        let child = |name| children(domain, name).next();
        let devices = || child("devices").into_iter().flat_map(|devices| devices.children());
        let sources = |kind: &'static str| {
            let of_kind =
                move |device: &Node<'_, '_>| device.has_tag_name("interface") && device.attribute("type") == Some(kind);
            let named =
                move |device: Node<'_, '_>| Some(children(device, "source").next()?.attribute(kind)?.to_owned());
            devices().filter(of_kind).filter_map(named).collect()
        };
        Some(Self {
            name: child("name")?.text()?.to_owned(),
            cpu: cpu(xml, domain),
            memory_bytes: bytes(child("memory")?)?,
            networks: sources("network"),
            bridges: sources("bridge"),
            disks: devices().filter(|device| device.has_tag_name("disk")).filter_map(disk).collect(),
        })
    }
}

/// The `<cpu>` of a host, from its capabilities.
pub(super) fn host_cpu(capabilities: &str) -> Option<String> {
    let document = Document::parse(capabilities).ok()?;
    let host = children(document.root_element(), "host").next()?;
    let cpu = children(host, "cpu").next()?;
    capabilities.get(cpu.range()).map(str::to_owned)
}

fn cpu(xml: &str, domain: Node<'_, '_>) -> CpuNeed {
    let Some(cpu) = children(domain, "cpu").next() else { return CpuNeed::Any };
    let text = || xml.get(cpu.range()).unwrap_or_default().to_owned();
    match (domain.attribute("type"), cpu.attribute("mode")) {
        (Some("qemu"), _) => CpuNeed::Any,
        (_, Some("host-passthrough")) => CpuNeed::SameAs(String::new()),
        // QEMU's own model that takes what it finds.
        (_, Some("maximum")) => CpuNeed::SameAs(String::new()),
        // While a domain runs, its host-model is written out.
        _ => CpuNeed::Features(text()),
    }
}

fn disk(device: Node<'_, '_>) -> Option<Disk> {
    let target = children(device, "target").next()?.attribute("dev")?.to_owned();
    let source = children(device, "source").next();
    let path = |attribute| source.and_then(|source| source.attribute(attribute)).map(PathBuf::from);
    let place = match (device.attribute("type"), device.attribute("device")) {
        (Some("network"), _) => Place::Network,
        (Some("file"), _) => match path("file") {
            Some(path) => Place::Path(path),
            // An empty drive.
            None => return None,
        },
        (Some("block"), _) => Place::Path(path("dev")?),
        (Some("dir"), _) => Place::Path(path("dir")?),
        (kind, _) => Place::Other(kind.unwrap_or("of no type").to_owned()),
    };
    Some(Disk { target, place })
}

/// A size with its unit, in bytes; libvirt writes KiB, and takes more.
fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let unit: u64 = match node.attribute("unit") {
        None | Some("KiB" | "k") => 1 << 10,
        Some("b" | "bytes") => 1,
        Some("MiB" | "M") => 1 << 20,
        Some("GiB" | "G") => 1 << 30,
        Some("TiB" | "T") => 1 << 40,
        Some(_) => return None,
    };
    node.text()?.trim().parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_domain_needs_is_in_its_definition() {
        let needs = Needs::parse(
            "<domain type='kvm'><name>web</name><memory unit='KiB'>2048</memory><cpu mode='custom'><model>x</model></cpu><devices>\
             <disk type='file' device='disk'><source file='/srv/a.img'/><target dev='vda'/></disk>\
             <disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>\
             <disk type='block'><source dev='/dev/mapper/x'/><target dev='vdc'/></disk>\
             <disk type='volume'><source pool='p' volume='v'/><target dev='vdd'/></disk>\
             <disk type='file' device='cdrom'><target dev='sda'/></disk>\
             <interface type='network'><source network='lan'/></interface>\
             <interface type='bridge'><source bridge='br0'/></interface></devices></domain>",
        )
        .unwrap();
        assert_eq!((needs.name.as_str(), needs.memory_bytes), ("web", 2 << 20));
        assert_eq!((needs.networks, needs.bridges), (vec!["lan".to_owned()], vec!["br0".to_owned()]));
        let disk = |target: &str, place| Disk { target: target.to_owned(), place };
        assert_eq!(
            needs.disks,
            [
                disk("vda", Place::Path("/srv/a.img".into())),
                disk("vdb", Place::Network),
                disk("vdc", Place::Path("/dev/mapper/x".into())),
                disk("vdd", Place::Other("volume".to_owned())),
            ]
        );
        assert_eq!(needs.cpu, CpuNeed::Features("<cpu mode='custom'><model>x</model></cpu>".to_owned()));
    }

    #[test]
    fn an_emulated_cpu_asks_nothing_of_a_host_and_one_passed_through_asks_for_the_same() {
        let cpu = |kind: &str, cpu: &str| {
            let xml = format!("<domain type='{kind}'><name>a</name><memory>1</memory>{cpu}</domain>");
            Needs::parse(&xml).unwrap().cpu
        };
        assert_eq!(cpu("qemu", "<cpu mode='custom'/>"), CpuNeed::Any);
        assert_eq!(cpu("kvm", ""), CpuNeed::Any);
        assert_eq!(cpu("kvm", "<cpu mode='host-passthrough'/>"), CpuNeed::SameAs(String::new()));
        let host = "<capabilities><host><uuid>x</uuid><cpu><arch>x86_64</arch></cpu></host></capabilities>";
        assert_eq!(host_cpu(host).as_deref(), Some("<cpu><arch>x86_64</arch></cpu>"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = Needs::parse(&text);
            let _ = Needs::parse(&format!("<domain><name>a</name><memory unit='{text}'>{text}</memory></domain>"));
        }
    }
}
