//! What a domain's definition says of its balloon, disks and network interfaces, and of what may be done to it. Pure.

use super::{keepsake, shadow, terms};
use crate::host::network::VmDevice;
use gnomon_common::wire::{VmId, VmTerms};
use roxmltree::{Document, Node};
use std::ffi::CString;

/// Kinds of interfaces that libvirt limits with `tc` on their host device. User-mode networking, passed-through devices and
/// vhost-user have none that the host's kernel forwards for.
const LIMITED_KINDS: [&str; 4] = ["network", "bridge", "direct", "ethernet"];

/// Kinds of disks that QEMU reaches by itself: over the network, through a device of its own, or through another process. The host's block layer
/// sees nothing of them.
const UNSEEN_KINDS: [&str; 4] = ["network", "nvme", "vhostuser", "vhostvdpa"];

/// Cache modes with which QEMU opens a disk past the host's page cache (`O_DIRECT`). Without a mode it goes through it.
const MODES_PAST_CACHE: [&str; 2] = ["none", "directsync"];

/// The devices that limits and statistics are about, as of one look at the definition in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Its balloon, if it has one that can be moved (`model='virtio'` and its variants, not `none`).
    pub balloon: Option<BalloonDevice>,
    /// The targets (`vda`) of its disks; removable media are left out.
    pub disks: Vec<CString>,
    /// Whether it has such disks, and all of them are of kinds that the host's block layer does not see.
    pub disks_unseen: bool,
    /// The targets of those that the host's page cache lies before.
    pub disks_cached: Vec<String>,
    /// Its network interfaces.
    pub interfaces: Vec<Interface>,
    /// What its owner and the definition allow.
    pub terms: VmTerms,
    /// What came with it from another host: see [`Hypervisor::keep`](super::Hypervisor::keep).
    pub keepsake: Option<String>,
    /// Of which VM it is the shadow, if it is one.
    pub shadow_of: Option<VmId>,
}

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonDevice {
    /// How often the guest's driver is asked for statistics, in seconds; 0 is never.
    pub stats_period_s: u32,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// What the definition calls its kind: `bridge`, `user`, ...
    pub kind: String,
    /// Its device on the host, where there is one on which traffic can be limited.
    pub device: Option<CString>,
}

impl Interface {
    /// Its end on the host, where it has one. The definition in force names a network's interface by what it is in fact: `direct` where its network is
    /// one of macvtaps.
    pub fn on_host(&self) -> Option<VmDevice> {
        let name = self.device.as_ref()?.to_str().ok()?.to_owned();
        Some(VmDevice { name, is_macvtap: self.kind == "direct" })
    }
}

impl Devices {
    /// Reads a domain's XML. What is not understood is not there; text that is no XML at all has no devices.
    pub fn parse(xml: &str) -> Self {
        let mut found = Self { terms: terms::parse(xml), keepsake: keepsake::parse(xml), ..Self::default() };
        found.shadow_of = shadow::parse(xml).map(|shadow| shadow.of);
        if found.shadow_of.is_some() {
            found.terms.bound = Some("it is a shadow".to_owned());
        }
        let Ok(document) = Document::parse(xml) else { return found };
        let devices = children(document.root_element(), "devices").next();
        let mut seen = false;
        for device in devices.into_iter().flat_map(|devices| devices.children().filter(Node::is_element)) {
            let target =
                || children(device, "target").next()?.attribute("dev").and_then(|name| CString::new(name).ok());
            match device.tag_name().name() {
                "memballoon" if device.attribute("model").is_some_and(|model| model != "none") => {
                    let stats = children(device, "stats").next();
                    let period = stats.and_then(|stats| stats.attribute("period")?.parse().ok());
                    found.balloon = Some(BalloonDevice { stats_period_s: period.unwrap_or(0) });
                }
                "disk" if matches!(device.attribute("device"), None | Some("disk" | "lun")) => {
                    let is_seen = !device.attribute("type").is_some_and(|kind| UNSEEN_KINDS.contains(&kind));
                    let cache = children(device, "driver").next().and_then(|driver| driver.attribute("cache"));
                    let is_cached = is_seen && !cache.is_some_and(|mode| MODES_PAST_CACHE.contains(&mode));
                    let target = target();
                    let cached = target.clone().filter(|_| is_cached).and_then(|target| target.into_string().ok());
                    found.disks_cached.extend(cached);
                    found.disks.extend(target);
                    seen |= is_seen;
                }
                "interface" => {
                    let kind = device.attribute("type").unwrap_or_default().to_owned();
                    let device = LIMITED_KINDS.contains(&kind.as_str()).then(target).flatten();
                    found.interfaces.push(Interface { kind, device });
                }
                _ => {}
            }
        }
        found.disks_unseen = !found.disks.is_empty() && !seen;
        found
    }
}

