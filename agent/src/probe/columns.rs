//! Which host tasks' commands are told apart: pure book-keeping.
//!
//! There are more commands in the life of a host than columns. One that nobody has waited for in a while gives its column up; it
//! rests until the next look, because a switch that has just looked it up may still charge it.

use gnomon_common::abi::sched::{COMMAND_COLUMN, COMMANDS_MAX, Command};
use std::collections::BTreeMap;

/// A command that has not made anyone wait for so long may give up its column.
const IDLE_NS: u64 = 60_000_000_000;

/// The columns of commands.
#[derive(Debug)]
pub(super) struct Columns {
    known: BTreeMap<Command, Column>,
    free: Vec<u32>,
    resting: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    number: u32,
    waited_ns: u64,
    grew_ns: u64,
}

/// What becomes of a command that has no column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It gets this one, which may hold what its former owner left.
    Column(u32),
    /// This one gives its column up: to be asked again after the next look.
    After(Command),
    /// All are in use.
    Full,
}

impl Columns {
    /// All free.
    pub(super) fn new() -> Self {
        let all = COMMAND_COLUMN..COMMAND_COLUMN + COMMANDS_MAX as u32;
        Self { known: BTreeMap::new(), free: all.rev().collect(), resting: Vec::new() }
    }

    /// A new look: what has rested since the last one is free.
    pub(super) fn begin(&mut self) {
        self.free.append(&mut self.resting);
    }

    /// Finds room for a command.
    pub(super) fn admit(&mut self, command: Command, now_ns: u64) -> Admission {
        if let Some(column) = self.known.get(&command) {
            return Admission::Column(column.number);
        }
        if let Some(number) = self.free.pop() {
            self.known.insert(command, Column { number, waited_ns: 0, grew_ns: now_ns });
            return Admission::Column(number);
        }
        let stalest =
            self.known.iter().min_by_key(|(_, column)| column.grew_ns).map(|(&known, &column)| (known, column));
        match stalest {
            Some((known, column)) if now_ns.saturating_sub(column.grew_ns) >= IDLE_NS => {
                self.known.remove(&known);
                self.resting.push(column.number);
                Admission::After(known)
            }
            _ => Admission::Full,
        }
    }

    /// Every command with its column, sorted by command.
    pub(super) fn known(&self) -> impl Iterator<Item = (Command, u32)> {
        self.known.iter().map(|(&command, column)| (command, column.number))
    }

    /// Notes what all VMs together have waited for the commands, in the order of [`Self::known`].
    pub(super) fn note(&mut self, waited_ns: &[u64], now_ns: u64) {
        for (column, &waited_ns) in self.known.values_mut().zip(waited_ns) {
            if column.waited_ns != waited_ns {
                column.waited_ns = waited_ns;
                column.grew_ns = now_ns;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(number: u64) -> Command {
        Command([number + 1, 0])
    }

    fn full() -> Columns {
        let mut columns = Columns::new();
        for number in 0..COMMANDS_MAX as u64 {
            let Admission::Column(_) = columns.admit(command(number), 0) else { panic!("{number} finds no column") };
        }
        columns
    }

    #[test]
    fn every_command_has_a_column_of_its_own_and_keeps_it() {
        let mut columns = full();
        let mut numbers: Vec<u32> = columns.known().map(|(_, number)| number).collect();
        assert_eq!(columns.admit(command(3), 0), Admission::Column(numbers[3]));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), COMMANDS_MAX);
    }

    #[test]
    fn one_for_which_nobody_waits_gives_its_column_up_and_the_column_rests() {
        let mut columns = full();
        let mut waited_ns = vec![0; COMMANDS_MAX];
        assert_eq!(columns.admit(command(1_000), IDLE_NS - 1), Admission::Full);
        waited_ns.iter_mut().enumerate().filter(|(place, _)| *place != 7).for_each(|(_, ns)| *ns = 5);
        columns.note(&waited_ns, 100);
        assert_eq!(columns.admit(command(1_000), IDLE_NS), Admission::After(command(7)));
        assert_eq!(columns.admit(command(1_000), IDLE_NS), Admission::Full, "it rests, and the others are in use");
        columns.begin();
        let Admission::Column(number) = columns.admit(command(1_000), IDLE_NS) else { panic!("no room") };
        assert!(columns.known().all(|(known, column)| column != number || known == command(1_000)));
    }
}
