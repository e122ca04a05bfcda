//! Decides, from facts alone, what is missing and which commands bring it.
//!
//! The eBPF build needs a compiler that accepts `-Z build-std` with matching library sources, and a linker whose LLVM reads
//! that compiler's bitcode. Preferred is what a developer already has (`BPF_TOOLCHAIN`, or a rustup nightly with rust-src);
//! else Debian's own compiler, linked into rustup as `bpf`, which needs no download but packages; else a nightly.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::facts::{Apt, Facts, Rustc};
use super::items::{
    BPF_LINKER, BPF_LINKER_LLVM, BPF_LINKER_PINNED, BPF_LINKER_TYPICAL_S, COMPONENTS, DEBIAN_CLIPPY_PACKAGE,
    DEBIAN_TOOLCHAIN_LLVM, DEBIAN_TOOLCHAIN_PACKAGES, LINKED_TOOLCHAIN, NO_CLUSTER, PACKAGES, POSTGRESQL, Purpose,
    TOOLS,
};
use super::version::LinkedLlvm;

/// Another apt may be at work (a fresh machine updates itself): waited for rather than failed on.
const APT_LOCK_WAIT: &str = "DPkg::Lock::Timeout=300";

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub item: String,
    /// What it is needed for.
    pub purpose: Purpose,
    /// Why.
    pub why: &'static str,
    /// Its version, or what is wrong.
    pub state: Result<String, String>,
}

/// One command that brings something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beyond the inherited.
    pub env: Vec<(&'static str, String)>,
    /// Only root may.
    pub root: bool,
    /// About how long it takes on two cores.
    pub typical_s: u32,
}

impl Step {
    fn new(argv: &[&str]) -> Self {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        Self { argv, env: Vec::new(), root: false, typical_s: 1 }
    }

    /// What it does, without the options: `cargo install bpf-linker`.
    pub fn title(&self) -> String {
        let words = self.argv.iter().filter(|word| !word.starts_with('-') && *word != APT_LOCK_WAIT);
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// The first words, as the name of a file: `cargo-install-bpf-linker`.
    pub fn log_name(&self) -> String {
        let words = self.argv.iter().filter(|word| !word.starts_with('-') && !word.contains(['=', '/']));
        words.take(3).map(String::as_str).collect::<Vec<_>>().join("-")
    }

    /// As a line for a shell.
    fn shell(&self, root: bool) -> String {
        let mut words = Vec::new();
        if self.root && !root {
            words.push("sudo".to_owned());
        }
        words.extend(self.env.iter().map(|(key, value)| format!("{key}={value}")));
        words.extend(self.argv.iter().cloned());
        words.join(" ")
    }
}

/// What was found, and what to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Everything looked for, in the order of the lists.
    pub findings: Vec<Finding>,
    /// Commands, in the order of running. More may follow once these have run.
    pub steps: Vec<Step>,
    /// What no command of ours can bring.
    pub by_hand: Vec<String>,
}

impl Plan {
    /// Nothing is missing.
    pub fn complete(&self) -> bool {
        self.missing().next().is_none()
    }

    /// What is missing.
    pub fn missing(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.state.is_err())
    }

    /// One line per item: mark, name, version or defect, reason.
    pub fn table(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.item.len()).max().unwrap_or(0);
        let mut table = String::new();
        for finding in &self.findings {
            let (mark, state) = match &finding.state {
                Ok(version) => ("ok     ", version.as_str()),
                Err(defect) => ("MISSING", defect.as_str()),
            };
            let _ = writeln!(table, "{mark} {:width$}  {state:40} {}", finding.item, finding.why);
        }
        table.pop();
        table
    }

    /// One line per missing item.
    pub fn defects(&self) -> String {
        let mut text = String::new();
        for finding in self.missing() {
            if let Err(defect) = &finding.state {
                let _ = writeln!(text, "  {}: {defect} ({})", finding.item, finding.why);
            }
        }
        format!("missing:\n{}", text.trim_end())
    }

    /// What to type, and what works meanwhile.
    pub fn instructions(&self, root: bool) -> String {
        let mut text = String::new();
        if !self.steps.is_empty() {
            text.push_str("run:\n");
        }
        for step in &self.steps {
            let _ = writeln!(text, "  {}", step.shell(root));
        }
        for line in &self.by_hand {
            let _ = writeln!(text, "by hand: {line}");
        }
        let purposes: BTreeSet<Purpose> = self.missing().map(|finding| finding.purpose).collect();
        for purpose in purposes {
            let _ = writeln!(text, "works without it: {}", purpose.works_without());
        }
        text.pop();
        text
    }
}

/// Debian's name for the development files of an LLVM.
pub fn llvm_package(major: u32) -> String {
    format!("llvm-{major}-dev")
}

