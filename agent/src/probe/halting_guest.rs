//! The smallest guest that KVM runs, for the exits probe to see: one vCPU, one page of memory, one instruction.
//!
//! A vCPU begins at the reset vector, in the last page below 4 GiB. All that page is `hlt`, and where the interrupt controller is not the kernel's a
//! halt ends `KVM_RUN` at once. Nothing of it outlives the call.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::{c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

/// `include/uapi/linux/kvm.h`.
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
/// Since 5.14.
const KVM_GET_STATS_FD: c_ulong = 0xaece;
const KVM_EXIT_HLT: u32 = 5;
/// Of `exit_reason` in `struct kvm_run`.
const EXIT_REASON_OFFSET: usize = 8;

/// Where the vCPU's first instruction is.
const PAGE_ADDRESS: u64 = 0xffff_f000;
const PAGE_BYTES: usize = 4096;
/// `hlt`, as a byte.
const HLT: u8 = 0xf4;

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// `struct kvm_stats_desc` without the name behind it.
const DESCRIPTOR_BYTES: usize = 16;

/// Runs a guest on this thread until it halts, which is at once, and returns how many instructions KVM has executed in the processor's place, by its
/// own count. Where it cannot have the processor run a vCPU's first mode that is the one, and the guest is never entered.
///
/// # Errors
/// If `/dev/kvm` may not be used, the guest ends otherwise, or this kernel has no such count (before 5.14).
pub fn halt_a_guest() -> io::Result<u64> {
    if !cfg!(target_arch = "x86_64") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "its one instruction is x86-64's"));
    }
    let kvm = open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let page = Pages::anonymous(PAGE_BYTES)?;
    // SAFETY: the mapping is writable, of that length, and known to nobody else yet.
    unsafe { page.start.cast::<u8>().write_bytes(HLT, PAGE_BYTES) };
    let vm = made(kvm.as_fd(), KVM_CREATE_VM)?;
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: PAGE_ADDRESS,
        memory_size: PAGE_BYTES as u64,
        userspace_addr: page.start.expose_provenance() as u64,
    };
    call(vm.as_fd(), KVM_SET_USER_MEMORY_REGION, (&raw const region).expose_provenance())?;
    let vcpu = made(vm.as_fd(), KVM_CREATE_VCPU)?;
    let run_bytes = call(kvm.as_fd(), KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let run_bytes = usize::try_from(run_bytes).map_err(|_| Errno::INVAL)?;
    if run_bytes < EXIT_REASON_OFFSET + size_of::<u32>() {
        return Err(Errno::INVAL.into());
    }
    let run = Pages::of(vcpu.as_fd(), run_bytes)?;
    call(vcpu.as_fd(), KVM_RUN, 0)?;
    // SAFETY: within the mapping, aligned, and written by `KVM_RUN` alone, which has returned.
    let reason = unsafe { run.start.byte_add(EXIT_REASON_OFFSET).cast::<u32>().read() };
    if reason != KVM_EXIT_HLT {
        return Err(io::Error::other(format!("it ended with KVM's reason {reason}")));
    }
    let mut statistics = Vec::new();
    File::from(made(vcpu.as_fd(), KVM_GET_STATS_FD)?).read_to_end(&mut statistics)?;
    statistic(&statistics, b"insn_emulation").ok_or_else(|| io::Error::other("KVM does not count what it emulates"))
}

/// A value of KVM's binary statistics: `struct kvm_stats_header`, then descriptors with names, then values.
fn statistic(bytes: &[u8], name: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let (name_bytes, count, descriptors, values) = (word(4)?, word(8)?, word(16)?, word(20)?);
    (0..count).find_map(|index| {
        let at = descriptors + index * (DESCRIPTOR_BYTES + name_bytes);
        let padded = bytes.get(at + DESCRIPTOR_BYTES..)?.get(..name_bytes)?;
        let found = padded.split(|&byte| byte == 0).next()?;
        let value = (found == name).then(|| bytes.get(values + word(at + 8)?..)?.first_chunk())??;
        Some(u64::from_ne_bytes(*value))
    })
}

/// A call that makes a file.
fn made(of: BorrowedFd<'_>, request: c_ulong) -> io::Result<OwnedFd> {
    let fd = call(of, request, 0)?;
    // SAFETY: new, and this process's alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `argument` is a number, or the address of the structure that the request wants.
fn call(of: BorrowedFd<'_>, request: c_ulong, argument: usize) -> io::Result<c_int> {
    // SAFETY: the requests above read no more than the one structure, and write to mappings that outlive the call.
    let result = unsafe { libc::ioctl(of.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Memory that is unmapped when dropped.
struct Pages {
    start: *mut c_void,
    bytes: usize,
}

impl Pages {
    fn anonymous(bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
        Ok(Self { start, bytes })
    }

    fn of(file: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: a mapping of this type's own. If it fails, it leaks: nothing to be done.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistic_is_found_by_its_name() {
        let (name_bytes, values) = (8, 24 + 2 * (16 + 8));
        let descriptor = |name: &[u8; 8], offset: u32| {
            let words = [0u32, 1 << 16, offset, 0];
            [words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>(), name.to_vec()].concat()
        };
        let header: Vec<u8> = [0u32, name_bytes, 2, 0, 24, values].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let data = [7u64, 9].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let bytes = [header, descriptor(b"exitsxx\0", 0), descriptor(b"exits\0\0\0", 8), data].concat();
        assert_eq!((statistic(&bytes, b"exits"), statistic(&bytes, b"exit")), (Some(9), None));
        for cut in 0..bytes.len() {
            assert_eq!(statistic(&bytes[..cut], b"exits"), None, "at {cut}");
        }
    }
}
