//! `[shadow]`: whether this host takes shadows of other hosts' VMs, and how much of it they may have.

use super::MigrationConfig;
use super::migration::is_remote;
use gnomon_common::wire::{RECEIVING_DIRECTORY_BYTES_MAX, Receiving, ShadowFacts, VmId, received_prefix};
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};

/// Shadows on one host: more are a farm of them.
const SHADOWS_MAX: u32 = 256;

/// Longest directory, in bytes: the path of a socket in a shadow's folder below it has at most 107 (unix(7)).
const DIRECTORY_BYTES_MAX: usize = 56;

/// A copy is given up where less than half of the reserve is left, which is looked at five times a second: a guest whose disk is being copied must
/// never be the one to find the file system full.
const COPIES_RESERVE_BYTES_MIN: u64 = 256 << 20;

/// `[shadow]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShadowConfig {
    /// At most so many; 0 takes none.
    pub shadows_max: u32,
    /// Together at most this share of the host's CPU and of its memory.
    pub share_max: f64,
    /// Where their files are: a folder for each.
    pub directory: PathBuf,
    /// Where images, kernels and firmware lie that a shadow may be made from; no other file of the host gets into one.
    pub image_paths: Vec<PathBuf>,
    /// Where copies of this host's VMs' disks are made for their shadows on other hosts, which see it under the same path; `None` makes none.
    pub copies_directory: Option<PathBuf>,
    /// The disks that were copied there are together at most so large, in bytes.
    pub copies_bytes_max: u64,
    /// What stays free on that file system, in bytes.
    pub copies_reserve_bytes: u64,
    /// Where copies of other hosts' VMs' disks are taken that this host's shadows are to stand on: a folder for nothing else, over which a storage
    /// pool of this host's libvirt is active.
    pub received_directory: Option<PathBuf>,
    /// They are together at most so long, in bytes; 0 takes none.
    pub received_bytes_max: u64,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self {
            shadows_max: 0,
            share_max: 0.25,
            directory: "/var/lib/gnomon/shadows".into(),
            image_paths: ["/var/lib/libvirt/images", "/usr/share", "/boot"].map(PathBuf::from).into(),
            copies_directory: None,
            copies_bytes_max: 100 << 30,
            copies_reserve_bytes: 10 << 30,
            received_directory: None,
            received_bytes_max: 0,
        }
    }
}

