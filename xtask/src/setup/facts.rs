//! What this machine has. Reads only, and asks programs for their versions; decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::items::{
    BPF_LINKER, BPF_LINKER_LLVM, COMPONENTS, DEBIAN_CLIPPY_PACKAGE, DEBIAN_TOOLCHAIN_PACKAGES, LINKED_TOOLCHAIN,
    PACKAGES, TOOLS,
};
use super::version::{LinkedLlvm, Version, llvm_major_of_rustc};
use crate::env::BPF_TOOLCHAIN;
use crate::process::ask;

/// A Rust compiler, as far as the eBPF build depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// What it calls itself.
    pub version: Version,
    /// LLVM's major version: the linker must read this one's bitcode.
    pub llvm: u32,
    /// Whether the library's sources are there, for `-Z build-std=core`.
    pub library_source: bool,
    /// Whether it brings clippy.
    pub clippy: bool,
}

/// bpf-linker, as found on PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linker {
    /// What it calls itself.
    pub version: Version,
    /// The LLVM it is linked to.
    pub llvm: LinkedLlvm,
}

/// The package manager.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Apt {
    /// Not a Debian.
    #[default]
    Absent,
    /// apt-get is there; nothing is known of what it offers, because its lists were never fetched.
    ListsMissing,
    /// The packages (of those that interest us) that it offers.
    Offers(BTreeSet<String>),
}

/// The machine, as [`super::plan::plan`] sees it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Effective user is root.
    pub root: bool,
    /// The package manager.
    pub apt: Apt,
    /// Installed packages with their versions; from dpkg, or by evidence where there is no dpkg.
    pub packages: BTreeMap<String, String>,
    /// rustup is there.
    pub rustup: bool,
    /// The user's word on the eBPF build's toolchain.
    pub bpf_toolchain: Option<String>,
    /// Toolchains of rustup that the eBPF build could use, by name.
    pub toolchains: BTreeMap<String, Rustc>,
    /// bpf-linker.
    pub linker: Option<Linker>,
    /// Cargo subcommands and rustup components by program name.
    pub tools: BTreeMap<String, Version>,
    /// `uname -r`.
    pub kernel: String,
    /// The kernel describes its types: /sys/kernel/btf/vmlinux.
    pub btf: bool,
}

