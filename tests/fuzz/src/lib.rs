//! What the fuzz targets share. Each target hands hostile bytes to one decoder and, where one value leads on, to what acts on it.
//!
//! A target fails when something panics, overflows, runs for longer than libFuzzer's time-out or allocates beyond its limit, or when a
//! value that was decoded does not survive being written and read again.

use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{CpuBounds, CpuSource, HostFacts, KeptCopies, Means, MemoryBounds, MigrationFacts, NumaNode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Decodes a payload. What it decodes to must encode to bytes that decode to the same again.
///
/// Compared as bytes, because a NaN never equals itself; not with the input, because varints have more than one spelling.
pub fn decode<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let message: T = frame::decode(payload).ok()?;
    // A text of 4 MiB fits the limit as input and, its spelling being canonical now, as output.
    let written = frame::encode(&message).expect("what was decoded can be encoded");
    let again: T = frame::decode(&written[PREFIX_BYTES..]).expect("what was encoded can be decoded");
    assert_eq!(frame::encode(&again).expect("and encoded again"), written);
    Some(message)
}

/// The brain's clock while it takes a report in.
pub const NOW_UNIX_MS: u64 = 1_700_000_000_000;

/// An ordinary host.
pub fn facts() -> HostFacts {
    HostFacts {
        capacity_cores: 8.0,
        memory_bytes: 16 << 30,
        kernel: "6.1".to_owned(),
        hypervisor: "QEMU".to_owned(),
        cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 8.0 },
        memory_bounds: MemoryBounds::default(),
        means: Means::ALL.to_vec(),
        cpu_source: CpuSource::TaskStorage,
        migration: Some(MigrationFacts { uri: "qemu+tls://a/system".to_owned(), copy_bytes_max: 0 }),
        zone: Some("room-1".to_owned()),
        numa: vec![NumaNode { node: 0, cpus: 8, memory_bytes: 16 << 30 }],
        labels: "disk=nvme,room=7".parse().expect("legal labels"),
        shadows: None,
        copies: KeptCopies::default(),
        dry_run: false,
    }
}
