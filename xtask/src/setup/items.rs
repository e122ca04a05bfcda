//! The list of what a machine needs, each with its reason.

use clap::ValueEnum;

use super::version::Version;

/// What something is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// Building the agent and the brain
    Build,
    /// The lab of libvirt hosts: `cargo xtask lab`, `cargo xtask demo`, end-to-end tests
    Lab,
    /// Running every check: `cargo xtask test`
    Test,
    /// The peers that benchmarks compare with: `cargo xtask bench`
    Bench,
}

/// All of them, in the order of their use.
pub const EVERY_PURPOSE: &[Purpose] = &[Purpose::Build, Purpose::Lab, Purpose::Test, Purpose::Bench];

impl Purpose {
    /// What still works on a machine where this cannot be had.
    pub fn works_without(self) -> &'static str {
        match self {
            Self::Build => {
                "gnomon-core, gnomon-sim, gnomon-common and gnomon-brain build and test: `cargo test -p gnomon-core`"
            }
            Self::Lab => "everything builds, and unit tests run: `cargo nextest run --workspace --exclude gnomon-e2e`",
            Self::Test => "`cargo build`, `cargo test`, the lab and the demo",
            Self::Bench => "everything but `cargo xtask bench`",
        }
    }
}

/// A Debian package, and how to know its contents where the package manager is another.
#[derive(Debug)]
pub struct Package {
    /// Name in Debian.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: Purpose,
    /// Why.
    pub why: &'static str,
    /// Any one of these paths proves it is there, on systems without dpkg.
    pub evidence: &'static [&'static str],
}

/// The server of the brain's other database.
pub const POSTGRESQL: &str = "postgresql";
/// What keeps its package from making a database and starting a server on it, and where Debian looks for that.
pub const NO_CLUSTER: (&str, &str) = (
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/setup/no-cluster.conf"),
    "/etc/postgresql-common/createcluster.d/gnomon-no-cluster.conf",
);

/// Packages with fixed names. The eBPF toolchain's depend on what is there: see [`super::plan`].
pub const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        purpose: Purpose::Build,
        why: "links every program; compiles ring and SQLite",
        evidence: &["/usr/bin/cc"],
    },
    Package {
        name: "libc6-dev",
        purpose: Purpose::Build,
        why: "C headers; libc.a for the static program in lab guests",
        evidence: &["/usr/include/stdlib.h"],
    },
    Package {
        name: "pkg-config",
        purpose: Purpose::Build,
        why: "finds libvirt for the agent's build",
        evidence: &["/usr/bin/pkg-config"],
    },
    Package {
        name: "libvirt-dev",
        purpose: Purpose::Build,
        why: "the agent links to libvirt",
        evidence: &["/usr/include/libvirt/libvirt.h"],
    },
    Package {
        name: "libvirt-daemon",
        purpose: Purpose::Lab,
        why: "each lab host runs a libvirtd of its own",
        evidence: &["/usr/sbin/libvirtd"],
    },
    Package {
        name: "libvirt-daemon-driver-qemu",
        purpose: Purpose::Lab,
        why: "libvirtd's QEMU driver",
        evidence: &[
            "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
            "/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
            "/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
        ],
    },
    Package {
        name: "libvirt-clients",
        purpose: Purpose::Lab,
        why: "virsh, with which the lab drives its hosts",
        evidence: &["/usr/bin/virsh"],
    },
    Package {
        name: "qemu-system-x86",
        purpose: Purpose::Lab,
        why: "the lab's guests are real QEMU processes",
        evidence: &["/usr/bin/qemu-system-x86_64"],
    },
    Package {
        name: "qemu-utils",
        purpose: Purpose::Lab,
        why: "qemu-img, with which the agent makes the disks of shadows",
        evidence: &["/usr/bin/qemu-img"],
    },
    Package {
        name: "iptables",
        purpose: Purpose::Lab,
        why: "libvirt makes networks and filters with it, and shadows are on one behind one",
        evidence: &["/usr/sbin/iptables", "/sbin/iptables", "/usr/bin/iptables"],
    },
    Package {
        name: "busybox-static",
        purpose: Purpose::Lab,
        why: "user space of the lab's guests",
        evidence: &["/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox"],
    },
    Package {
        name: "cpio",
        purpose: Purpose::Lab,
        why: "packs the guests' initramfs",
        evidence: &["/usr/bin/cpio", "/bin/cpio"],
    },
    Package {
        name: "iproute2",
        purpose: Purpose::Lab,
        why: "ip, which makes the lab's network namespaces",
        evidence: &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"],
    },
    Package {
        name: "e2fsprogs",
        purpose: Purpose::Lab,
        why: "mkfs.ext4, which packs the disk of the full lab's hosts",
        evidence: &["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"],
    },
    Package {
        name: "faketime",
        purpose: Purpose::Test,
        why: "lets a test set one program's clock",
        evidence: &["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/bin/faketime"],
    },
    Package {
        name: POSTGRESQL,
        purpose: Purpose::Test,
        why: "tests of the brain's store start a server of their own",
        evidence: &["/usr/lib/postgresql/15/bin/postgres", "/usr/bin/postgres", "/usr/pgsql-15/bin/postgres"],
    },
    Package {
        name: "libbpf-tools",
        purpose: Purpose::Bench,
        why: "runqlat and biolatency, the peers of the scheduler and the block probe",
        evidence: &["/usr/sbin/runqlat", "/usr/bin/runqlat", "/usr/bin/bpf-runqlat"],
    },
    Package {
        name: "bpftrace",
        purpose: Purpose::Bench,
        why: "the peer that counts in one line what the scheduler probe counts",
        evidence: &["/usr/bin/bpftrace"],
    },
];

