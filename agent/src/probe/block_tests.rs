//! The block probe on the running kernel. Each test says so and passes where it may not load eBPF programs, or where there is no disk below
//! the directory of temporary files.

use super::{BlockProbe, ProbeError, StatsEnabled};
use crate::host::process::Proc;
use crate::reading::{BlockReading, DiskCounters, DiskId};
use gnomon_common::abi::block::{Direction, DiskAccount};
use gnomon_common::wire::VmId;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use uuid::Uuid;

const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 256;
const BYTES: u64 = (BLOCK * BLOCKS) as u64;

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn load() -> Option<BlockProbe> {
    match BlockProbe::load() {
        Ok(probe) => Some(probe),
        Err(error @ (ProbeError::NoBtf { .. } | ProbeError::NotPermitted { .. })) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// A directory on a disk with requests, and files in it that bypass the page cache.
struct Disk(TempDir);

impl Disk {
    fn find() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path().metadata().unwrap().dev();
        let (major, minor) = (libc::major(dev), libc::minor(dev));
        if !Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists() {
            println!("skipped: {} is on no disk", dir.path().display());
            return None;
        }
        Some(Self(dir))
    }

    /// A file whose blocks lie on the disk already: what is counted later is data, not the file system's own.
    fn file(&self, name: &str) -> File {
        let path = self.0.path().join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.unwrap();
        write(&file);
        file.sync_all().unwrap();
        file
    }
}

fn write(file: &File) {
    let data = Aligned([7; BLOCK]);
    for block in 0..BLOCKS {
        file.write_all_at(&data.0, (block * BLOCK) as u64).unwrap();
    }
}

fn read(file: &File) {
    let mut data = Aligned([0; BLOCK]);
    for block in 0..BLOCKS {
        file.read_exact_at(&mut data.0, (block * BLOCK) as u64).unwrap();
    }
}

/// Runs `work` in a child process, once `prepare` has seen its process id.
pub(super) fn in_child(prepare: impl FnOnce(u32), work: impl FnOnce()) {
    let (mut go_reader, mut go) = pipe().unwrap();
    // SAFETY: the child does plain I/O on what it has inherited and leaves without unwinding.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let _ = go_reader.read_exact(&mut [0]);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends this process.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    prepare(pid as u32);
    go.write_all(&[1]).unwrap();
    let mut status = 0;
    // SAFETY: waits for the child above.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "the child failed");
}

fn total(counters: &DiskCounters, direction: impl Fn(&DiskAccount) -> &Direction) -> Direction {
    let mut sum = Direction::default();
    for account in counters.values() {
        let of = direction(account);
        sum.bytes += of.bytes;
        sum.operations += of.operations;
        sum.device_ns += of.device_ns;
        sum.queued_ns += of.queued_ns;
        for (sum, count) in sum.device_log2.iter_mut().zip(of.device_log2) {
            *sum += count;
        }
    }
    sum
}

fn written(reading: &BlockReading, vm: VmId) -> Direction {
    total(&reading.vms[&vm], |account| &account.write)
}

/// The counts of `BYTES` in requests that were all timed.
fn assert_exact(counted: &Direction) {
    assert_eq!(counted.bytes, BYTES, "{counted:?}");
    assert!(counted.operations > 0 && counted.operations <= BYTES / 4096, "{counted:?}");
    assert_eq!(counted.device_log2.iter().sum::<u64>(), counted.operations);
    assert!(counted.device_ns / counted.operations > 1_000, "less than a microsecond each: {counted:?}");
}

#[test]
fn what_a_process_reads_and_writes_past_the_cache_is_its_vms_to_the_byte() {
    let Some((mut probe, disk)) = load().zip(Disk::find()) else { return };
    let _timed = StatsEnabled::new();
    let file = disk.file("a");
    in_child(
        |pid| probe.track(vm(1), &[pid], &[]).unwrap(),
        || {
            write(&file);
            read(&file);
        },
    );
    probe.track(vm(2), &[1], &[]).unwrap();
    let reading = probe.drain().unwrap();
    for direction in [written(&reading, vm(1)), total(&reading.vms[&vm(1)], |account| &account.read)] {
        assert_exact(&direction);
    }
    assert!(reading.vms[&vm(1)].len() <= 2, "one disk, or one and what it lies on: {:?}", reading.vms[&vm(1)].keys());
    for cost in probe.cost().unwrap() {
        assert!(cost.runs == 0 || cost.run_ns < 10_000 * cost.runs, "{cost:?}");
        println!("{}: {} ns a run", cost.program, cost.run_ns / cost.runs.max(1));
    }
}

#[test]
fn what_no_vm_writes_is_the_rest_of_the_host() {
    let Some((mut probe, disk)) = load().zip(Disk::find()) else { return };
    let file = disk.file("a");
    let before = total(&probe.drain().unwrap().rest, |account| &account.write).bytes;
    in_child(|_| probe.track(vm(1), &[u32::MAX], &[]).unwrap(), || write(&file));
    let reading = probe.drain().unwrap();
    assert_eq!(written(&reading, vm(1)), Direction::default());
    assert!(total(&reading.rest, |account| &account.write).bytes >= before + BYTES);
}

#[test]
fn a_vm_no_longer_tracked_is_forgotten_and_starts_from_zero() {
    let Some((mut probe, disk)) = load().zip(Disk::find()) else { return };
    let file = disk.file("a");
    let own = std::process::id();
    probe.track(vm(1), &[own], &[]).unwrap();
    write(&file);
    assert!(written(&probe.drain().unwrap(), vm(1)).bytes >= BYTES);
    probe.untrack(vm(1)).unwrap();
    assert!(probe.drain().unwrap().vms.is_empty());
    probe.track(vm(1), &[own], &[]).unwrap();
    assert_eq!(written(&probe.drain().unwrap(), vm(1)), Direction::default());
}

/// As for write-back by a worker of the kernel's: the thread is no VM's, the control group is.
#[test]
fn what_no_vms_process_makes_is_its_control_groups() {
    let Some((mut probe, disk)) = load().zip(Disk::find()) else { return };
    let Some(group) = Group::make() else { return };
    let file = disk.file("a");
    let join = |pid: u32| {
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        probe.track(vm(1), &[], &[group.0.metadata().unwrap().ino()]).unwrap();
    };
    in_child(join, || write(&file));
    assert_exact(&written(&probe.drain().unwrap(), vm(1)));
}

/// A control group for block I/O; removed with this.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let hierarchies = ["/sys/fs/cgroup/blkio", "/sys/fs/cgroup"].map(Path::new);
        let is_one = |path: &&Path| path.join("cgroup.procs").exists() && (path.ends_with("blkio") || has_io(path));
        let Some(hierarchy) = hierarchies.iter().copied().find(is_one) else {
            println!("skipped: no hierarchy of control groups for block I/O");
            return None;
        };
        let path = hierarchy.join(format!("gnomon-block-{}", std::process::id()));
        fs::create_dir(&path).inspect_err(|error| println!("skipped: {}: {error}", path.display())).ok()?;
        Some(Self(path))
    }
}

