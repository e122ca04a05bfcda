//! The CPU demand of a lab guest: what it is at any time, how a guest reports it, how much of it the guest got.
//!
//! Pure: schedules and text. The program beside this library (`gnomon-lab-load`) spends the CPU time inside a guest;
//! the lab uses the same functions outside to know, at any time, what the guest wants. It never reads a clock: time
//! enters as seconds since the guest's program started. Schedules enter as the text after `gnomon.load=` on the
//! guest's kernel command line; reports leave as console lines.

pub mod report;
pub mod schedule;
pub mod usage;

pub use report::{Line, Report};
pub use schedule::draw::DayRange;
pub use schedule::{Schedule, ScheduleError};
