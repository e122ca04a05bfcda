//! Traffic of network devices: all counters of the host's network namespace in one read.
//!
//! The devices of VMs (taps and macvtaps) lie in the namespace in which libvirt makes them, which is the agent's own.

use super::kernel_file::{ReadError, read_value};
use super::process::Proc;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What went through a device in one direction since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficCounters {
    /// Bytes, link-level headers included.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets dropped at the device.
    pub dropped: u64,
}

/// The host's end of a VM's network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDevice {
    /// Its name.
    pub name: String,
    /// Whether it is a macvtap, which counts as its VM does: what it sends its VM sent. Any other is a tap, and what that sends its VM received.
    pub is_macvtap: bool,
}

/// The counters of a device, with the host's directions: what a tap receives is what its VM sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// Into the host's stack.
    pub received: TrafficCounters,
    /// Out of it.
    pub sent: TrafficCounters,
}

/// The counters of all devices of this network namespace, by name. One read, whatever their number.
///
/// # Errors
/// If the table cannot be read or is none.
pub fn devices(proc: &Proc) -> Result<BTreeMap<String, DeviceCounters>, ReadError> {
    read_value(&proc.path("net/dev"), "a table of network devices", parse)
}

/// The numbers of devices in the thread's network namespace, by name; those that are not there are left out.
pub fn ifindexes<'a>(devices: impl Iterator<Item = &'a String>) -> BTreeMap<String, u32> {
    let Ok(socket) = socket(AddressFamily::INET, SocketType::DGRAM, None) else { return BTreeMap::new() };
    devices.filter_map(|device| Some((device.clone(), name_to_index(&socket, device).ok()?))).collect()
}

/// proc(5), `/proc/net/dev`, with its columns from `net/core/net-procfs.c`: after two lines of headings `name: ` and sixteen counters, received
/// bytes, packets, errs, drop, fifo, frame, compressed, multicast, then sent bytes, packets, errs, drop, fifo, colls, carrier, compressed.
fn parse(text: &str) -> Option<BTreeMap<String, DeviceCounters>> {
    let (headings, devices) = text.split_once("\n face ")?;
    headings.starts_with("Inter-").then_some(())?;
    devices.lines().skip(1).map(device).collect()
}

fn device(line: &str) -> Option<(String, DeviceCounters)> {
    // A name may contain colons (an alias), a counter cannot.
    let (name, counters) = line.rsplit_once(':')?;
    let counters: Vec<u64> = counters.split_ascii_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let traffic = |first: usize| {
        let [bytes, packets, _errors, dropped] = *counters.get(first..first + 4)? else { return None };
        Some(TrafficCounters { bytes, packets, dropped })
    };
    Some((name.trim().to_owned(), DeviceCounters { received: traffic(0)?, sent: traffic(8)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
 vnet0: 123456789012  42    1    2    3     4          5         6 98765     7    8    9   10    11      12         13
eth0:1:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
";

    #[test]
    fn the_kernels_table_is_read() {
        let devices = parse(TABLE).unwrap();
        let vnet0 = DeviceCounters {
            received: TrafficCounters { bytes: 123_456_789_012, packets: 42, dropped: 2 },
            sent: TrafficCounters { bytes: 98_765, packets: 7, dropped: 9 },
        };
        assert_eq!(devices.keys().collect::<Vec<_>>(), ["eth0:1", "lo", "vnet0"]);
        assert_eq!(devices["vnet0"], vnet0);
    }

    #[test]
    fn this_machine_has_a_loopback_device() {
        assert!(devices(&Proc::default()).unwrap().contains_key("lo"));
        let names = ["lo".to_owned(), "gnomon-no-such".to_owned()];
        assert_eq!(ifindexes(names.iter()), [("lo".to_owned(), 1)].into());
    }

    #[test]
    fn a_line_that_lacks_columns_is_no_table() {
        assert_eq!(parse(&TABLE.replace("7    8    9   10    11      12         13", "7")), None);
        assert_eq!(parse(&TABLE.replace("vnet0: 123456789012  42", "vnet0: many")), None);
        assert_eq!(parse("no table"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,300}") {
            let _ = parse(&text);
            let _ = parse(&format!("{TABLE}{text}"));
        }
    }
}
