//! What hangs on a bridge of the host: its ports, and its addresses.

mod addresses_raw;

use super::process::Proc;
use std::io::ErrorKind;
use std::path::Path;

/// A bridge at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Its ports.
    pub ports: Vec<Port>,
    /// Whether it has an address, of IPv4 or IPv6: then the host answers on it.
    pub has_address: bool,
}

/// A port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The device.
    pub device: String,
    /// Whether the kernel hands no frame from it to another isolated port.
    pub is_isolated: bool,
}

impl Bridge {
    /// Looks at a bridge of this network namespace.
    ///
    /// # Errors
    /// There is no such bridge, or the kernel does not tell.
    pub fn read(name: &str, class: &Path, proc: &Proc) -> std::io::Result<Self> {
        let mut ports = Vec::new();
        for entry in std::fs::read_dir(class.join(name).join("brif"))? {
            let device = entry?.file_name().to_string_lossy().into_owned();
            // A kernel that does not tell has no isolation.
            let told = std::fs::read_to_string(class.join(&device).join("brport/isolated"));
            ports.push(Port { device, is_isolated: told.is_ok_and(|told| told.trim() == "1") });
        }
        let has_address = has_ipv6(name, proc)? || addresses_raw::ipv4_labels()?.iter().any(|label| is_of(label, name));
        Ok(Self { ports, has_address })
    }
}

/// `/proc/net/if_inet6`: the device is the last word of each line. Without IPv6 in the kernel there is no such file.
fn has_ipv6(name: &str, proc: &Proc) -> std::io::Result<bool> {
    match std::fs::read_to_string(proc.path("net/if_inet6")) {
        Ok(text) => Ok(text.lines().any(|line| line.split_whitespace().last() == Some(name))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an address's label, `DEVICE` or `DEVICE:ALIAS`, is of this device.
fn is_of(label: &str, device: &str) -> bool {
    label.split(':').next() == Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_of_a_bridge_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let class = folder.path().join("class");
        for (port, isolated) in [("vnet1", Some("1\n")), ("vnet2", Some("0\n")), ("eth0", None)] {
            std::fs::create_dir_all(class.join("br0/brif").join(port)).unwrap();
            std::fs::create_dir_all(class.join(port).join("brport")).unwrap();
            if let Some(isolated) = isolated {
                std::fs::write(class.join(port).join("brport/isolated"), isolated).unwrap();
            }
        }
        let proc = Proc::at(folder.path());
        let mut seen = Bridge::read("br0", &class, &proc).unwrap();
        seen.ports.sort_by(|a, b| a.device.cmp(&b.device));
        let port = |device: &str, is_isolated| Port { device: device.to_owned(), is_isolated };
        let ports = vec![port("eth0", false), port("vnet1", true), port("vnet2", false)];
        assert_eq!(seen, Bridge { ports, has_address: false });
        std::fs::create_dir_all(folder.path().join("net")).unwrap();
        std::fs::write(folder.path().join("net/if_inet6"), "fe80 02 40 20 80     br0\n").unwrap();
        assert!(Bridge::read("br0", &class, &proc).unwrap().has_address);
        assert!(Bridge::read("br1", &class, &proc).is_err());
    }

    #[test]
    fn an_address_is_of_its_device_under_any_label() {
        assert!(is_of("br0", "br0") && is_of("br0:1", "br0") && !is_of("br01", "br0"));
        assert!(addresses_raw::ipv4_labels().unwrap().iter().all(|label| !label.is_empty()));
    }
}