impl ShadowConfig {
    /// What the brain hears of it, with the address at which other hosts reach this one's libvirt; `None` while it takes none.
    pub fn facts(&self, uri: &str) -> Option<ShadowFacts> {
        let Self { shadows_max, share_max, received_bytes_max: bytes_max, .. } = *self;
        let (owner, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let receives = |directory: &PathBuf| {
            let directory = directory.to_string_lossy().into_owned();
            Receiving { uri: uri.to_owned(), directory, owner, group, bytes_max }
        };
        let receives = self.received_directory.as_ref().filter(|_| bytes_max > 0).map(receives).map(Box::new);
        (shadows_max > 0).then_some(ShadowFacts { shadows_max, share_max, receives })
    }

    /// Whether a file can be a copy that was sent here for this shadow.
    pub fn is_received(&self, shadow: VmId, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        self.received_bytes_max > 0
            && is_plain(path)
            && path.parent() == self.received_directory.as_deref()
            && name.is_some_and(|name| name.starts_with(&received_prefix(shadow)))
    }

    /// Whether a shadow may be made from this file.
    pub fn is_image_path(&self, path: &Path) -> bool {
        is_plain(path) && self.image_paths.iter().any(|allowed| path.starts_with(allowed) && path != allowed)
    }

    pub(super) fn check(&self, migration: &MigrationConfig) -> Result<(), (&'static str, String)> {
        if self.shadows_max > SHADOWS_MAX {
            return Err(("shadow.shadows_max", format!("{} is not within 0..={SHADOWS_MAX}", self.shadows_max)));
        }
        if !(self.share_max > 0.0 && self.share_max <= 1.0) {
            return Err(("shadow.share_max", format!("{} is not a share above 0 and up to 1", self.share_max)));
        }
        if !is_plain(&self.directory) || self.directory.as_os_str().len() > DIRECTORY_BYTES_MAX {
            let why = format!("is no path from / without .. and of at most {DIRECTORY_BYTES_MAX} bytes");
            return Err(("shadow.directory", format!("{} {why}", self.directory.display())));
        }
        if let Some(path) = self.image_paths.iter().find(|path| !is_plain(path)) {
            return Err(("shadow.image_paths", format!("{} is no path from / without ..", path.display())));
        }
        if let Some(copies) = &self.copies_directory {
            let (folder, own) = (copies.display(), &self.directory);
            if !is_plain(copies) {
                return Err(("shadow.copies_directory", format!("{folder} is no path from / without ..")));
            }
            // What is in the one is removed by other rules than what is in the other.
            if are_one(copies, own) {
                return Err(("shadow.copies_directory", format!("{folder} is not apart from shadow.directory")));
            }
        }
        if self.copies_bytes_max == 0 {
            return Err(("shadow.copies_bytes_max", "0 has room for no disk".to_owned()));
        }
        if self.copies_reserve_bytes < COPIES_RESERVE_BYTES_MIN {
            let why = format!("{} is less than {COPIES_RESERVE_BYTES_MIN} (256 MiB)", self.copies_reserve_bytes);
            return Err(("shadow.copies_reserve_bytes", why));
        }
        self.check_received(migration)
    }

    fn check_received(&self, migration: &MigrationConfig) -> Result<(), (&'static str, String)> {
        const KEY: &str = "shadow.received_directory";
        let Some(received) = &self.received_directory else {
            return match self.received_bytes_max {
                0 => Ok(()),
                _ => Err((KEY, "is not set, and shadow.received_bytes_max takes copies".to_owned())),
            };
        };
        let folder = received.display();
        if !is_plain(received) || received.to_str().is_none_or(|path| path.len() > RECEIVING_DIRECTORY_BYTES_MAX) {
            let why = format!("is no path from / without .. and of at most {RECEIVING_DIRECTORY_BYTES_MAX} bytes");
            return Err((KEY, format!("{folder} {why}")));
        }
        let others = [Some(&self.directory), self.copies_directory.as_ref()];
        if let Some(other) = others.into_iter().flatten().find(|other| are_one(received, other)) {
            return Err((KEY, format!("{folder} is not apart from {}", other.display())));
        }
        if self.received_bytes_max > 0 && !is_remote(&migration.uri) {
            let why = "is not where another host finds this one's libvirt, like qemu+tls://host-1.example.org/system: copies of disks come that way";
            return Err(("migration.uri", format!("{:?} {why}", migration.uri)));
        }
        Ok(())
    }
}

/// Whether one of them is in the other.
fn are_one(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Whether a path says where it leads: from the root, and nowhere back.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && path.file_name().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URI: &str = "qemu+tls://h2.example.org/system";

    fn check(config: &ShadowConfig) -> Result<(), (&'static str, String)> {
        config.check(&MigrationConfig { uri: URI.to_owned(), ..MigrationConfig::default() })
    }

    #[test]
    fn a_host_takes_no_shadows_unless_it_says_so() {
        let config = ShadowConfig::default();
        assert_eq!((check(&config), config.facts(URI)), (Ok(()), None));
        let taking = ShadowConfig { shadows_max: 2, ..config };
        assert_eq!(taking.facts(URI), Some(ShadowFacts { shadows_max: 2, share_max: 0.25, receives: None }));
    }

    #[test]
    fn copies_are_taken_only_with_a_folder_of_their_own_a_bound_and_an_address() {
        let folder = || Some(PathBuf::from("/srv/received"));
        let receiving = |received_directory, received_bytes_max| ShadowConfig {
            shadows_max: 1,
            received_directory,
            received_bytes_max,
            ..ShadowConfig::default()
        };
        let good = receiving(folder(), 7);
        let told = good.facts(URI).and_then(|facts| facts.receives).unwrap();
        assert_eq!((check(&good), told.uri.as_str(), told.directory.as_str()), (Ok(()), URI, "/srv/received"));
        assert!(told.is_bounded() && told.bytes_max == 7);
        assert_eq!(receiving(folder(), 0).facts(URI).unwrap().receives, None);
        assert_eq!(ShadowConfig { shadows_max: 0, ..good.clone() }.facts(URI), None);
        let refused = |config: ShadowConfig| check(&config).unwrap_err().0;
        assert_eq!(good.check(&MigrationConfig::default()).unwrap_err().0, "migration.uri");
        assert_eq!(receiving(folder(), 0).check(&MigrationConfig::default()), Ok(()));
        assert_eq!(refused(receiving(None, 7)), "shadow.received_directory");
        for path in
            ["received", "/srv/../x", "/var/lib/gnomon/shadows/x", "/var/lib", &format!("/{}", "x".repeat(1024))]
        {
            assert_eq!(refused(receiving(Some(path.into()), 7)), "shadow.received_directory", "{path}");
        }
        let copies = ShadowConfig { copies_directory: folder(), ..good.clone() };
        assert_eq!(refused(copies), "shadow.received_directory");
        let shadow = VmId(uuid::Uuid::from_u128(9));
        let may = |config: &ShadowConfig, path: &str| config.is_received(shadow, Path::new(path));
        let file = told.file(shadow, "vda");
        assert!(may(&good, &file) && !may(&receiving(folder(), 0), &file));
        let other = told.file(VmId(uuid::Uuid::from_u128(8)), "vda");
        for not in [&other, "/srv/received/x", "/srv/vda", &format!("/srv/received/../{}vda", received_prefix(shadow))]
        {
            assert!(!may(&good, not), "{not}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let refused = |config: ShadowConfig| check(&config).unwrap_err().0;
        let default = ShadowConfig::default;
        assert_eq!(refused(ShadowConfig { shadows_max: 257, ..default() }), "shadow.shadows_max");
        for share_max in [0.0, 1.1, f64::NAN] {
            assert_eq!(refused(ShadowConfig { share_max, ..default() }), "shadow.share_max");
        }
        for directory in ["shadows", "/", "/a/../b", &format!("/{}", "x".repeat(56))] {
            assert_eq!(refused(ShadowConfig { directory: directory.into(), ..default() }), "shadow.directory");
        }
        assert_eq!(refused(ShadowConfig { image_paths: vec!["images".into()], ..default() }), "shadow.image_paths");
        for copies in ["copies", "/var/lib/gnomon/shadows", "/var/lib/gnomon/shadows/x", "/var/lib"] {
            let config = ShadowConfig { copies_directory: Some(copies.into()), ..default() };
            assert_eq!(refused(config), "shadow.copies_directory", "{copies}");
        }
        let apart = ShadowConfig { copies_directory: Some("/srv/copies".into()), ..default() };
        assert_eq!(check(&apart), Ok(()));
        assert_eq!(refused(ShadowConfig { copies_bytes_max: 0, ..default() }), "shadow.copies_bytes_max");
        assert_eq!(refused(ShadowConfig { copies_reserve_bytes: 1, ..default() }), "shadow.copies_reserve_bytes");
    }

    #[test]
    fn only_files_below_the_named_paths_get_into_a_shadow() {
        let config = ShadowConfig::default();
        let may = |path: &str| config.is_image_path(Path::new(path));
        assert!(may("/var/lib/libvirt/images/debian.qcow2") && may("/usr/share/OVMF/OVMF_CODE.fd"));
        for not in ["/etc/shadow", "/var/lib/libvirt/images/../../../../etc/shadow", "boot/x", "/boot", "/bootx", ""] {
            assert!(!may(not), "{not}");
        }
    }
}
