//! Domains that are shadows, told from all others by their definition alone, and the network that only they are on.
//!
//! A domain is a shadow only if all of this holds: its metadata says of which VM it is one, it is named like one, it has disks and each is a file in a folder that is
//! named by the domain's own UUID, its interfaces are on the shadows' network behind their filter, and nothing of the host is passed through to it. So a
//! production VM into whose metadata someone has pasted a shadow's is still none.

mod limits;

use super::blueprint::bytes;
use super::devices::children;
use super::{Hypervisor, HypervisorError, is_no_domain};
use gnomon_common::wire::VmId;
use roxmltree::{Document, Node};
use std::path::Path;
use virt::error::ErrorNumber;
use virt::sys;

pub use limits::{SHADOW_PERIOD_US, ShadowLimits, quota_us};

/// The namespace of the element that marks a shadow.
pub const SHADOW_NAMESPACE: &str = "urn:gnomon:shadow:1";
/// What a shadow's name ends with.
pub const SHADOW_SUFFIX: &str = ".shadow";
/// The network of shadows.
pub const SHADOW_NETWORK: &str = "gnomon-shadows";
/// Its bridge; 15 bytes are the most that the kernel takes.
pub const SHADOW_BRIDGE: &str = "gnomon-shadow";

/// The filter at each of their interfaces, which lets no frame pass. Without it the host itself answers: a bridge without an address takes ARP and
/// packets for every address that its host has elsewhere.
pub const SHADOW_FILTER: &str = "gnomon-shadow-sink";

/// What may not be in a shadow: each is a way to the host or to another domain.
const FOREIGN_DEVICES: [&str; 6] = ["hostdev", "filesystem", "shmem", "redirdev", "smartcard", "vsock"];

/// A domain that is a shadow.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowDomain {
    /// Which.
    pub vm: VmId,
    /// Of which production VM.
    pub of: VmId,
    /// vCPUs it is defined with.
    pub vcpus: u32,
    /// Memory it is defined with, in bytes.
    pub memory_bytes: u64,
    /// What it may use.
    pub limits: ShadowLimits,
    /// Devices of its interfaces on the host, while it runs.
    pub taps: Vec<String>,
}

/// What a host has under an identity.
#[derive(Clone, Debug, PartialEq)]
pub enum FoundShadow {
    /// Nothing.
    Absent,
    /// A domain that is no shadow.
    Other,
    /// A shadow.
    Shadow {
        /// What its definition says.
        shadow: ShadowDomain,
        /// Whether it runs.
        is_active: bool,
    },
}

/// Whether a domain's metadata has anything of a shadow's.
pub(super) fn is_marked(xml: &str) -> bool {
    Document::parse(xml).is_ok_and(|document| mark(document.root_element()).is_some())
}

fn mark<'a, 'input>(domain: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    let metadata = children(domain, "metadata").next()?;
    metadata.children().find(|child| child.tag_name().namespace() == Some(SHADOW_NAMESPACE))
}

/// Reads a domain's XML: `None` of one that is no shadow.
pub(crate) fn parse(xml: &str) -> Option<ShadowDomain> {
    let document = Document::parse(xml).ok()?;
    let domain = document.root_element();
    let id = children(domain, "uuid").next()?.text()?.trim().parse().ok()?;
    let mark = mark(domain).filter(|mark| mark.tag_name().name() == "shadow")?;
    let (vm, of) = (VmId(id), VmId(mark.attribute("of")?.parse().ok()?));
    let is_named = children(domain, "name").next()?.text()?.ends_with(SHADOW_SUFFIX);
    let devices = children(domain, "devices").next()?;
    let own = |disk: Node<'_, '_>| {
        let source = children(disk, "source").next().and_then(|source| source.attribute("file"));
        let folder = source.and_then(|file| Path::new(file).parent()?.file_name()?.to_str());
        folder == Some(id.hyphenated().to_string().as_str())
    };
    let isolated = |interface: Node<'_, '_>| {
        let attribute = |child, name| children(interface, child).next().and_then(|child| child.attribute(name));
        attribute("source", "network") == Some(SHADOW_NETWORK)
            && attribute("filterref", "filter") == Some(SHADOW_FILTER)
    };
    let is_shadow = vm != of
        && is_named
        && children(devices, "disk").next().is_some()
        && children(devices, "disk").all(own)
        && children(devices, "interface").all(isolated)
        && !devices.children().any(|device| FOREIGN_DEVICES.contains(&device.tag_name().name()));
    let vcpus = children(domain, "vcpu").next().and_then(|vcpu| vcpu.text()?.trim().parse().ok());
    let taps = children(devices, "interface").filter_map(|interface| {
        children(interface, "target").next().and_then(|target| target.attribute("dev")).map(str::to_owned)
    });
    is_shadow.then(|| ShadowDomain {
        vm,
        of,
        vcpus: vcpus.unwrap_or(0),
        memory_bytes: children(domain, "memory").next().and_then(bytes).unwrap_or(0),
        limits: ShadowLimits::parse(domain),
        taps: taps.collect(),
    })
}

