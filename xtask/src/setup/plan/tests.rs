use super::*;
use crate::setup::facts::Linker;
use crate::setup::items::EVERY_PURPOSE;
use crate::setup::version::Version;

fn rustc(llvm: u32, library_source: bool) -> Rustc {
    Rustc { version: Version(1, 96, 0), llvm, library_source, clippy: true }
}

fn linker(llvm: LinkedLlvm) -> Option<Linker> {
    Some(Linker { version: Version(0, 13, 0), llvm })
}

/// A machine where nothing is missing: Debian's compiler is linked.
fn complete() -> Facts {
    let mut names: Vec<String> = PACKAGES.iter().map(|package| package.name.to_owned()).collect();
    names.extend(DEBIAN_TOOLCHAIN_PACKAGES.iter().map(|&name| name.to_owned()));
    names.push("llvm-22-dev".to_owned());
    Facts {
        root: true,
        apt: Apt::Offers(names.iter().cloned().collect()),
        packages: names.into_iter().map(|name| (name, "1".to_owned())).collect(),
        rustup: true,
        toolchains: [("bpf".to_owned(), rustc(22, true))].into(),
        linker: linker(LinkedLlvm::Dynamic(22)),
        tools: [
            ("cargo-nextest".to_owned(), Version(0, 9, 143)),
            ("cargo-deny".to_owned(), Version(0, 20, 2)),
            ("cargo-fuzz".to_owned(), Version(0, 13, 2)),
            ("cargo-fmt".to_owned(), Version(1, 8, 0)),
            ("cargo-clippy".to_owned(), Version(0, 1, 95)),
        ]
        .into(),
        ..Facts::default()
    }
}

/// A Debian 12 with rustup and nothing else; package lists are there.
fn bare_debian() -> Facts {
    Facts { packages: [].into(), toolchains: [].into(), linker: None, tools: [].into(), ..complete() }
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.shell(true)).collect()
}

#[test]
fn where_nothing_is_missing_nothing_is_done() {
    let plan = plan(&complete(), EVERY_PURPOSE);
    assert!(plan.complete(), "{}", plan.table());
    assert_eq!((plan.steps, plan.by_hand), (vec![], vec![]));
}