/// Decides what `purposes` need on the machine that `facts` describe.
pub fn plan(facts: &Facts, purposes: &[Purpose]) -> Plan {
    let mut draft = Draft { facts, plan: Plan::default(), apt_install: Vec::new(), after_apt: Vec::new() };
    for package in PACKAGES.iter().filter(|package| purposes.contains(&package.purpose)) {
        draft.package(package.name, package.purpose, package.why);
    }
    if purposes.contains(&Purpose::Build) {
        let llvm = draft.bpf_toolchain();
        draft.bpf_linker(llvm);
    }
    if purposes.contains(&Purpose::Test) {
        draft.components();
        draft.bpf_clippy();
    }
    for tool in TOOLS.iter().filter(|tool| purposes.contains(&tool.purpose)) {
        draft.tool(tool);
    }
    draft.finish()
}

/// The toolchain that agent/build.rs takes: `BPF_TOOLCHAIN`, else a nightly with sources, else the linked one.
pub fn chosen_toolchain(facts: &Facts) -> Option<(&str, &Rustc)> {
    let usable = |name: &str| facts.toolchains.get_key_value(name).filter(|(_, rustc)| rustc.library_source);
    let found = match &facts.bpf_toolchain {
        Some(name) => usable(name),
        None => usable("nightly").or_else(|| usable(LINKED_TOOLCHAIN)),
    };
    found.map(|(name, rustc)| (name.as_str(), rustc))
}

struct Draft<'a> {
    facts: &'a Facts,
    plan: Plan,
    apt_install: Vec<String>,
    after_apt: Vec<Step>,
}

