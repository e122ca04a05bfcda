//! The kernel <-> agent boundary: one module per signal family, plain `#[repr(C)]` records, `u32` flags instead of `bool`.

pub mod block;
pub mod drops;
pub mod exits;
pub mod memory;
pub mod queues;
pub mod sched;
