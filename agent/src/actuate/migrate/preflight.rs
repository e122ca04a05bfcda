//! What must be so before a VM is moved. Pure, over facts that were read on both hosts.
//!
//! The order is that of the cost of a mistake: what would never work first, then what would break something, then what is short just now.

use crate::host::libvirt::migration::Offer;
use crate::host::libvirt::needs::{Disk, Needs, Place};
use crate::host::libvirt::storage::{Copies, Landing, Original};
use gnomon_common::wire::{Immovable, VmTerms};
use std::path::Path;

/// Whether the definition and the owner let it go. Asks nobody.
pub(super) fn may_leave(terms: &VmTerms) -> Result<(), Immovable> {
    terms.stays_because().map_or(Ok(()), |why| Err(Immovable::Bound(why.to_owned())))
}

/// What a layer may grow by while it is copied, in bytes, beside a quarter of what it holds.
const LAYER_MARGIN_BYTES: u64 = 64 << 20;

/// The disks that another host does not have, if they may be copied there.
pub(super) fn storage(needs: &Needs, shared: impl Fn(&Path) -> bool, copies: bool) -> Result<Vec<&Disk>, Immovable> {
    let is_lonely = |disk: &&Disk| match &disk.place {
        Place::Network => false,
        Place::Path(path) => !shared(path),
        Place::Other(_) => true,
    };
    let refuse = |disk: &Disk| {
        let what = match (&disk.place, &disk.copy) {
            (Place::Path(path), Err(why)) if copies => format!("{}, {why}", path.display()),
            (Place::Path(path), _) => path.display().to_string(),
            (Place::Other(kind), _) => format!("of type {kind}"),
            (Place::Network, _) => "on the network".to_owned(),
        };
        Immovable::Storage(format!("{} ({what})", disk.target))
    };
    let lonely = needs.disks.iter().filter(is_lonely);
    lonely.map(|disk| if copies && disk.copy.is_ok() { Ok(disk) } else { Err(refuse(disk)) }).collect()
}

/// Whether disks can be copied to where the other host says that there is a place for each, and no more of them than this host copies.
pub(super) fn copies(originals: Vec<Original>, landings: &[Landing], bytes_max: u64) -> Result<Copies, Immovable> {
    let no_place = |why: String| Err(Immovable::NoPlace(why));
    let layers = || originals.iter().zip(landings).filter(|(original, _)| original.is_layer);
    let is_layered = layers().next().is_some() && layers().all(|(_, landing)| landing.has_image);
    let bytes = originals.iter().fold(0u64, |sum, original| {
        sum.saturating_add(original.own_bytes).saturating_add(if is_layered { 0 } else { original.image_bytes })
    });
    if bytes > bytes_max {
        return Err(Immovable::StorageTooLarge { bytes, bytes_max });
    }
    // All of them, in each of the file systems that takes one: two pools may be on the same.
    let needed_bytes = originals.iter().fold(0u64, |sum, original| sum.saturating_add(needed(original, is_layered)));
    for (original, landing) in originals.iter().zip(landings) {
        let path = original.path.display();
        let Some(pool) = &landing.pool else {
            return no_place(format!("no storage pool of the target's libvirt is active over the folder of {path}"));
        };
        if landing.is_taken {
            return no_place(format!("{path} is there already, and is never overwritten"));
        }
        let reserve_bytes = pool.reserve_bytes();
        if pool.available_bytes < needed_bytes.saturating_add(reserve_bytes) {
            return no_place(format!(
                "storage pool {} has {} bytes free, they need {needed_bytes}, and {reserve_bytes} are to stay free",
                pool.name, pool.available_bytes
            ));
        }
    }
    Ok(Copies { originals, is_layered, bytes })
}

/// What a copy may come to take: of a layer not much more than it has now, for then it ends; of anything else all that its guest may write.
fn needed(original: &Original, is_layered: bool) -> u64 {
    if is_layered && original.is_layer {
        let grown = original.own_bytes.saturating_add(original.own_bytes / 4).saturating_add(LAYER_MARGIN_BYTES);
        grown.min(original.capacity_bytes)
    } else {
        original.capacity_bytes.max(original.own_bytes)
    }
}

