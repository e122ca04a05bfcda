//! What both sides of a Gnomon boundary share.
//!
//! [`abi`] is the kernel <-> agent boundary: `no_std`, `#[repr(C)]` records that eBPF programs write and the agent reads.
//! [`wire`] is the agent <-> brain boundary: ids, versions, messages, and the one module that turns them into bytes and
//! back. This crate opens no socket, no file and reads no clock: data enters as bytes or values and leaves the same way.
//!
//! With `schema`, what the brain's API shows of [`wire`] describes itself for OpenAPI; the derived code wants the standard library's prelude.
#![cfg_attr(not(feature = "schema"), no_std)]

#[cfg(feature = "wire")]
extern crate std;

pub mod abi;
#[cfg(feature = "wire")]
pub mod time;
#[cfg(feature = "wire")]
pub mod wire;
