//! The brain from outside: real QUIC, real TLS, real SQLite, real HTTP, and (where it matters) the real process.

mod agent;
mod api;
mod backup;
mod brain;
mod broken;
mod capacity;
mod cli;
mod crash;
mod crowd;
mod database;
mod enrol;
mod failover;
mod forgetful;
mod history;
mod ingest;
mod lost;
mod moves;
mod process;
mod proposals;
mod regression;
mod set;
mod shadows;
mod store;
mod take_over;
mod tls;
mod uninvited;
