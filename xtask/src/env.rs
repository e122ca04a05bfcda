//! Environment variables that this program reads or sets, all of them.

use std::path::PathBuf;

/// Directory of the programs that end-to-end tests and the demo start (`gnomon-agent`, `gnomon-brain`, `gnomon`, `xtask`).
pub const BIN_DIR: &str = "GNOMON_BIN_DIR";

/// rustup toolchain of the eBPF build; agent/build.rs reads it too.
pub const BPF_TOOLCHAIN: &str = "BPF_TOOLCHAIN";

/// The programs to start: [`BIN_DIR`] where set, else what a plain `cargo build` makes.
pub fn bin_dir() -> PathBuf {
    std::env::var_os(BIN_DIR).map_or_else(|| crate::process::target_dir().join("debug"), PathBuf::from)
}
