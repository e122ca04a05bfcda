//! Raw readings kept in a file: `gnomon-agent record` writes what the sampler reads, `gnomon-agent replay` makes the same windows of it
//! elsewhere, without the host.
//!
//! A recording holds ticks (`sample/tick.rs`): counters, sizes, states and instants, and nothing of what is within a guest. Names are replaced by
//! labels (`labels.rs`) unless they were asked for. Data enters from the sampler through a [`Tape`]; it leaves as the
//! [`HostReport`](crate::sample::HostReport)s of a [`Replay`].

mod file;
mod labels;
mod record;
mod replay;
mod table;
mod tape;

#[cfg(test)]
pub(crate) use file::Frames;
pub use file::{FileError, Torn};
pub use record::{RecordError, record};
pub use replay::Replay;
pub use table::{HEADINGS, rows};
pub use tape::{Progress, Tape, TapeError};
