//! A disk under a known load.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
/// `O_DIRECT` of x86-64: past the guest's page cache, so that what is asked for is what the disk gets.
const O_DIRECT: i32 = 0x4000;
/// Bytes of one read or write, as a database's.
const BLOCK_BYTES: usize = 16 << 10;
/// Gone through round and round: the first MiB in writing, the second in reading.
const AREA_BYTES: u64 = 1 << 20;
const BLOCKS: u64 = AREA_BYTES / BLOCK_BYTES as u64;

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// Writes at `bytes_per_s` for ever.
pub(crate) fn write(bytes_per_s: u64, start: Instant) {
    let block = Block([0x5a; BLOCK_BYTES]);
    let transfer = |disk: &File, offset| disk.write_all_at(&block.0, offset);
    repeat("writing to", OpenOptions::new().write(true), bytes_per_s, start, transfer);
}

/// Reads at `bytes_per_s` for ever.
pub(crate) fn read(bytes_per_s: u64, start: Instant) {
    let mut block = Block([0; BLOCK_BYTES]);
    let transfer = |disk: &File, offset| disk.read_exact_at(&mut block.0, AREA_BYTES + offset);
    repeat("reading from", OpenOptions::new().read(true), bytes_per_s, start, transfer);
}

/// Each block has its time from `start` on; one that is late is made up for, so the mean is kept.
fn repeat(
    what: &str,
    options: &mut OpenOptions,
    bytes_per_s: u64,
    start: Instant,
    mut transfer: impl FnMut(&File, u64) -> io::Result<()>,
) {
    let pace_s = BLOCK_BYTES as f64 / bytes_per_s.max(1) as f64;
    let paced = |disk: File| {
        (0u64..).try_for_each(|number| {
            let due = start + Duration::from_secs_f64(number as f64 * pace_s);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            transfer(&disk, number % BLOCKS * BLOCK_BYTES as u64)
        })
    };
    if let Err(error) = options.custom_flags(O_DIRECT).open(DISK).and_then(paced) {
        println!("gnomon-load failed: {what} {DISK}: {error}");
    }
}