/// A cargo subcommand from the crate registry.
#[derive(Debug)]
pub struct Tool {
    /// Crate and program.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: Purpose,
    /// Why.
    pub why: &'static str,
    /// An older one will not do.
    pub oldest: Version,
    /// Installed where there is none.
    pub pinned: &'static str,
    /// Further arguments of `cargo install`.
    pub install_args: &'static [&'static str],
    /// Seconds that the install takes on two cores, for the reader's patience.
    pub typical_s: u32,
}

/// Tools are compiled without optimisation: they are run for seconds and would be optimised for minutes.
pub const TOOLS: &[Tool] = &[
    Tool {
        name: "cargo-nextest",
        purpose: Purpose::Test,
        why: "runs the tests, with time limits and a report",
        oldest: Version(0, 9, 100),
        pinned: "0.9.151",
        install_args: &["--no-default-features"],
        typical_s: 150,
    },
    Tool {
        name: "cargo-deny",
        purpose: Purpose::Test,
        why: "checks licences, sources and advisories of dependencies",
        oldest: Version(0, 18, 0),
        pinned: "0.20.2",
        install_args: &[],
        typical_s: 45,
    },
    Tool {
        name: "cargo-fuzz",
        purpose: Purpose::Test,
        why: "builds the fuzz targets of the decoders",
        oldest: Version(0, 13, 0),
        pinned: "0.13.2",
        install_args: &[],
        typical_s: 20,
    },
];

/// Parts of the Rust toolchain beyond the compiler: rustup's name, program, reason.
pub const COMPONENTS: &[(&str, &str, &str)] =
    &[("rustfmt", "cargo-fmt", "checks formatting"), ("clippy", "cargo-clippy", "checks for mistakes and habits")];

/// The linker that turns rustc's bitcode into eBPF objects.
pub const BPF_LINKER: &str = "bpf-linker";
/// Its version in use here.
pub const BPF_LINKER_PINNED: &str = "0.13.0";
/// The LLVM majors that this version of the linker can be built for.
pub const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// Seconds that its install takes on two cores.
pub const BPF_LINKER_TYPICAL_S: u32 = 90;

/// rustup's name of the distribution's Rust, linked as a toolchain; agent/build.rs looks for it.
pub const LINKED_TOOLCHAIN: &str = "bpf";
/// Debian's compiler with matching library sources: together what `-Z build-std` needs.
pub const DEBIAN_TOOLCHAIN_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];
/// The lints of Debian's compiler.
pub const DEBIAN_CLIPPY_PACKAGE: &str = "rust-web-clippy";
/// LLVM of Debian's compiler, assumed until that is installed and can be asked.
pub const DEBIAN_TOOLCHAIN_LLVM: u32 = 22;