impl Draft<'_> {
    fn find(&mut self, item: &str, purpose: Purpose, why: &'static str, state: Result<String, String>) {
        self.plan.findings.push(Finding { item: item.to_owned(), purpose, why, state });
    }

    fn package(&mut self, name: &str, purpose: Purpose, why: &'static str) {
        let state = self.facts.packages.get(name).cloned().ok_or_else(|| "not installed".to_owned());
        if state.is_err() {
            self.install_package(name);
        }
        self.find(name, purpose, why, state);
    }

    /// Whether the package manager offers it, as far as known; without lists one has to try.
    fn offered(&self, package: &str) -> bool {
        match &self.facts.apt {
            Apt::Absent => false,
            Apt::ListsMissing => true,
            Apt::Offers(packages) => packages.contains(package),
        }
    }

    fn install_package(&mut self, name: &str) {
        if self.offered(name) {
            self.apt_install.push(name.to_owned());
        } else if self.facts.apt == Apt::Absent {
            self.plan.by_hand.push(format!("what Debian calls {name}, by this system's package manager"));
        } else {
            self.plan.by_hand.push(format!("package {name}: this system's package sources don't offer it"));
        }
    }

    /// Returns the LLVM of the compiler that is or will be there, where known.
    fn bpf_toolchain(&mut self) -> Option<u32> {
        const WHY: &str = "compiles the eBPF programs (-Z build-std=core)";
        const ITEM: &str = "eBPF toolchain";
        if let Some((name, rustc)) = chosen_toolchain(self.facts) {
            let state = format!("{name}: rustc {}, LLVM {}", rustc.version, rustc.llvm);
            let llvm = rustc.llvm;
            self.find(ITEM, Purpose::Build, WHY, Ok(state));
            return Some(llvm);
        }
        let defect = match &self.facts.bpf_toolchain {
            Some(name) if self.facts.toolchains.contains_key(name) => format!("{name} lacks rust-src"),
            Some(name) => format!("no toolchain {name}"),
            None => "no nightly with rust-src, no linked one".to_owned(),
        };
        self.find(ITEM, Purpose::Build, WHY, Err(defect));
        if !self.facts.rustup {
            self.plan.by_hand.push("rustup: the eBPF build chooses its compiler through it".to_owned());
            return None;
        }
        match self.facts.bpf_toolchain.as_deref() {
            Some(name) if name != LINKED_TOOLCHAIN => {
                self.plan.by_hand.push(format!("BPF_TOOLCHAIN names {name}: install it with rust-src, or unset it"));
                None
            }
            _ if DEBIAN_TOOLCHAIN_PACKAGES.iter().all(|package| self.offered(package)) => {
                for package in DEBIAN_TOOLCHAIN_PACKAGES {
                    if !self.facts.packages.contains_key(*package) {
                        self.install_package(package);
                    }
                }
                self.after_apt.push(Step::new(&["rustup", "toolchain", "link", LINKED_TOOLCHAIN, "/usr"]));
                Some(DEBIAN_TOOLCHAIN_LLVM)
            }
            _ => {
                let mut step = Step::new(&[
                    "rustup",
                    "toolchain",
                    "install",
                    "nightly",
                    "--profile=minimal",
                    "--component=rust-src",
                ]);
                step.typical_s = 60;
                self.after_apt.push(step);
                None
            }
        }
    }

    fn bpf_linker(&mut self, rustc_llvm: Option<u32>) {
        const WHY: &str = "links the eBPF programs; its LLVM must read the compiler's";
        let state = match (&self.facts.linker, rustc_llvm) {
            (None, _) => Err("not installed".to_owned()),
            (Some(linker), needed) => match (linker.llvm, needed) {
                (LinkedLlvm::Gone(llvm), _) => Err(format!("its libLLVM {llvm} is not there")),
                (LinkedLlvm::Dynamic(llvm), Some(needed)) if llvm < needed => {
                    Err(format!("reads LLVM up to {llvm}, rustc writes {needed}"))
                }
                (LinkedLlvm::Dynamic(llvm), _) => Ok(format!("{}, LLVM {llvm}", linker.version)),
                (LinkedLlvm::Static, _) => Ok(format!("{}, with its own LLVM", linker.version)),
            },
        };
        let missing = state.is_err();
        self.find(BPF_LINKER, Purpose::Build, WHY, state);
        // Without a compiler it is unknown which LLVM to link to: next round.
        if let (true, Some(llvm)) = (missing, rustc_llvm) {
            self.install_bpf_linker(llvm);
        }
    }

    fn install_bpf_linker(&mut self, llvm: u32) {
        let package = llvm_package(llvm);
        let present = self.facts.packages.contains_key(&package);
        if !BPF_LINKER_LLVM.contains(&llvm) || !(present || self.offered(&package)) {
            self.plan.by_hand.push(format!(
                "{BPF_LINKER} for LLVM {llvm}, for example `cargo binstall {BPF_LINKER}` (prebuilt, with an LLVM of its own)"
            ));
            return;
        }
        if !present {
            self.install_package(&package);
        }
        let feature = format!("--features=llvm-{llvm}");
        let version = format!("--version={BPF_LINKER_PINNED}");
        let mut step = Step::new(&["cargo", "install", BPF_LINKER, &version, "--locked", "--no-default-features"]);
        step.argv.push(feature);
        // One that does not fit is replaced.
        if self.facts.linker.is_some() {
            step.argv.push("--force".to_owned());
        }
        step.env.push(("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")));
        step.typical_s = BPF_LINKER_TYPICAL_S;
        self.after_apt.push(step);
    }

    fn components(&mut self) {
        for (component, program, why) in COMPONENTS {
            let state = self.facts.tools.get(*program).map(ToString::to_string).ok_or("not installed".to_owned());
            if state.is_err() {
                self.after_apt.push(Step::new(&["rustup", "component", "add", component]));
            }
            self.find(component, Purpose::Test, why, state);
        }
    }

    /// The lints of the eBPF programs' compiler, which is not the workspace's.
    fn bpf_clippy(&mut self) {
        const WHY: &str = "checks the eBPF programs";
        let state = match chosen_toolchain(self.facts) {
            // Which lints depends on which compiler: next round.
            None => Err("needs the eBPF toolchain (--for build)".to_owned()),
            Some((name, rustc)) if rustc.clippy => Ok(format!("{name}'s")),
            Some((LINKED_TOOLCHAIN, _)) => {
                self.install_package(DEBIAN_CLIPPY_PACKAGE);
                Err("not installed".to_owned())
            }
            Some((name, _)) => {
                self.after_apt.push(Step::new(&["rustup", "component", "add", "clippy", "--toolchain", name]));
                Err(format!("{name} lacks it"))
            }
        };
        self.find("eBPF clippy", Purpose::Test, WHY, state);
    }

    fn tool(&mut self, tool: &super::items::Tool) {
        let state = match self.facts.tools.get(tool.name) {
            Some(version) if *version >= tool.oldest => Ok(version.to_string()),
            Some(version) => Err(format!("{version} is older than {}", tool.oldest)),
            None => Err("not installed".to_owned()),
        };
        if state.is_err() {
            let version = format!("--version={}", tool.pinned);
            let mut step = Step::new(&["cargo", "install", tool.name, &version, "--locked", "--debug"]);
            step.argv.extend(tool.install_args.iter().map(|&argument| argument.to_owned()));
            step.env.push(("CARGO_PROFILE_DEV_DEBUG", "0".to_owned()));
            step.typical_s = tool.typical_s;
            self.after_apt.push(step);
        }
        self.find(tool.name, tool.purpose, tool.why, state);
    }

    fn finish(mut self) -> Plan {
        if !self.apt_install.is_empty() {
            if self.apt_install.iter().any(|package| package == POSTGRESQL) {
                let (from, to) = NO_CLUSTER;
                let mut step = Step::new(&["install", "-D", "--mode=644", from, to]);
                step.root = true;
                self.plan.steps.push(step);
            }
            let noninteractive = ("DEBIAN_FRONTEND", "noninteractive".to_owned());
            let mut update = Step::new(&["apt-get", "-o", APT_LOCK_WAIT, "update"]);
            update.typical_s = 10;
            let mut install =
                Step::new(&["apt-get", "-o", APT_LOCK_WAIT, "install", "--yes", "--no-install-recommends"]);
            install.argv.append(&mut self.apt_install);
            install.typical_s = 60;
            for mut step in [update, install] {
                step.root = true;
                step.env.push(noninteractive.clone());
                self.plan.steps.push(step);
            }
        }
        self.plan.steps.append(&mut self.after_apt);
        self.plan
    }
}

#[cfg(test)]
mod tests;
