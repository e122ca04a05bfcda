//! The block probe: what the VMs' processes read and wrote on the host's disks, how long the disks took, and how long requests stood
//! in the host's queues before.
//!
//! Runs thrice per request of a block device. Who made a request is looked up while its maker is still the running thread (QEMU's, a worker of
//! its thread pool or of its io_uring), since the driver may get it from a worker of the kernel and completes it in an interrupt. A
//! request whose maker is no VM's may still carry a VM's control group: write-back under cgroup version 2, and the file behind a loop device.
//!
//! Devices without requests (device mapper, md, the head of NVMe multipath) are seen at the devices below them. Those in memory (zram, brd, pmem) have
//! none below them and are not: a program at `block_bio_queue` would run for each bio of every disk to tell of a few whose I/O is a copy. A bio merged
//! into a request counts as the request's maker's. Commands that bypass the block layer's reads and writes (SCSI generic) are not seen.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod atomic;
mod disk_accounts;
mod member;
mod object;
mod request;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint};
use aya_ebpf::programs::BtfTracePointContext;
use disk_accounts::{Outcome, book};
use gnomon_common::abi::block::{BLOCK_CGROUPS_MAX, BLOCK_TGIDS_MAX, REQUESTS_MAX, Request, VM_NONE};
use request::Rq;

/// Which processes are VMs, written by the agent.
#[btf_map]
static TGID_VM: HashMap<u32, u32, BLOCK_TGIDS_MAX> = HashMap::new();

/// Which control groups are VMs', by the number of their inode; written by the agent.
#[btf_map]
static CGROUP_VM: HashMap<u64, u32, BLOCK_CGROUPS_MAX> = HashMap::new();

/// Requests under way, by address. The kernel makes them once per queue and uses them again and again, so an entry whose end was missed is
/// overwritten: the map needs no eviction, and what finds no room can be counted.
#[btf_map]
static REQUESTS: HashMap<u64, Request, REQUESTS_MAX> = HashMap::new();

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// `(struct request *rq)`: attached to `block_io_start`, where a request is made of a bio, or before 6.4 to `block_rq_insert`, which runs in the
/// maker's context as well but not for requests that go to the driver at once.
#[btf_tracepoint(function = "block_io_start")]
pub fn request_made(ctx: BtfTracePointContext) -> i32 {
    let rq = Rq::from_arg(ctx.arg(0));
    if rq.is_transfer() {
        remember(rq, ctx.tgid(), 0);
    }
    0
}

/// `(struct request *rq)`: the driver gets a request.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn request_issued(ctx: BtfTracePointContext) -> i32 {
    let rq = Rq::from_arg(ctx.arg(0));
    if !rq.is_transfer() {
        return 0;
    }
    if let Some(request) = REQUESTS.get_ptr_mut(rq.address()) {
        // SAFETY: the entry is this request's alone until it completes.
        unsafe { (*request).issued_ns = now_ns() };
    } else {
        remember(rq, ctx.tgid(), 1);
    }
    0
}

#[inline(always)]
fn remember(rq: Rq, tgid: u32, issued: u64) {
    let made_ns = now_ns();
    let request = Request { made_ns, issued_ns: made_ns * issued, vm: maker(rq, tgid), reserved: 0 };
    // Where there is no room, completion finds no entry and counts it.
    let _ = REQUESTS.insert(rq.address(), request, u64::from(BPF_ANY));
}

/// The VM that the running thread is of, else the one whose control group the request is charged to.
#[inline(always)]
fn maker(rq: Rq, tgid: u32) -> u32 {
    // SAFETY: copied at once; an entry that the agent removes meanwhile is still valid memory.
    if let Some(&vm) = unsafe { TGID_VM.get(tgid) } {
        return vm;
    }
    // SAFETY: as above.
    match unsafe { CGROUP_VM.get(rq.cgroup()) } {
        Some(&vm) => vm,
        None => VM_NONE,
    }
}

/// `(struct request *rq, blk_status_t error, unsigned int nr_bytes)`: a request has ended, or some of its bytes have.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn request_completed(ctx: BtfTracePointContext) -> i32 {
    let rq = Rq::from_arg(ctx.arg(0));
    if !rq.is_transfer() {
        return 0;
    }
    let (error, bytes) = (ctx.arg::<u64>(1) & 0xff, ctx.arg::<u32>(2));
    let has_ended = bytes >= rq.bytes_left();
    // SAFETY: copied at once; nobody else completes this request.
    let request = unsafe { REQUESTS.get(rq.address()) }.copied();
    book(rq, request, Outcome { now_ns: now_ns(), bytes: if error == 0 { bytes } else { 0 }, has_ended });
    if has_ended && request.is_some() {
        let _ = REQUESTS.remove(rq.address());
    }
    0
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
