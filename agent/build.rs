//! Compiles `agent-ebpf` for the BPF target; the objects land in `OUT_DIR`, one per program family.
//!
//! Toolchain: the one named by `BPF_TOOLCHAIN`, else rustup's nightly if it has the library's sources, else a toolchain
//! linked under the name `bpf`. `cargo xtask setup` installs what is missing.

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

const SETUP: &str = "run `cargo xtask setup`, which installs what building the eBPF programs needs";

/// Sources outside this package that end up in the objects; aya-build names `agent-ebpf` itself.
const SHARED_SOURCES: [&str; 4] =
    ["../common/Cargo.toml", "../common/src/lib.rs", "../common/src/abi.rs", "../common/src/abi"];

fn main() -> Result<()> {
    for path in ["build.rs"].iter().chain(&SHARED_SOURCES) {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=BPF_TOOLCHAIN");
    let toolchain = match env::var("BPF_TOOLCHAIN") {
        Ok(name) => {
            ensure!(has_library_sources(&name), "BPF_TOOLCHAIN={name}: no such toolchain with rust-src; {SETUP}");
            name
        }
        Err(_) => ["nightly", "bpf"]
            .into_iter()
            .find(|name| has_library_sources(name))
            .with_context(|| format!("neither `nightly` with rust-src nor a toolchain linked as `bpf`; {SETUP}"))?
            .to_owned(),
    };
    let linker = find_in_path("bpf-linker").with_context(|| format!("bpf-linker is not on PATH; {SETUP}"))?;
    println!("cargo:rerun-if-changed={linker}");

    // The inner cargo must be quiet (aya-build turns its progress lines into warnings), and a toolchain of the stable channel
    // must accept -Z build-std. Both are said through the environment, which only a fresh process can be given safely.
    const INNER: &str = "GNOMON_BUILD_EBPF";
    if env::var_os(INNER).is_none() {
        let this = env::current_exe().context("own path")?;
        let inner = Command::new(this)
            .env(INNER, "1")
            .env("CARGO_TERM_QUIET", "true")
            .env("RUSTC_BOOTSTRAP", "1")
            .stderr(Stdio::inherit())
            .output()
            .context("starting this build script again")?;
        // rustup remarks that a linked toolchain has no cargo of its own and that it takes another's: nothing to warn of.
        for line in
            String::from_utf8_lossy(&inner.stdout).lines().filter(|line| !line.starts_with("cargo:warning=info: "))
        {
            println!("{line}");
        }
        if !inner.status.success() {
            bail!("building agent-ebpf with toolchain `{toolchain}` failed ({}); its messages are above", inner.status);
        }
        return Ok(());
    }
    let package = aya_build::Package { name: "gnomon-agent-ebpf", root_dir: "../agent-ebpf", ..Default::default() };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&toolchain))
}

/// Whether `core` can be built with this rustup toolchain.
fn has_library_sources(toolchain: &str) -> bool {
    let sysroot = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|out| {
        let root = String::from_utf8_lossy(&out.stdout);
        out.status.success() && Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

fn find_in_path(program: &str) -> Option<String> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())?
        .into_os_string()
        .into_string()
        .ok()
}