pub(super) fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIVE: &str = "<domain type='kvm' id='3'><name>web</name><devices>\
        <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>\
        <disk type='file'><target dev='sdb' bus='scsi'/></disk>\
        <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>\
        <interface type='bridge'><source bridge='br0'/><target dev='vnet7'/></interface>\
        <interface type='user'><mac address='52:54:00:00:00:01'/></interface>\
        <memballoon model='virtio-transitional'><stats period='5'/></memballoon></devices></domain>";

    #[test]
    fn disks_interfaces_and_balloon_are_found() {
        let devices = Devices::parse(LIVE);
        assert_eq!(devices.balloon, Some(BalloonDevice { stats_period_s: 5 }));
        assert_eq!(devices.disks, [c"vda".to_owned(), c"sdb".to_owned()]);
        let interface = |kind: &str, device: Option<&std::ffi::CStr>| Interface {
            kind: kind.to_owned(),
            device: device.map(ToOwned::to_owned),
        };
        assert_eq!(devices.interfaces, [interface("bridge", Some(c"vnet7")), interface("user", None)]);
    }

    #[test]
    fn a_macvtap_is_told_from_a_tap_and_neither_from_an_interface_without_a_device() {
        let direct =
            LIVE.replace("</devices>", "<interface type='direct'><target dev='macvtap0'/></interface></devices>");
        let ends: Vec<_> = Devices::parse(&direct).interfaces.iter().filter_map(Interface::on_host).collect();
        let end = |name: &str, is_macvtap| VmDevice { name: name.to_owned(), is_macvtap };
        assert_eq!(ends, [end("vnet7", false), end("macvtap0", true)]);
    }

    #[test]
    fn disks_are_unseen_where_all_of_them_are_and_there_are_some() {
        let unseen = |disks: &[&str]| {
            let disk = |(at, kind): (usize, &&str)| format!("<disk type='{kind}'><target dev='vd{at}'/></disk>");
            let disks: String = disks.iter().enumerate().map(disk).collect();
            let cdrom = "<disk type='file' device='cdrom'><target dev='sda'/></disk>";
            Devices::parse(&format!("<domain><devices>{disks}{cdrom}</devices></domain>")).disks_unseen
        };
        assert!(unseen(&["network"]) && unseen(&["nvme", "network"]));
        assert!(!unseen(&["network", "file"]) && !unseen(&["block"]) && !unseen(&["volume"]) && !unseen(&[]));
    }

    #[test]
    fn a_disk_is_cached_unless_its_mode_is_past_the_cache_or_the_host_does_not_see_it() {
        let cached = |kind: &str, driver: &str| {
            let disk = format!("<disk type='{kind}'>{driver}<target dev='vda'/></disk>");
            !Devices::parse(&format!("<domain><devices>{disk}</devices></domain>")).disks_cached.is_empty()
        };
        let mode = |mode: &str| format!("<driver name='qemu' cache='{mode}'/>");
        for through in ["writeback", "writethrough", "unsafe", "default"] {
            assert!(cached("file", &mode(through)) && !cached("network", &mode(through)), "{through}");
        }
        assert!(cached("file", "<driver name='qemu' type='raw'/>") && cached("block", ""));
        assert!(!cached("file", &mode("none")) && !cached("block", &mode("directsync")));
        assert_eq!(Devices::parse(LIVE).disks_cached, ["vda", "sdb"], "media that are removed are not asked for");
    }

    #[test]
    fn a_shadow_stays_where_it_was_made() {
        let shadow = "<domain><name>a.shadow</name><uuid>00000000-0000-0000-0000-000000000001</uuid><metadata>\
            <shadow xmlns='urn:gnomon:shadow:1' of='00000000-0000-0000-0000-000000000002'/></metadata><devices><disk>\
            <source file='/s/00000000-0000-0000-0000-000000000001/scratch.raw'/><target dev='vda'/></disk></devices></domain>";
        let devices = Devices::parse(shadow);
        assert_eq!(devices.shadow_of, Some(VmId(uuid::Uuid::from_u128(2))));
        assert_eq!(devices.terms.stays_because(), Some("it is a shadow"));
        assert_eq!(Devices::parse(LIVE).shadow_of, None);
    }

    #[test]
    fn a_balloon_of_no_model_is_none_and_one_without_statistics_has_no_period() {
        let balloon = |text: &str| Devices::parse(&format!("<domain><devices>{text}</devices></domain>")).balloon;
        assert_eq!(balloon("<memballoon model='none'/>"), None);
        assert_eq!(balloon(""), None);
        assert_eq!(balloon("<memballoon model='virtio'/>"), Some(BalloonDevice { stats_period_s: 0 }));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = Devices::parse(&text);
            let _ = Devices::parse(&format!("<domain><devices>{text}</devices></domain>"));
        }
    }
}
