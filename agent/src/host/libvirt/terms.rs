//! What a domain's definition and its owner allow to be done to it. Pure.
//!
//! The owner's word is one element of the metadata ([`VmTerms`]); what binds a VM to its host is found in the rest of the definition. Whoever
//! wrote an element of Gnomon's wanted something: what is not understood in it is told, and keeps hands off.

use super::devices::children;
use gnomon_common::wire::VmTerms;
use roxmltree::{Document, Node};

/// The namespace of the owner's element.
const NAMESPACE: &str = "urn:gnomon:policy:1";

/// What begins the namespaces that are Gnomon's: one of another version is not understood.
const NAMESPACE_STEM: &str = "urn:gnomon:policy";

/// The owner's element.
const ELEMENT: &str = "policy";

/// Reads a domain's XML. Text that is no XML at all says that it is not understood.
pub(super) fn parse(xml: &str) -> VmTerms {
    match Document::parse(xml) {
        Ok(document) => {
            let domain = document.root_element();
            VmTerms { bound: bound(domain), ..of_owner(domain) }
        }
        Err(error) => VmTerms { misunderstood: Some(format!("its definition: {error}")), ..VmTerms::default() },
    }
}

fn of_owner(domain: Node<'_, '_>) -> VmTerms {
    let mut terms = VmTerms::default();
    let metadata = children(domain, "metadata").next();
    let ours = |node: &Node<'_, '_>| {
        node.tag_name().namespace().is_some_and(|namespace| namespace.starts_with(NAMESPACE_STEM))
    };
    for element in metadata.into_iter().flat_map(|metadata| metadata.children()).filter(ours) {
        let name = element.tag_name();
        if (name.namespace(), name.name()) != (Some(NAMESPACE), ELEMENT) {
            let what = format!("<{} xmlns=\"{}\">", name.name(), name.namespace().unwrap_or_default());
            terms.misunderstood.get_or_insert(what);
        }
        for attribute in element.attributes() {
            if let Err(error) = terms.take(attribute.name(), attribute.value()) {
                terms.misunderstood.get_or_insert(error.to_string());
            }
        }
    }
    terms
}

/// What binds a domain to its host, the first that is found: libvirt would refuse to migrate it, or what it is pinned to means nothing elsewhere.
fn bound(domain: Node<'_, '_>) -> Option<String> {
    let of = |name| children(domain, name).next();
    let yes = |found: bool, what: &str| found.then(|| what.to_owned());
    let devices = of("devices").and_then(bound_device);
    let cpu = of("cpu");
    let passed_through = |cpu: Node<'_, '_>| cpu.attribute("migratable") == Some("off");
    let invariant_tsc = |cpu: Node<'_, '_>| {
        children(cpu, "feature").any(|f| {
            f.attribute("name") == Some("invtsc") && matches!(f.attribute("policy"), Some("require" | "force"))
        })
    };
    devices
        .or_else(|| yes(cpu.is_some_and(passed_through), "<cpu migratable='off'>"))
        .or_else(|| yes(cpu.is_some_and(invariant_tsc), "the CPU feature invtsc, which QEMU does not migrate"))
        .or_else(|| of("cputune").and_then(pinned))
        .or_else(|| {
            let strict =
                |memory: Node<'_, '_>| memory.has_attribute("nodeset") && memory.attribute("mode") != Some("preferred");
            yes(of("numatune").is_some_and(|numa| numa.children().any(strict)), "memory bound to NUMA nodes")
        })
        .or_else(|| {
            let huge = |backing| children(backing, "hugepages").next().is_some();
            yes(of("memoryBacking").is_some_and(huge), "huge pages of this host")
        })
        .or_else(|| {
            let sealed = of("launchSecurity").and_then(|security| security.attribute("type"));
            sealed.map(|kind| format!("memory encrypted for this host's processor ({kind})"))
        })
}

fn pinned(tuning: Node<'_, '_>) -> Option<String> {
    const PINS: [&str; 3] = ["vcpupin", "emulatorpin", "iothreadpin"];
    let pin = tuning.children().find(|child| PINS.contains(&child.tag_name().name()))?;
    Some(format!("CPUs of this host (<{}>)", pin.tag_name().name()))
}