#[test]
fn a_bare_debian_gets_packages_then_compiler_then_linker_then_tools() {
    let lines = lines(&plan(&bare_debian(), EVERY_PURPOSE));
    let position =
        |words: &str| lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{lines:#?}"));
    let order = ["update", "rustc-web rust-web-src llvm-22-dev", "toolchain link bpf /usr", "bpf-linker", "cargo-deny"];
    assert!(order.map(position).is_sorted(), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker")));
    assert_eq!(lines.iter().filter(|line| line.contains(" install --yes ")).count(), 1, "one apt run: {lines:#?}");
}

#[test]
fn installing_postgresql_starts_no_database() {
    let lines = lines(&plan(&bare_debian(), &[Purpose::Test]));
    let position = |words: &str| lines.iter().position(|line| line.contains(words));
    let forbidden = position("createcluster.d").expect("nothing forbids it");
    assert!(forbidden < position(" postgresql").unwrap(), "{lines:#?}");
    assert!(std::fs::read_to_string(NO_CLUSTER.0).unwrap().contains("create_main_cluster = false"));
    let without = plan(&bare_debian(), &[Purpose::Bench]);
    assert!(without.steps.iter().all(|step| !step.title().contains("createcluster")), "{without:?}");
}

#[test]
fn package_lists_are_not_fetched_when_no_package_is_missing() {
    let facts = Facts { linker: None, ..complete() };
    let lines = lines(&plan(&facts, EVERY_PURPOSE));
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("cargo install bpf-linker"));
}

#[test]
fn only_what_the_purpose_needs_is_asked_for() {
    let plan = plan(&bare_debian(), &[Purpose::Bench]);
    assert_eq!(
        plan.findings.iter().map(|finding| finding.item.as_str()).collect::<Vec<_>>(),
        ["libbpf-tools", "bpftrace"]
    );
}

#[test]
fn a_nightly_with_sources_is_preferred_to_the_linked_toolchain() {
    let mut facts = complete();
    facts.toolchains.insert("nightly".to_owned(), rustc(22, true));
    assert_eq!(chosen_toolchain(&facts).unwrap().0, "nightly");
    facts.toolchains.insert("nightly".to_owned(), rustc(22, false));
    assert_eq!(chosen_toolchain(&facts).unwrap().0, "bpf");
    facts.bpf_toolchain = Some("mine".to_owned());
    assert_eq!(chosen_toolchain(&facts), None);
}

#[test]
fn a_linker_older_than_the_compiler_is_replaced() {
    let facts = Facts { linker: linker(LinkedLlvm::Dynamic(21)), ..complete() };
    let lines = lines(&plan(&facts, &[Purpose::Build]));
    assert!(lines[0].ends_with("--features=llvm-22 --force"), "{lines:#?}");
    let gone = Facts { linker: linker(LinkedLlvm::Gone(22)), ..complete() };
    assert!(!plan(&gone, &[Purpose::Build]).complete());
}

#[test]
fn a_linker_newer_than_the_compiler_or_with_its_own_llvm_is_kept() {
    for llvm in [LinkedLlvm::Dynamic(23), LinkedLlvm::Static] {
        let facts = Facts { linker: linker(llvm), ..complete() };
        assert!(plan(&facts, EVERY_PURPOSE).complete(), "{llvm:?}");
    }
}

#[test]
fn the_linker_follows_the_compiler_that_is_there() {
    let mut facts = Facts { linker: None, ..complete() };
    facts.toolchains.insert("nightly".to_owned(), rustc(23, true));
    facts.apt = Apt::Offers(["llvm-23-dev".to_owned()].into());
    let lines = lines(&plan(&facts, &[Purpose::Build]));
    assert!(lines.iter().any(|line| line.contains("install --yes --no-install-recommends llvm-23-dev")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("--features=llvm-23")), "{lines:#?}");
}

#[test]
fn an_llvm_that_no_package_brings_is_left_to_the_user() {
    let mut facts = Facts { linker: None, ..complete() };
    facts.toolchains.insert("nightly".to_owned(), rustc(24, true));
    let plan = plan(&facts, &[Purpose::Build]);
    assert_eq!(plan.steps, []);
    assert!(plan.by_hand[0].contains("LLVM 24"), "{:?}", plan.by_hand);
}

#[test]
fn without_debians_compiler_a_nightly_is_installed_and_the_linker_waits_for_it() {
    let facts = Facts {
        apt: Apt::Offers(["llvm-22-dev".to_owned()].into()),
        toolchains: [].into(),
        linker: None,
        ..complete()
    };
    let lines = lines(&plan(&facts, &[Purpose::Build]));
    assert_eq!(lines, ["rustup toolchain install nightly --profile=minimal --component=rust-src"]);
}

#[test]
fn a_user_without_rights_is_told_what_to_type_and_what_works_meanwhile() {
    let facts = Facts { root: false, ..bare_debian() };
    let text = plan(&facts, EVERY_PURPOSE).instructions(facts.root);
    assert!(text.contains("  sudo DEBIAN_FRONTEND=noninteractive apt-get"), "{text}");
    assert!(text.contains("\n  LLVM_PREFIX=/usr/lib/llvm-22 cargo install"), "no sudo for the user's own: {text}");
    for purpose in EVERY_PURPOSE {
        assert!(text.contains(purpose.works_without()), "{text}");
    }
}

#[test]
fn another_system_is_told_the_names_of_the_packages() {
    let facts = Facts { apt: Apt::Absent, ..bare_debian() };
    let plan = plan(&facts, &[Purpose::Lab]);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.by_hand.len(), plan.findings.len());
    assert!(plan.instructions(true).contains("what Debian calls libvirt-daemon"));
}

#[test]
fn a_tool_that_is_too_old_is_replaced() {
    let mut facts = complete();
    facts.tools.insert("cargo-nextest".to_owned(), Version(0, 9, 30));
    let plan = plan(&facts, &[Purpose::Test]);
    assert_eq!(plan.missing().map(|finding| finding.item.as_str()).collect::<Vec<_>>(), ["cargo-nextest"]);
    assert!(lines(&plan)[0].contains("cargo install cargo-nextest --version=0.9.151"));
}

#[test]
fn the_lints_of_the_ebpf_programs_come_from_where_their_compiler_came() {
    let mut facts = complete();
    let lacking = Rustc { clippy: false, ..rustc(22, true) };
    facts.toolchains.insert("bpf".to_owned(), lacking.clone());
    facts.apt = Apt::Offers([DEBIAN_CLIPPY_PACKAGE.to_owned()].into());
    assert!(lines(&plan(&facts, &[Purpose::Test]))[1].ends_with(DEBIAN_CLIPPY_PACKAGE));
    facts.toolchains.insert("nightly".to_owned(), lacking);
    assert_eq!(lines(&plan(&facts, &[Purpose::Test])), ["rustup component add clippy --toolchain nightly"]);
    facts.toolchains.clear();
    assert_eq!(lines(&plan(&facts, &[Purpose::Test])), [""; 0], "it waits for the toolchain");
}