/// What makes a network one that leads nowhere, by its definition; else what is wrong with it.
pub(super) fn leads_nowhere(xml: &str) -> Result<(), String> {
    let document = Document::parse(xml).map_err(|error| error.to_string())?;
    let network = document.root_element();
    for foreign in ["ip", "forward", "dns", "route", "domain"] {
        if children(network, foreign).next().is_some() {
            return Err(format!("the network {SHADOW_NETWORK} has <{foreign}>"));
        }
    }
    match children(network, "bridge").next().and_then(|bridge| bridge.attribute("name")) {
        Some(SHADOW_BRIDGE) => Ok(()),
        other => Err(format!("the network {SHADOW_NETWORK} has the bridge {:?}", other.unwrap_or_default())),
    }
}

/// Whether a filter drops everything, by its definition.
pub(super) fn drops_all(xml: &str) -> bool {
    let Ok(document) = Document::parse(xml) else { return false };
    let filter = document.root_element();
    let attribute = |rule: Node<'_, '_>, name| rule.attribute(name).map(str::to_owned);
    let mut rules = filter.children().filter(|child| child.is_element() && !child.has_tag_name("uuid"));
    let is_sink = rules.next().is_some_and(|rule| {
        rule.has_tag_name("rule")
            && attribute(rule, "action").as_deref() == Some("drop")
            && attribute(rule, "direction").as_deref() == Some("inout")
            && !rule.children().any(|child| child.is_element())
    });
    is_sink && rules.next().is_none()
}

impl Hypervisor {
    /// What there is under this identity. Blocks.
    pub fn find_shadow(&self, vm: VmId) -> Result<FoundShadow, HypervisorError> {
        let domain = match self.domain(vm) {
            Ok(domain) => domain,
            Err(HypervisorError::NoSuchDomain(_)) => return Ok(FoundShadow::Absent),
            Err(error) => return Err(error),
        };
        let call = |e| HypervisorError::call("read the definition", &e);
        let found = parse(&domain.xml_desc(0).map_err(call)?).filter(|shadow| shadow.vm == vm);
        let is_active = domain.is_active().map_err(call)?;
        Ok(found.map_or(FoundShadow::Other, |shadow| FoundShadow::Shadow { shadow, is_active }))
    }

    /// Whether there is a domain of this name. Blocks.
    pub fn has_name(&self, name: &str) -> Result<bool, HypervisorError> {
        match self.connect.lookup_domain_by_name(name) {
            Ok(_) => Ok(true),
            Err(error) if is_no_domain(&error) => Ok(false),
            Err(error) => Err(HypervisorError::call("look a domain up", &error)),
        }
    }

    /// All shadows here, running or not. Blocks.
    pub fn shadows(&self) -> Result<Vec<ShadowDomain>, HypervisorError> {
        let call = |e| HypervisorError::call("list the domains", &e);
        let mut all = Vec::new();
        for domain in self.connect.list_all_domains(0).map_err(call)? {
            let xml = match domain.name() {
                Ok(name) if name.ends_with(SHADOW_SUFFIX) => domain.xml_desc(0),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match xml {
                Ok(xml) => all.extend(parse(&xml)),
                Err(error) if is_no_domain(&error) => {} // Undefined since the list was made.
                Err(error) => return Err(call(error)),
            }
        }
        Ok(all)
    }

    /// Defines a domain. Blocks.
    pub fn define(&self, xml: &str) -> Result<(), HypervisorError> {
        let defined = self.connect.define_domain_xml(xml);
        defined.map(drop).map_err(|e| HypervisorError::call("define a domain", &e))
    }

    /// Starts a domain that is defined. Blocks.
    pub fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.domain(vm)?.create().map_err(|e| HypervisorError::call("start a domain", &e))
    }