impl Facts {
    /// Looks at this machine. Takes a few hundred milliseconds.
    pub fn of_this_machine() -> Self {
        let bpf_toolchain = env::var(BPF_TOOLCHAIN).ok().filter(|name| !name.is_empty());
        let rustup = ask(Command::new("rustup").arg("--version")).is_some();
        let mut candidates = vec!["nightly", LINKED_TOOLCHAIN];
        candidates.extend(bpf_toolchain.as_deref());
        let toolchains: BTreeMap<_, _> =
            candidates.iter().filter_map(|name| Some(((*name).to_owned(), rustc_of(name)?))).collect();

        let mut names: BTreeSet<String> = PACKAGES.iter().map(|package| package.name.to_owned()).collect();
        names.extend(DEBIAN_TOOLCHAIN_PACKAGES.iter().map(|name| (*name).to_owned()));
        names.insert(DEBIAN_CLIPPY_PACKAGE.to_owned());
        names.extend(BPF_LINKER_LLVM.map(super::plan::llvm_package));

        Self {
            root: rustix::process::geteuid().is_root(),
            apt: apt(&names),
            packages: installed_packages(&names),
            rustup,
            bpf_toolchain,
            toolchains,
            linker: linker(),
            tools: tools(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    /// What setup cannot install, but decides what will run here.
    pub fn host_notes(&self) -> String {
        let mut notes = format!("kernel {}", self.kernel);
        let btf =
            if self.btf { "with type information (BTF)" } else { "WITHOUT type information (BTF): no probe will load" };
        let user = if self.root { "root" } else { "not root: probes, lab, demo and end-to-end tests need root" };
        let _ = write!(notes, " {btf}; user is {user}");
        notes
    }
}

fn rustc_of(toolchain: &str) -> Option<Rustc> {
    // `rustup run` installs a toolchain that is only named in a file; RUSTUP_AUTO_INSTALL=0 keeps this a question.
    let rustc = |argument: &[&str]| {
        let mut command = Command::new("rustup");
        ask(command.args(["run", toolchain, "rustc"]).args(argument).env("RUSTUP_AUTO_INSTALL", "0"))
    };
    let answer = rustc(&["-vV"])?;
    let sysroot = rustc(&["--print", "sysroot"])?;
    let sysroot = Path::new(sysroot.trim());
    Some(Rustc {
        version: Version::find(&answer)?,
        llvm: llvm_major_of_rustc(&answer)?,
        library_source: sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists(),
        clippy: sysroot.join("bin/clippy-driver").exists(),
    })
}

fn linker() -> Option<Linker> {
    let path = on_path(BPF_LINKER)?;
    let version = Version::find(&ask(Command::new(&path).arg("--version")).unwrap_or_default());
    let llvm = ask(Command::new("ldd").arg(&path)).map_or(LinkedLlvm::Static, |answer| LinkedLlvm::of_ldd(&answer));
    // A linker whose libLLVM is gone cannot tell its version; it is there all the same.
    Some(Linker { version: version.unwrap_or(Version(0, 0, 0)), llvm })
}

/// Where a program is: on PATH, or where `cargo install` puts programs (cargo and rustup look there by themselves).
fn on_path(program: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn tools() -> BTreeMap<String, Version> {
    let mut found = BTreeMap::new();
    let programs = TOOLS.iter().map(|tool| tool.name).chain(COMPONENTS.iter().map(|(_, program, _)| *program));
    for program in programs {
        let Some(path) = on_path(program) else { continue };
        let Some(subcommand) = program.strip_prefix("cargo-") else { continue };
        // As cargo would call it: `cargo-nextest nextest --version`.
        let answer = ask(Command::new(&path).args([subcommand, "--version"]))
            .or_else(|| ask(Command::new(&path).arg("--version")))
            .unwrap_or_default();
        if let Some(version) = Version::find(&answer) {
            found.insert(program.to_owned(), version);
        }
    }
    found
}

fn installed_packages(names: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\n"]).args(names);
    // Exit code 1 only says that some are unknown.
    match query.output() {
        Ok(output) => installed_of_dpkg(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => by_evidence(),
    }
}

fn installed_of_dpkg(answer: &str) -> BTreeMap<String, String> {
    answer
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, version, status) = (words.next()?, words.next()?, words.next()?);
            (status == "installed").then(|| (name.to_owned(), version.to_owned()))
        })
        .collect()
}

fn by_evidence() -> BTreeMap<String, String> {
    let proof = |paths: &[&'static str]| paths.iter().find(|path| Path::new(path).exists()).copied();
    PACKAGES.iter().filter_map(|package| Some((package.name.to_owned(), proof(package.evidence)?.to_owned()))).collect()
}

fn apt(names: &BTreeSet<String>) -> Apt {
    let Some(_) = ask(Command::new("apt-get").arg("--version")) else { return Apt::Absent };
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    if !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages")) {
        return Apt::ListsMissing;
    }
    let answer = ask(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C")).unwrap_or_default();
    Apt::Offers(offers_of_policy(&answer))
}

fn offers_of_policy(answer: &str) -> BTreeSet<String> {
    let mut offers = BTreeSet::new();
    let mut name = "";
    for line in answer.lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            name = heading;
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)") {
            offers.insert(name.to_owned());
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_with_configuration_left_is_not_installed() {
        let found = installed_of_dpkg("cpio 2.13 installed\nlibvirt-daemon 9.0 config-files\n");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("cpio".to_owned(), "2.13".to_owned())]);
    }

    #[test]
    fn only_packages_with_a_candidate_are_on_offer() {
        let answer = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n  Version table:\n     1.96.0 500\n\
                      llvm-22-dev:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(offers_of_policy(answer).into_iter().collect::<Vec<_>>(), ["rustc-web"]);
    }
}
