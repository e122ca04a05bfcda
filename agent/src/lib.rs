//! The privileged daemon of a hypervisor.
//!
//! It measures, per VM and second, what the VM *wanted* ([`probe`], [`cpu_source`], [`host`], [`sample`]), ships that to the brain
//! ([`uplink`]), and carries out the brain's commands within its own guard rails ([`command`], [`actuate`]). It never decides
//! by itself how large a VM should be, never follows a command past its configured bounds, and never changes a VM without
//! an undo record. Data enters from the kernel, libvirt and the brain's connection; it leaves as reports, outcomes and
//! changed limits.

pub mod actuate;
pub mod command;
pub mod config;
pub mod cost;
pub mod cpu_source;
pub mod daemon;
pub mod doctor;
pub mod host;
pub mod join;
pub mod pacer;
pub mod probe;
pub mod reading;
pub mod recording;
pub mod sample;
pub mod self_test;
pub mod telemetry;
pub mod uplink;
