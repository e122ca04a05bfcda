//! A working set: every page of it is touched each second.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::board::Board;

const PAGE_BYTES: usize = 4096;
/// Parts in which all of it is touched once a second.
const PARTS: usize = 10;
/// How much is mapped at a time, before it is asked again what the guest can spare.
const GROWTH_BYTES: u64 = 32 << 20;
/// What is never unmapped, so that the allocator goes on mapping and unmapping for this block alone: one that is freed makes it keep later ones.
const KEPT_BYTES: usize = 1 << 20;
/// What is left to the guest: so many parts of a hundred, and no less than this.
const RESERVE_PERCENT: u64 = 5;
const RESERVE_BYTES_MIN: u64 = 16 << 20;

/// What the guest's kernel says of its memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    total: u64,
    available: u64,
}

impl Room {
    /// Parses `/proc/meminfo`, proc(5). A guest that does not tell has no room.
    fn parse(meminfo: &str) -> Self {
        let field = |name: &str| {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = |name| field(name).unwrap_or(0).saturating_mul(1024);
        Room { total: bytes("MemTotal:"), available: bytes("MemAvailable:") }
    }

    /// The size to have next: towards `wanted` from `held`, by what the guest can spare beyond its reserve.
    fn next(self, held: u64, wanted: u64) -> u64 {
        let reserve = (self.total / 100 * RESERVE_PERCENT).max(RESERVE_BYTES_MIN);
        let most = (held + self.available).saturating_sub(reserve);
        wanted.min(most).min(held + GROWTH_BYTES)
    }
}

/// Holds and touches what is wanted, for ever.
pub(crate) fn hold(board: &Board) {
    let mut held: Vec<u8> = Vec::new();
    loop {
        if held.is_empty() {
            board.wait_until(|targets| targets.memory_bytes >= PAGE_BYTES as u64);
        }
        let begin = Instant::now();
        for part in 0..PARTS {
            let wanted = board.targets().memory_bytes / PAGE_BYTES as u64 * PAGE_BYTES as u64;
            // What it can spare is asked once a second, and whenever more is wanted.
            if part == 0 || wanted != held.len() as u64 {
                let room = Room::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
                let next = room.next(held.len() as u64, wanted);
                resize(&mut held, usize::try_from(next).unwrap_or(usize::MAX));
            }
            let touched = touch(&mut held, part);
            Board::count(&board.touched, touched);
            let due = begin + Duration::from_secs(1) / PARTS as u32 * (part as u32 + 1);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

/// One mapping that grows and shrinks in place: the allocator moves a block of this size by mremap(2), and unmaps what is cut off.
fn resize(held: &mut Vec<u8>, bytes: usize) {
    let bytes = bytes / PAGE_BYTES * PAGE_BYTES;
    if bytes > held.len() {
        if held.try_reserve_exact(bytes.max(KEPT_BYTES) - held.len()).is_ok() {
            held.resize(bytes, 1);
        }
    } else if bytes < held.len() {
        held.truncate(bytes);
        held.shrink_to(bytes.max(KEPT_BYTES));
    }
}

/// Writes to each page of the part. Returns the bytes of those pages.
fn touch(held: &mut [u8], part: usize) -> u64 {
    let pages = held.len() / PAGE_BYTES;
    let (from, to) = (pages * part / PARTS, pages * (part + 1) / PARTS);
    for page in from..to {
        held[page * PAGE_BYTES] = std::hint::black_box(held[page * PAGE_BYTES].wrapping_add(1));
    }
    ((to - from) * PAGE_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_guest_keeps_its_reserve() {
        let room = Room { total: 1000 * MIB, available: 70 * MIB };
        assert_eq!(room.next(0, 10 * MIB), 10 * MIB);
        assert_eq!(room.next(100 * MIB, 500 * MIB) / MIB, 120, "by what is beyond the reserve of 50 MiB");
        assert_eq!(room.next(100 * MIB, 30 * MIB), 30 * MIB);
        let short = Room { total: 1000 * MIB, available: 20 * MIB };
        assert_eq!(short.next(100 * MIB, 100 * MIB) / MIB, 70, "what is missing is given back");
        assert_eq!(Room::parse("nonsense").next(0, MIB), 0);
    }

    #[test]
    fn what_is_cut_off_goes_back_to_the_kernel_and_every_page_is_touched_once() {
        let resident = || {
            let text = fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE_BYTES as u64
        };
        let mut held = Vec::new();
        let before = resident();
        for _ in 0..3 {
            resize(&mut held, 64 << 20);
            assert!(resident() > before + 60 * MIB);
            assert_eq!((0..PARTS).map(|part| touch(&mut held, part)).sum::<u64>(), 64 * MIB);
            resize(&mut held, 8 << 20);
            assert!(resident() < before + 16 * MIB, "{} MiB", (resident() - before) / MIB);
            resize(&mut held, 0);
            assert!(resident() < before + 8 * MIB);
        }
    }
}
