//! Everything that is run from the source tree: setup, lab, demo, test, bench.
//!
//! `cargo xtask` is the developer's and the evaluator's way in; installed hosts never see it. It depends on neither the
//! agent nor the brain's service, only on the pure core and its simulator: it must build on a machine that cannot build the
//! others yet, to install what they need. What it starts (labs, guests, builds) it ends, and it installs nothing that it did
//! not name first. Data enters from the machine it runs on; it leaves as installed tools, as processes of the lab, and as
//! the reports on standard output.

pub mod bench;
pub mod demo;
pub mod ebpf;
pub mod env;
pub mod lab;
pub mod process;
pub mod progress;
pub mod setup;
pub mod stack;
pub mod test;
