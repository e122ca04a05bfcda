//! Gnomon's controller, the service around the pure core.
//!
//! Reports and outcomes enter by QUIC ([`ingest`]), are synced to the store ([`store`]) before they are acknowledged,
//! and are fed to [`gnomon_core::Core`] by the one loop that owns it ([`drive`]). What the core wants done leaves the
//! same way: its records are synced first, then its commands go to the agents. People and programs look in through
//! [`api`], of which [`cli`] (the `gnomon` command) is a client like any other. [`ca`] makes the certificates both
//! sides show.
//!
//! Nothing here forecasts or plans: every judgement is the core's. Nothing is acknowledged, and no command is sent,
//! that a `kill -9` could make the store forget.

pub mod api;
pub mod ca;
pub mod capacity;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drive;
pub mod https;
pub mod ingest;
pub mod role;
pub mod secret;
pub mod service;
pub mod store;
pub mod telemetry;