/// Whether the other host can take it.
pub(super) fn target(needs: &Needs, offer: &Offer, reserve_bytes: u64) -> Result<(), Immovable> {
    if offer.has_it {
        return Err(Immovable::AlreadyThere);
    }
    if let Some(why) = &offer.cpu {
        return Err(Immovable::Cpu(why.clone()));
    }
    if let Some(network) = &offer.lacks_network {
        return Err(Immovable::Network(network.clone()));
    }
    let needed_bytes = needs.memory_bytes.saturating_add(reserve_bytes);
    if offer.available_bytes < needed_bytes {
        return Err(Immovable::Memory { needed_bytes, available_bytes: offer.available_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libvirt::needs::{CpuNeed, Layers};
    use crate::host::libvirt::storage::Pool;

    fn needs() -> Needs {
        Needs {
            name: "web".to_owned(),
            cpu: CpuNeed::Any,
            memory_bytes: 100,
            networks: Vec::new(),
            bridges: Vec::new(),
            disks: Vec::new(),
        }
    }

    #[test]
    fn a_host_that_has_everything_takes_it_and_the_first_thing_that_is_wrong_is_told() {
        let good = Offer { available_bytes: 150, ..Offer::default() };
        assert_eq!(target(&needs(), &good, 50), Ok(()));
        let short = Offer { available_bytes: 149, ..good.clone() };
        assert_eq!(target(&needs(), &short, 50), Err(Immovable::Memory { needed_bytes: 150, available_bytes: 149 }));
        let apart = Offer { lacks_network: Some("lan".into()), ..short };
        assert_eq!(target(&needs(), &apart, 50), Err(Immovable::Network("lan".into())));
        let other = Offer { cpu: Some("older".into()), ..apart };
        assert_eq!(target(&needs(), &other, 50), Err(Immovable::Cpu("older".into())));
        assert_eq!(target(&needs(), &Offer { has_it: true, ..other }, 50), Err(Immovable::AlreadyThere));
        let huge = Needs { memory_bytes: u64::MAX, ..needs() };
        assert!(matches!(target(&huge, &good, 50), Err(Immovable::Memory { needed_bytes: u64::MAX, .. })));
    }

    #[test]
    fn a_disk_that_only_this_host_reaches_keeps_its_vm_here_unless_it_may_be_copied() {
        let file = Ok(Layers { format: "raw".to_owned(), below: Vec::new() });
        let with = |place, copy| Needs { disks: vec![Disk { target: "vda".into(), place, copy }], ..needs() };
        let shared = |path: &Path| path.starts_with("/nfs");
        for copies in [false, true] {
            let none = |place| {
                let needs = with(place, Err("no file"));
                storage(&needs, shared, copies).map(|disks| disks.len())
            };
            assert_eq!((none(Place::Network), none(Place::Path("/nfs/a".into()))), (Ok(0), Ok(0)));
            assert!(none(Place::Other("volume".into())).is_err());
        }
        let lonely = with(Place::Path("/srv/a".into()), file);
        assert_eq!(storage(&lonely, shared, false), Err(Immovable::Storage("vda (/srv/a)".into())));
        assert_eq!(storage(&lonely, shared, true), Ok(vec![&lonely.disks[0]]));
        let special = with(Place::Path("/srv/a".into()), Err("encrypted"));
        assert_eq!(storage(&special, shared, true), Err(Immovable::Storage("vda (/srv/a, encrypted)".into())));
    }

    fn original(path: &str, is_layer: bool) -> Original {
        Original {
            target: "vda".to_owned(),
            path: path.into(),
            format: "qcow2".to_owned(),
            capacity_bytes: 1000 << 20,
            own_bytes: 100 << 20,
            image_bytes: if is_layer { 300 << 20 } else { 0 },
            image: None,
            is_layer,
        }
    }

    fn landing(available_mib: u64, has_image: bool) -> Landing {
        let pool = Pool { name: "p".to_owned(), capacity_bytes: 2000 << 20, available_bytes: available_mib << 20 };
        Landing { pool: Some(pool), is_taken: false, has_image }
    }

    #[test]
    fn only_layers_are_copied_where_all_images_are_there() {
        let both = || vec![original("/a", true), original("/b", false)];
        let plan = |first, second| copies(both(), &[landing(5000, first), landing(5000, second)], u64::MAX).unwrap();
        assert!(plan(true, false).is_layered && !plan(false, false).is_layered);
        let two = copies(
            vec![original("/a", true), original("/b", true)],
            &[landing(5000, true), landing(5000, false)],
            u64::MAX,
        );
        assert!(!two.unwrap().is_layered, "one image is missing");
        assert!(!copies(vec![original("/a", false)], &[landing(5000, true)], u64::MAX).unwrap().is_layered);
    }

    #[test]
    fn no_more_is_copied_than_the_agent_allows_and_only_where_there_is_a_free_place_with_room() {
        let of =
            |is_layer, landing: Landing, bytes_max| copies(vec![original("/srv/a", is_layer)], &[landing], bytes_max);
        let too_large = |bytes, bytes_max| Err(Immovable::StorageTooLarge { bytes, bytes_max });
        assert_eq!(of(true, landing(5000, false), 399 << 20), too_large(400 << 20, 399 << 20));
        assert!(of(true, landing(5000, false), 400 << 20).is_ok() && of(true, landing(5000, true), 100 << 20).is_ok());
        assert_eq!(of(false, landing(5000, true), 0), too_large(100 << 20, 0));
        // A whole disk may come to be written to all over; a layer needs a quarter and 64 MiB more than it has. 100 MiB stay free.
        assert!(of(false, landing(1100, false), u64::MAX).is_ok() && of(true, landing(289, true), u64::MAX).is_ok());
        for refused in [of(false, landing(1099, false), u64::MAX), of(true, landing(288, true), u64::MAX)] {
            assert!(matches!(&refused, Err(Immovable::NoPlace(why)) if why.contains("bytes free")), "{refused:?}");
        }
        let two = copies(
            vec![original("/a", false), original("/b", false)],
            &[landing(2099, false), landing(2099, false)],
            u64::MAX,
        );
        assert!(two.is_err(), "both together");
        let refused = of(false, Landing { is_taken: true, ..landing(5000, false) }, u64::MAX);
        assert!(matches!(&refused, Err(Immovable::NoPlace(why)) if why.contains("there already")), "{refused:?}");
        let refused = of(false, Landing { pool: None, ..landing(5000, false) }, u64::MAX);
        assert!(matches!(&refused, Err(Immovable::NoPlace(why)) if why.contains("no storage pool")), "{refused:?}");
    }

    #[test]
    fn what_owner_or_definition_say_is_asked_before_anything_else() {
        assert_eq!(may_leave(&VmTerms::default()), Ok(()));
        let bound = VmTerms { bound: Some("hostdev pci".into()), ..VmTerms::default() };
        assert_eq!(may_leave(&bound), Err(Immovable::Bound("hostdev pci".into())));
    }
}
