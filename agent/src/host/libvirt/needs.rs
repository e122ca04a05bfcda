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
    /// What a copy of it on another host would be made of; else why there can be none.
    pub copy: Result<Layers, &'static str>,
}

/// The files that a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Format of the disk's own file, `raw` or `qcow2`.
    pub format: String,
    /// What it is a layer on, the uppermost first; nothing writes to these while it runs.
    pub below: Vec<Image>,
}

/// A file that disks are layers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
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
    Some(Disk { target, place, copy: layers(device) })
}

/// What would have to be copied. A disk of which more is said than that it is a file of its VM's own is left alone: a copy would be something else.
fn layers(device: Node<'_, '_>) -> Result<Layers, &'static str> {
    const FORMATS: [&str; 2] = ["raw", "qcow2"];
    let has = |name| children(device, name).next().is_some();
    let source = children(device, "source").next();
    let within_source = |name| source.is_some_and(|source| children(source, name).next().is_some());
    let format = children(device, "driver").next().and_then(|driver| driver.attribute("type")).unwrap_or_default();
    match () {
        () if !matches!(device.attribute("device"), None | Some("disk")) => Err("a removable medium"),
        () if device.attribute("type") != Some("file") => Err("no file"),
        () if has("readonly") => Err("read-only"),
        () if has("shareable") => Err("shared between VMs"),
        () if has("transient") => Err("transient"),
        () if has("encryption") || within_source("encryption") => Err("encrypted"),
        () if within_source("slices") => Err("part of a file"),
        () if has("mirror") => Err("being copied already"),
        () if !FORMATS.contains(&format) => Err("neither raw nor qcow2"),
        () => Ok(Layers { format: format.to_owned(), below: below(device)? }),
    }
}

/// The images below a disk's own layer.
fn below(device: Node<'_, '_>) -> Result<Vec<Image>, &'static str> {
    let next =
        |layer| children(layer, "backingStore").next().filter(|layer: &Node<'_, '_>| layer.has_attribute("type"));
    let image = |layer: Node<'_, '_>| {
        let source = children(layer, "source").next().filter(|_| layer.attribute("type") == Some("file"));
        let path = source.and_then(|source| source.attribute("file"));
        let format = children(layer, "format").next().and_then(|format| format.attribute("type"));
        let image = path.zip(format).map(|(path, format)| Image { path: path.into(), format: format.to_owned() });
        image.ok_or("a layer on what is no file")
    };
    std::iter::successors(next(device), |layer| next(*layer)).map(image).collect()
}

/// A definition in which nothing is said any more of what these disks are layers on.
pub(super) fn flattened(xml: &str, targets: &[String]) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let devices = children(document.root_element(), "devices").next()?;
    let of_copied = |disk: &Node<'_, '_>| {
        let target = children(*disk, "target").next().and_then(|target| target.attribute("dev"));
        target.is_some_and(|target| targets.iter().any(|copied| copied == target))
    };
    let disks = children(devices, "disk").filter(of_copied);
    let mut ranges: Vec<_> = disks.flat_map(|disk| children(disk, "backingStore")).map(|layer| layer.range()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut text = xml.to_owned();
    ranges.into_iter().rev().for_each(|range| text.replace_range(range, ""));
    Some(text)
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
        let places: Vec<_> = needs.disks.iter().map(|disk| (disk.target.as_str(), disk.place.clone())).collect();
        assert_eq!(
            places,
            [
                ("vda", Place::Path("/srv/a.img".into())),
                ("vdb", Place::Network),
                ("vdc", Place::Path("/dev/mapper/x".into())),
                ("vdd", Place::Other("volume".to_owned())),
            ]
        );
        assert!(needs.disks.iter().all(|disk| disk.copy.is_err()), "one of no known format, others that are no files");
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

    const LAYER: &str = "<domain><name>a</name><memory>1</memory><devices><disk type='file' device='disk'><driver type='qcow2'/>\
        <source file='/srv/a.qcow2' index='1'/><backingStore type='file' index='2'><format type='raw'/><source file='/images/base'/>\
        <backingStore/></backingStore><target dev='vda'/></disk><disk type='file'><driver type='raw'/><source file='/srv/b'/>\
        <backingStore/><target dev='vdb'/></disk></devices></domain>";

    #[test]
    fn a_file_and_what_it_is_a_layer_on_can_be_copied_and_nothing_more_special() {
        let copies =
            |xml: &str| -> Vec<_> { Needs::parse(xml).unwrap().disks.into_iter().map(|disk| disk.copy).collect() };
        let base = Image { path: "/images/base".into(), format: "raw".to_owned() };
        let layers = |format: &str, below| Ok(Layers { format: format.to_owned(), below });
        assert_eq!(copies(LAYER), [layers("qcow2", vec![base]), layers("raw", vec![])]);
        for (from, to) in [
            ("<target dev='vda'/>", "<readonly/><target dev='vda'/>"),
            ("<target dev='vda'/>", "<shareable/><target dev='vda'/>"),
            ("<target dev='vda'/>", "<encryption format='luks'/><target dev='vda'/>"),
            ("<target dev='vda'/>", "<mirror job='copy'/><target dev='vda'/>"),
            ("device='disk'", "device='cdrom'"),
            ("type='qcow2'", "type='vmdk'"),
            ("<backingStore type='file'", "<backingStore type='network'"),
        ] {
            let xml = LAYER.replacen(from, to, 1);
            assert!(xml != LAYER && copies(&xml)[0].is_err() && copies(&xml)[1].is_ok(), "{to}");
        }
    }

    #[test]
    fn a_definition_for_whole_copies_names_no_images() {
        let flat = flattened(LAYER, &["vda".to_owned(), "vdb".to_owned()]).unwrap();
        assert!(!flat.contains("backingStore") && !flat.contains("/images/base"), "{flat}");
        assert!(flat.contains("/srv/a.qcow2") && flat.contains("/srv/b"));
        let one = flattened(LAYER, &["vdb".to_owned()]).unwrap();
        assert_eq!(one, LAYER.replacen("<source file='/srv/b'/><backingStore/>", "<source file='/srv/b'/>", 1));
        assert_eq!(Needs::parse(&flat).unwrap().disks.len(), 2);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = Needs::parse(&text);
            let _ = Needs::parse(&format!("<domain><name>a</name><memory unit='{text}'>{text}</memory></domain>"));
        }
    }
}
