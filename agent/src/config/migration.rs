//! `[migration]`: whether VMs may be sent to other hosts and received from them, and how.

use gnomon_common::wire::MigrationFacts;
use serde::Deserialize;
use std::path::PathBuf;

/// Migrations away from one host at once. They share its link, so that more only take longer, each.
const MOST_AT_ONCE_MAX: u32 = 16;

/// `[migration]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Whether commands may move VMs away from here, and others may be sent here.
    pub enabled: bool,
    /// Where other hosts' libvirt daemons reach this one's.
    pub uri: String,
    /// Migrations away from here at once.
    pub most_at_once: u32,
    /// Folders and beginnings of paths below which disks are the same on all hosts, though the file system does not show it.
    pub shared_paths: Vec<PathBuf>,
    /// The most that is copied of the disks of one VM that leaves this host, in bytes; 0 copies none.
    pub copy_bytes_max: u64,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self { enabled: false, uri: String::new(), most_at_once: 1, shared_paths: Vec::new(), copy_bytes_max: 0 }
    }
}

impl MigrationConfig {
    /// What the brain hears of it; `None` while it is off.
    pub fn facts(&self) -> Option<MigrationFacts> {
        let facts = || MigrationFacts { uri: self.uri.clone(), copy_bytes_max: self.copy_bytes_max };
        self.enabled.then(facts)
    }

    /// Whether disks of VMs that leave are copied.
    pub fn copies(&self) -> bool {
        self.enabled && self.copy_bytes_max > 0
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.enabled && !is_remote(&self.uri) {
            let why = "is not where another host finds this one's libvirt, like qemu+tls://host-1.example.org/system";
            return Err(("migration.uri", format!("{:?} {why}", self.uri)));
        }
        if !(1..=MOST_AT_ONCE_MAX).contains(&self.most_at_once) {
            let why = format!("{} is not within 1..={MOST_AT_ONCE_MAX}", self.most_at_once);
            return Err(("migration.most_at_once", why));
        }
        if let Some(path) = self.shared_paths.iter().find(|path| !path.is_absolute()) {
            return Err(("migration.shared_paths", format!("{} does not begin with /", path.display())));
        }
        Ok(())
    }
}

/// Transports by which libvirt daemons reach each other. `ext` and its like run a program that the address names.
const TRANSPORTS: [&str; 5] = ["tls", "ssh", "libssh", "libssh2", "tcp"];

/// Whether an address is one of QEMU's driver on a named host, and nothing but that. Other hosts' daemons use it with their own rights: its
/// parameters could name keys and programs, or turn checks off, so it may have none.
pub fn is_remote(uri: &str) -> bool {
    let place = uri.strip_prefix("qemu+").and_then(|rest| rest.split_once("://"));
    place.is_some_and(|(transport, place)| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:@/[]".contains(&byte);
        let names_a_host = place.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
        TRANSPORTS.contains(&transport) && names_a_host && place.contains('/') && place.bytes().all(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_must_name_a_host() {
        let config = |uri: &str| MigrationConfig { enabled: true, uri: uri.to_owned(), ..MigrationConfig::default() };
        for good in
            ["qemu+tls://h1.example.org/system", "qemu+ssh://root@h1/system", "qemu+tcp://10.0.0.1:16509/system"]
        {
            assert_eq!(config(good).check(), Ok(()), "{good}");
            assert_eq!(config(good).facts().map(|facts| facts.uri).as_deref(), Some(good));
        }
        for bad in [
            "",
            "qemu:///system",
            "qemu+tls:///system",
            "qemu+unix:///system",
            "xen+tls://h/",
            "h1",
            "qemu+tls://h1",
            "qemu+ext://h1/system?command=/x",
            "qemu+tls://h1/system?no_verify=1",
            "qemu+ssh://h1 -o ProxyCommand=x/system",
        ] {
            assert_eq!(config(bad).check().unwrap_err().0, "migration.uri", "{bad:?}");
        }
    }

    #[test]
    fn what_is_off_needs_no_address_and_is_not_told() {
        assert_eq!((MigrationConfig::default().check(), MigrationConfig::default().facts()), (Ok(()), None));
        let config = |most_at_once| MigrationConfig { most_at_once, ..MigrationConfig::default() };
        assert!(config(0).check().is_err() && config(17).check().is_err() && config(16).check().is_ok());
        let config =
            |enabled, copy_bytes_max| MigrationConfig { enabled, copy_bytes_max, ..MigrationConfig::default() };
        assert!(config(true, 1).copies() && !config(true, 0).copies() && !config(false, 1).copies());
        let relative = MigrationConfig { shared_paths: vec!["srv".into()], ..MigrationConfig::default() };
        assert_eq!(relative.check().unwrap_err().0, "migration.shared_paths");
    }
}
