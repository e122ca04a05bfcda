//! What must be so before a VM is moved. Pure, over facts that were read on both hosts.
//!
//! The order is that of the cost of a mistake: what would never work first, then what would break something, then what is short just now.

use crate::host::libvirt::migration::Offer;
use crate::host::libvirt::needs::{Disk, Needs, Place};
use gnomon_common::wire::{Immovable, VmTerms};
use std::path::{Path, PathBuf};

/// File systems whose content is the same on every host that has mounted them, by `statfs(2)`'s magic numbers: NFS, SMB and CIFS, Ceph, OCFS2,
/// GFS2, Lustre, GPFS, BeeGFS, and FUSE, of which GlusterFS is.
const SHARED_FILE_SYSTEMS: [u64; 11] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x7461_636f,
    0x0116_1970,
    0x0bd0_0bd0,
    0x4750_4653,
    0x1983_0326,
    0x6573_5546,
];

/// Whether the definition and the owner let it go. Asks nobody.
pub(super) fn may_leave(terms: &VmTerms) -> Result<(), Immovable> {
    terms.stays_because().map_or(Ok(()), |why| Err(Immovable::Bound(why.to_owned())))
}

/// Whether its disks can be reached from another host.
pub(super) fn storage(needs: &Needs, shared: impl Fn(&Path) -> bool) -> Result<(), Immovable> {
    let lonely = needs.disks.iter().find(|disk| match &disk.place {
        Place::Network => false,
        Place::Path(path) => !shared(path),
        Place::Other(_) => true,
    });
    lonely.map_or(Ok(()), |Disk { target, place }| {
        let what = match place {
            Place::Path(path) => format!("{target} ({})", path.display()),
            Place::Other(kind) => format!("{target} (of type {kind})"),
            Place::Network => target.clone(),
        };
        Err(Immovable::Storage(what))
    })
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

/// Whether a path means the same on all hosts: by its file system, or because the configuration says so.
pub(super) fn is_shared(path: &Path, shared_paths: &[PathBuf]) -> bool {
    let declared = shared_paths
        .iter()
        .any(|shared| path.as_os_str().as_encoded_bytes().starts_with(shared.as_os_str().as_encoded_bytes()));
    declared || rustix::fs::statfs(path).is_ok_and(|file_system| is_shared_kind(file_system.f_type))
}

/// The numbers are of 32 bits, and signed on some machines.
fn is_shared_kind(magic: impl Into<i64>) -> bool {
    SHARED_FILE_SYSTEMS.contains(&(magic.into().cast_unsigned() & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libvirt::needs::CpuNeed;

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
    fn a_disk_that_only_this_host_reaches_keeps_its_vm_here() {
        let with = |place| Needs { disks: vec![Disk { target: "vda".into(), place }], ..needs() };
        let shared = |path: &Path| path.starts_with("/nfs");
        assert_eq!(storage(&with(Place::Network), shared), Ok(()));
        assert_eq!(storage(&with(Place::Path("/nfs/a".into())), shared), Ok(()));
        assert_eq!(
            storage(&with(Place::Path("/srv/a".into())), shared),
            Err(Immovable::Storage("vda (/srv/a)".into()))
        );
        assert!(storage(&with(Place::Other("volume".into())), shared).is_err());
    }

    #[test]
    fn paths_are_shared_by_their_file_system_or_because_the_operator_says_so() {
        assert!(is_shared_kind(0x6969_i64) && is_shared_kind(0xff53_4d42_u32.cast_signed()));
        assert!(!is_shared_kind(0xef53_i64));
        assert!(!is_shared(Path::new("/nonexistent/gnomon"), &[]));
        assert!(is_shared(Path::new("/dev/mapper/san-7"), &["/dev/mapper/san-".into()]));
    }

    #[test]
    fn what_owner_or_definition_say_is_asked_before_anything_else() {
        assert_eq!(may_leave(&VmTerms::default()), Ok(()));
        let bound = VmTerms { bound: Some("hostdev pci".into()), ..VmTerms::default() };
        assert_eq!(may_leave(&bound), Err(Immovable::Bound("hostdev pci".into())));
    }
}