    /// Ends a shadow and removes its definition. Nothing is done to a domain that is none. Returns whether nothing of it is left. Blocks.
    pub fn remove_shadow(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let is_active = match self.find_shadow(vm)? {
            FoundShadow::Absent => return Ok(true),
            FoundShadow::Other => return Ok(false),
            FoundShadow::Shadow { is_active, .. } => is_active,
        };
        let domain = self.domain(vm)?;
        if is_active {
            domain.destroy().map_err(|e| HypervisorError::call("end a shadow", &e))?;
        }
        let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        domain.undefine_flags(flags).map_err(|e| HypervisorError::call("undefine a shadow", &e))?;
        Ok(true)
    }

    /// Sees to it that the filter of shadows is there; `false` if it is another than it should be. Blocks.
    pub fn shadow_filter(&self) -> Result<bool, HypervisorError> {
        let call = |e| HypervisorError::call("make the shadows' filter", &e);
        let filter = match self.connect.lookup_nwfilter_by_name(SHADOW_FILTER) {
            Ok(filter) => filter,
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::NoNwfilter) => {
                let xml = format!(
                    "<filter name='{SHADOW_FILTER}' chain='root'><rule action='drop' direction='inout' priority='-1000'/></filter>"
                );
                self.connect.define_nwfilter_xml(&xml).map_err(call)?
            }
            Err(error) => return Err(call(error)),
        };
        Ok(drops_all(&filter.xml_desc(0).map_err(call)?))
    }

    /// Sees to it that the shadows' network is there, and says what is wrong with its definition, if anything is. It is of this boot only. Blocks.
    pub fn shadow_network(&self) -> Result<Result<(), String>, HypervisorError> {
        let call = |e| HypervisorError::call("make the shadows' network", &e);
        let network = match self.connect.lookup_network_by_name(SHADOW_NETWORK) {
            Ok(network) => network,
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::NoNetwork) => {
                let xml = format!(
                    "<network><name>{SHADOW_NETWORK}</name><bridge name='{SHADOW_BRIDGE}' stp='off' delay='0'/></network>"
                );
                self.connect.create_network_xml(&xml).map_err(call)?
            }
            Err(error) => return Err(call(error)),
        };
        if !network.is_active().map_err(call)? {
            network.create().map_err(call)?;
        }
        Ok(leads_nowhere(&network.xml_desc(0).map_err(call)?))
    }

    /// Takes the shadows' network and filter away, if there are any. Blocks.
    pub fn remove_shadow_network(&self) -> Result<(), HypervisorError> {
        match self.connect.lookup_nwfilter_by_name(SHADOW_FILTER) {
            Ok(filter) => filter.undefine().map_err(|e| HypervisorError::call("end the shadows' filter", &e))?,
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::NoNwfilter) => {}
            Err(error) => return Err(HypervisorError::call("look the shadows' filter up", &error)),
        }
        match self.connect.lookup_network_by_name(SHADOW_NETWORK) {
            Ok(network) => network.destroy().map_err(|e| HypervisorError::call("end the shadows' network", &e)),
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::NoNetwork) => Ok(()),
            Err(error) => Err(HypervisorError::call("look the shadows' network up", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const SHADOW: &str = "<domain><name>web.shadow</name><uuid>0a0a0a0a-0000-4000-8000-000000000001</uuid>\
        <metadata><g:shadow xmlns:g='urn:gnomon:shadow:1' of='0a0a0a0a-0000-4000-8000-000000000002'/></metadata>\
        <memory unit='KiB'>65536</memory><vcpu placement='static'>2</vcpu><cputune><global_period>100000</global_period><global_quota>20000</global_quota></cputune>\
        <devices><disk type='file'><source file='/s/0a0a0a0a-0000-4000-8000-000000000001/scratch.raw'/><target dev='vda'/></disk>\
        <interface type='network'><source network='gnomon-shadows'/><target dev='vnet3'/><filterref filter='gnomon-shadow-sink'/></interface></devices></domain>";

    #[test]
    fn a_shadow_is_read() {
        let id = |last: u128| VmId(Uuid::from_u128(0x0a0a_0a0a_0000_4000_8000_0000_0000_0000 + last));
        let expected = ShadowDomain {
            vm: id(1),
            of: id(2),
            vcpus: 2,
            memory_bytes: 64 << 20,
            limits: ShadowLimits {
                quota_us: 20_000,
                memory_bytes: 64 << 20,
                disks: [("vda".to_owned(), 0)].into(),
                ..ShadowLimits::default()
            },
            taps: vec!["vnet3".to_owned()],
        };
        assert_eq!(parse(SHADOW), Some(expected));
        assert!(is_marked(SHADOW));
    }

    #[test]
    fn a_production_vm_is_none_whatever_its_metadata_says() {
        for (from, to) in [
            ("web.shadow", "web"),
            ("<g:shadow", "<g:other"),
            ("urn:gnomon:shadow:1", "urn:gnomon:shadow:2"),
            ("of='0a0a0a0a-0000-4000-8000-000000000002'", "of='0a0a0a0a-0000-4000-8000-000000000001'"),
            ("of='", "of='x"),
            ("/s/0a0a0a0a-0000-4000-8000-000000000001/", "/srv/images/"),
            ("<devices>", "<devices><disk type='block'><source dev='/dev/sda'/></disk>"),
            ("<devices>", "<devices><interface type='bridge'><source bridge='br0'/></interface>"),
            ("<filterref filter='gnomon-shadow-sink'/>", ""),
            ("<devices>", "<devices><hostdev mode='subsystem' type='pci'/>"),
            ("<devices>", "<devices><filesystem type='mount'/>"),
        ] {
            assert_ne!(SHADOW.replacen(from, to, 1), SHADOW, "{from}");
            assert_eq!(parse(&SHADOW.replacen(from, to, 1)), None, "{from} -> {to}");
        }
        let disk = SHADOW.find("<disk").unwrap()..SHADOW.find("</disk>").unwrap() + "</disk>".len();
        assert_eq!(parse(&SHADOW.replace(&SHADOW[disk], "")), None, "without a disk of its own");
    }

    #[test]
    fn a_filter_that_lets_something_pass_is_not_the_shadows() {
        let sink = "<filter name='gnomon-shadow-sink' chain='root'>\n<uuid>x</uuid>\n<rule action='drop' direction='inout' priority='-1000'/></filter>";
        assert!(drops_all(sink));
        for (from, to) in [
            ("drop", "accept"),
            ("inout", "out"),
            ("priority='-1000'/>", "priority='-1000'><arp/></rule>"),
            ("<rule", "<filterref filter='x'/><rule"),
            ("</filter>", "<rule action='accept' direction='out' priority='-1001'/></filter>"),
            ("<rule action='drop' direction='inout' priority='-1000'/>", ""),
        ] {
            assert_ne!(sink.replace(from, to), sink);
            assert!(!drops_all(&sink.replacen(from, to, 1)), "{from} -> {to}");
        }
        assert!(!drops_all("<filter"));
    }

    #[test]
    fn a_network_that_leads_somewhere_is_not_the_shadows() {
        let good = "<network><name>gnomon-shadows</name><uuid>x</uuid><bridge name='gnomon-shadow'/><mac address='1'/></network>";
        assert_eq!(leads_nowhere(good), Ok(()));
        for foreign in ["<ip address='10.0.0.1'/>", "<forward mode='nat'/>", "<dns/>"] {
            assert!(leads_nowhere(&good.replace("<mac", &format!("{foreign}<mac"))).is_err());
        }
        assert!(leads_nowhere(&good.replace("'gnomon-shadow'", "'br0'")).is_err());
        assert!(leads_nowhere("<network>").is_err());
    }
}
