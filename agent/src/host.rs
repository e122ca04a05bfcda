//! What the host is and does: read-only facts from libvirt, cgroups and `/proc`.
//!
//! [`libvirt`] is the one place that talks to libvirt, [`inventory`] turns what it says (and what `/proc` knows about the
//! QEMU processes) into a snapshot that anyone may read at any time, and [`cgroup`], [`process`], [`network`] and [`machine`]
//! read single counters for [`crate::sample`]; [`numa`] tells the nodes; [`bridge`] looks at one bridge, and
//! [`hanging`] waits for what may never answer. Data enters from libvirt's socket and the kernel's pseudo-files; it leaves as the latest
//! [`inventory::Inventory`] and as readings. Nothing here decides anything. A domain's limits
//! can be changed through [`libvirt::Hypervisor`], which is done only when [`crate::actuate`] asks; and the inventory gives a balloon
//! whose statistics nobody asks for a period.

pub mod bridge;
pub mod cgroup;
pub mod disk;
pub mod hanging;
pub mod inventory;
pub mod kernel_file;
pub mod libvirt;
mod libvirt_raw;
pub mod machine;
pub mod network;
pub mod numa;
pub mod process;
pub mod storage;