fn bound_device(devices: Node<'_, '_>) -> Option<String> {
    devices.children().filter(Node::is_element).find_map(|device| {
        let (name, kind) = (device.tag_name().name(), device.attribute("type").unwrap_or_default());
        match (name, kind) {
            ("hostdev", kind) => Some(format!("a device passed through (hostdev {kind})")),
            ("interface", "hostdev" | "vdpa") => Some(format!("a network device passed through (interface {kind})")),
            // macvtap on a virtual function is passed through, too; else the name of a device is this host's.
            ("interface", "direct") => {
                let source = children(device, "source").next().and_then(|source| source.attribute("dev"));
                Some(format!("a network device of this host ({})", source.unwrap_or("direct")))
            }
            ("disk", "nvme" | "vhostvdpa") => Some(format!("a disk passed through ({kind})")),
            ("disk", _) if device.attribute("device") == Some("lun") => Some("a disk passed through (lun)".to_owned()),
            // 9p has no migration, virtiofs not before QEMU 8.2 and only with what libvirt does not set up by itself.
            ("filesystem", kind) => Some(format!("a folder of this host (filesystem {kind})")),
            ("tpm", _)
                if children(device, "backend").any(|backend| backend.attribute("type") == Some("passthrough")) =>
            {
                Some("this host's TPM".to_owned())
            }
            ("shmem", _) => Some("memory shared with this host (shmem)".to_owned()),
            ("memory", _) if device.attribute("model") == Some("nvdimm") => {
                Some("memory of this host (nvdimm)".to_owned())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::Mode;
    use proptest::prelude::*;

    fn owned(element: &str) -> VmTerms {
        parse(&format!("<domain><metadata>{element}<x xmlns='urn:other' mode='x'/></metadata></domain>"))
    }

    fn bound_by(content: &str) -> Option<String> {
        let terms = parse(&format!("<domain>{content}</domain>"));
        assert_eq!(VmTerms { bound: None, ..terms.clone() }, VmTerms::default(), "{content}");
        terms.bound
    }

    #[test]
    fn the_owner_s_element_is_read_by_its_namespace() {
        let terms = owned(
            "<g:policy xmlns:g='urn:gnomon:policy:1' mode='observe' migrate='no' apart='db' apart_zones='site' together='web' labels='disk=nvme'/>",
        );
        assert!(
            terms.mode == Some(Mode::Observe) && terms.stays && terms.misunderstood.is_none() && terms.bound.is_none()
        );
        let groups = [&terms.apart, &terms.apart_zones, &terms.together].map(Option::as_deref);
        assert_eq!(groups, [Some("db"), Some("site"), Some("web")]);
        assert_eq!(terms.labels.to_string(), "disk=nvme");
        assert_eq!(owned(""), VmTerms::default());
    }

    #[test]
    fn what_is_not_understood_is_told_and_the_rest_holds() {
        let terms = owned("<g:policy xmlns:g='urn:gnomon:policy:1' migrate='no' mode='obseve'/>");
        assert!(terms.stays && terms.hands_off());
        assert!(terms.misunderstood.unwrap().contains("mode=\"obseve\""));
        for strange in ["<policy xmlns='urn:gnomon:policy:2'/>", "<wish xmlns='urn:gnomon:policy:1'/>"] {
            assert!(owned(strange).hands_off(), "{strange}");
        }
        assert!(parse("<domain>").hands_off());
    }

    #[test]
    fn what_holds_a_vm_on_its_host_is_found_and_what_does_not_is_not() {
        for (content, what) in [
            ("<devices><hostdev mode='subsystem' type='pci'/></devices>", "hostdev pci"),
            ("<devices><hostdev mode='subsystem' type='mdev'/></devices>", "hostdev mdev"),
            ("<devices><interface type='hostdev'/></devices>", "interface hostdev"),
            ("<devices><interface type='direct'><source dev='eth0'/></interface></devices>", "eth0"),
            ("<devices><disk type='nvme'/></devices>", "nvme"),
            ("<devices><disk type='block' device='lun'/></devices>", "lun"),
            ("<devices><filesystem type='mount'/></devices>", "folder"),
            ("<devices><tpm><backend type='passthrough'/></tpm></devices>", "TPM"),
            ("<cpu mode='host-passthrough' migratable='off'/>", "migratable"),
            ("<cpu><feature policy='require' name='invtsc'/></cpu>", "invtsc"),
            ("<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>", "vcpupin"),
            ("<numatune><memory mode='strict' nodeset='0'/></numatune>", "NUMA"),
            ("<memoryBacking><hugepages/></memoryBacking>", "huge pages"),
            ("<launchSecurity type='sev'/>", "sev"),
        ] {
            assert!(bound_by(content).is_some_and(|bound| bound.contains(what)), "{content}");
        }
        let free = "<cpu mode='host-model'/><cputune><global_quota>1</global_quota></cputune><memoryBacking/>\
            <numatune><memory mode='preferred' nodeset='0'/></numatune><devices><disk type='file' device='disk'/>\
            <interface type='bridge'/><tpm><backend type='emulator'/></tpm></devices>";
        assert_eq!(bound_by(free), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("<domain><metadata>{text}</metadata></domain>"));
        }
    }
}
