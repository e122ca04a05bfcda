//! The pacer: the program inside a shadow's guest that makes a load.
//!
//! [`protocol`] is what it and the host's agent say to each other on a virtio-serial port, pure text; the agent uses the same code. [`pace`] is the
//! loop that follows a profile, [`port`] the guest's end of the port. CPU, memory, disk and network have a module each, and threads of their own, so that
//! a disk that hangs holds up nothing else. Data enters as lines from the port and leaves as load and as a line a second that says what
//! was wanted and what was made.
//!
//! Architecture Invariant: it opens no listening socket, and writes nowhere but to its port, to its scratch place, and to the network interface's wire.

mod board;
mod cpu;
mod credit;
mod disk;
mod memory;
mod network;
pub mod pace;
pub mod port;
pub mod protocol;

pub use disk::{SCRATCH_BYTES, Scratch, ScratchError};
pub use network::{FRAME_BYTES, FRAME_BYTES_MIN, Uplink, Wire, WireError};
