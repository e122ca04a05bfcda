//! A deterministic world of hosts and VMs that drives the very same core as the brain does.
//!
//! A [`Scenario`] says who lives in the world and what befalls them; [`World::step`] advances it by a second; [`run`] plays it to
//! the end and returns time series and an event log. Guests want CPU by a schedule, hosts give it within quotas and capacity,
//! agents measure both ends of demand and judge commands as the real ones do, links fail, agents and the brain restart. The brain in
//! it is `gnomon-core` behind `handle` and `poll_output`, nothing else. The same scenario and seed give the same bytes. This crate
//! opens no socket or file and reads no clock.

pub mod ablation;
mod agent;
mod brain;
pub mod chaos;
pub mod check;
pub mod contention;
mod copies;
pub mod demo;
mod guest;
mod memory;
pub mod run;
pub mod scenario;
pub mod score;
mod shadows;
mod vm;
pub mod world;

pub use copies::Lapse;
pub use demo::demo_fleet;
pub use run::{Run, run};
pub use scenario::{Event, HostSpec, Load, MemorySpec, MoveSpec, Scenario, Timed, VmSpec};
pub use world::{Snapshot, VmSnapshot, World};