fn has_io(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.subtree_control")).is_ok_and(|text| text.split_whitespace().any(|c| c == "io"))
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// As pmem, and RAM disks: a bio is completed where it is submitted, and no request is ever made. What the kernel charges the process with tells it.
#[test]
fn a_device_in_memory_has_no_requests_to_see_and_its_bytes_are_charged_to_the_process() {
    let Some((mut probe, device)) = load().zip(CompressedMemory::make()) else { return };
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device.path()).unwrap();
    let own = std::process::id();
    probe.track(vm(1), &[own], &[]).unwrap();
    let charged = || Proc::default().io(own, 0).unwrap();
    let before = charged();
    write(&file);
    read(&file);
    let after = charged();
    // A page of the program itself may have been read meanwhile.
    let charged = [after.read_bytes - before.read_bytes, after.write_bytes - before.write_bytes];
    assert!(charged.iter().all(|bytes| (BYTES..BYTES + BYTES / 16).contains(bytes)), "{charged:?}");
    let device = file.metadata().unwrap().rdev();
    let device = DiskId { major: libc::major(device), minor: libc::minor(device) };
    assert_eq!(probe.drain().unwrap().vms[&vm(1)].get(&device), None);
}

/// A zram device; removed with this.
struct CompressedMemory(u32);

impl CompressedMemory {
    const CONTROL: &str = "/sys/class/zram-control";

    fn make() -> Option<Self> {
        // Reading makes one.
        let number = fs::read_to_string(format!("{}/hot_add", Self::CONTROL));
        let number = number.inspect_err(|error| println!("skipped: no zram: {error}")).ok()?;
        let device = Self(number.trim().parse().unwrap());
        fs::write(format!("/sys/block/zram{}/disksize", device.0), BYTES.to_string()).unwrap();
        Some(device)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.0))
    }
}

impl Drop for CompressedMemory {
    fn drop(&mut self) {
        fs::write(format!("{}/hot_remove", Self::CONTROL), self.0.to_string()).unwrap();
    }
}

/// Linux AIO, as QEMU's `io=native`: requests are made in the call, and complete while nobody waits for them.
#[test]
fn asynchronous_requests_are_their_makers() {
    let Some((mut probe, disk)) = load().zip(Disk::find()) else { return };
    let file = disk.file("a");
    in_child(|pid| probe.track(vm(1), &[pid], &[]).unwrap(), || write_asynchronously(&file));
    assert_exact(&written(&probe.drain().unwrap(), vm(1)));
}

/// `struct iocb` of `include/uapi/linux/aio_abi.h`, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

fn write_asynchronously(file: &File) {
    const PWRITE: u16 = 1;
    let data = Aligned([9; BLOCK]);
    let blocks = (0..BLOCKS).map(|block| Iocb {
        opcode: PWRITE,
        fildes: file.as_raw_fd() as u32,
        buf: data.0.as_ptr() as u64,
        nbytes: BLOCK as u64,
        offset: (block * BLOCK) as i64,
        ..Iocb::default()
    });
    let mut blocks: Vec<Iocb> = blocks.collect();
    let mut pointers: Vec<*mut Iocb> = blocks.iter_mut().map(|block| block as *mut Iocb).collect();
    let mut events = vec![[0u64; 4]; BLOCKS];
    let (mut context, mut submitted) = (0u64, 0);
    let count = BLOCKS as libc::c_long;
    // SAFETY: the kernel's own records, which live until all events have come.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, count, &mut context), 0);
        while submitted < BLOCKS {
            let rest = &mut pointers[submitted..];
            let taken = libc::syscall(libc::SYS_io_submit, context, rest.len(), rest.as_mut_ptr());
            assert!(taken > 0, "io_submit: {}", std::io::Error::last_os_error());
            submitted += taken as usize;
        }
        let no_limit = std::ptr::null_mut::<libc::timespec>();
        assert_eq!(libc::syscall(libc::SYS_io_getevents, context, count, count, events.as_mut_ptr(), no_limit), count);
        libc::syscall(libc::SYS_io_destroy, context);
    }
    assert!(events.iter().all(|event| event[2] == BLOCK as u64), "a write failed: {events:?}");
}
