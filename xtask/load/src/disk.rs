//! A disk under a known load.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
/// `O_DIRECT` of x86-64: past the guest's page cache, so that what is written is what the disk gets.
const O_DIRECT: i32 = 0x4000;
/// Bytes of one write, as a database's.
const BLOCK_BYTES: usize = 16 << 10;
/// Written round and round in the first MiB.
const BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// Writes at `bytes_per_s` for ever. Each block has its time from `start` on; one that is late is made up for, so the mean is kept.
pub(crate) fn write(bytes_per_s: u64, start: Instant) {
    let disk = match OpenOptions::new().write(true).custom_flags(O_DIRECT).open(DISK) {
        Ok(disk) => disk,
        Err(error) => return println!("gnomon-load failed: {DISK}: {error}"),
    };
    if let Err(error) = write_to(&disk, bytes_per_s.max(1), start) {
        println!("gnomon-load failed: writing to {DISK}: {error}");
    }
}

fn write_to(disk: &File, bytes_per_s: u64, start: Instant) -> std::io::Result<()> {
    let block = Block([0x5a; BLOCK_BYTES]);
    let pace_s = BLOCK_BYTES as f64 / bytes_per_s as f64;
    for number in 0u64.. {
        let due = start + Duration::from_secs_f64(number as f64 * pace_s);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        disk.write_all_at(&block.0, number % BLOCKS * BLOCK_BYTES as u64)?;
    }
    Ok(())
}
