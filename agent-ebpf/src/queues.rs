//! The queue probe: how long packets for VMs wait at their devices until the VM takes them.
//!
//! A packet waits from the moment the kernel sends it out of the VM's device (a tap) until whoever reads that device (QEMU, or a vhost thread)
//! has copied it and gives its memory back. While it waits its address stands in a table; a packet whose place there is taken is not timed, nor is
//! one of a device that has enough of them there. So what is told is a sample, of all lengths alike. One that is dropped is not counted.
//!
//! Runs once for each packet that is sent on the host, which looks at its device as the drop probe does, and once for each that is given back,
//! which compares its address with one element of an array and looks at nothing else: what a packet that was received says of its device may be
//! anything by then.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod atomic;
mod member;
mod net_device;
mod object;

use atomic::{add, claim, element};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use gnomon_common::abi::block::{LATENCY_BUCKETS, latency_bucket};
use gnomon_common::abi::drops::TAPS_MAX;
use gnomon_common::abi::queues::{TIMED_MAX, TIMED_PER_TAP_MAX, TapQueue, TimedPacket, place_of};
use net_device::own_device_of;

/// Which devices are VMs', written by the agent, and how long packets waited there.
#[btf_map]
static TAPS: HashMap<u32, TapQueue, TAPS_MAX> = HashMap::new();

/// Where a pointer becomes a number: the verifier lets nobody calculate with one that it knows to be a packet's.
#[btf_map]
static NUMBERS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The packets that wait, by [`place_of`] their addresses.
#[btf_map]
static TIMED: Array<TimedPacket, TIMED_MAX> = Array::new();

/// `(struct sk_buff *skb)`: the packet is handed to its device's queue.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn packet_queued(ctx: BtfTracePointContext) -> i32 {
    let packet: *const u8 = ctx.arg(0);
    let Some(ifindex) = own_device_of(packet) else {
        return 0;
    };
    let Some(tap) = TAPS.get_ptr_mut(ifindex) else {
        return 0;
    };
    // SAFETY: a value of a map, which other CPUs write as well: what it reads may be old, and a few more are timed.
    let timed = unsafe { (&raw const (*tap).timed).read_volatile() };
    // Below zero for a device that was watched anew while packets of before were timed.
    if timed as i64 >= TIMED_PER_TAP_MAX as i64 {
        return 0;
    }
    let Some(number) = NUMBERS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a value of a map, this CPU's own; no other program of it comes in between.
    let packet = unsafe {
        number.write_volatile(packet as u64);
        number.read_volatile()
    };
    let Some(place) = TIMED.get_ptr_mut(place_of(packet)) else {
        return 0;
    };
    // SAFETY: an element of the map. Nobody else writes it once it is claimed: the packet is this CPU's until the device has it.
    unsafe {
        if claim(&raw mut (*place).packet, packet) {
            (*place).queued_ns = bpf_ktime_get_ns();
            (*place).ifindex = ifindex;
            add(&raw mut (*tap).timed, 1);
        }
    }
    0
}

/// `(struct sk_buff *skb, void *location)`: a packet that arrived where it was to go is given back.
#[raw_tracepoint(tracepoint = "consume_skb")]
pub fn packet_taken(ctx: RawTracePointContext) -> i32 {
    let Some((tap, queued_ns)) = leave(ctx.arg(0)) else {
        return 0;
    };
    // SAFETY: takes no argument.
    let waited_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(queued_ns);
    // SAFETY: a value of a map, which other CPUs add to as well; the buckets lie in a row.
    unsafe {
        add(&raw mut (*tap).waited_ns, waited_ns);
        let first = (&raw mut (*tap).waits_log2).cast();
        add(element::<LATENCY_BUCKETS>(first, latency_bucket(waited_ns) as u32), 1);
    }
    0
}

/// `(struct sk_buff *skb, void *location, ...)`: a packet is dropped.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn packet_lost(ctx: RawTracePointContext) -> i32 {
    leave(ctx.arg(0));
    0
}

/// Ends the timing of a packet: where it waited, if that is still watched, and since when. `None` if it was not timed.
#[inline(always)]
fn leave(packet: u64) -> Option<(*mut TapQueue, u64)> {
    let place = TIMED.get_ptr_mut(place_of(packet))?;
    // SAFETY: an element of the map. A packet is given back once, so nobody else writes the element that it has until it is free again.
    let (queued_ns, ifindex) = unsafe {
        if (&raw const (*place).packet).read_volatile() != packet {
            return None;
        }
        let told = ((*place).queued_ns, (*place).ifindex);
        (&raw mut (*place).packet).write_volatile(0);
        told
    };
    let tap = TAPS.get_ptr_mut(ifindex)?;
    // SAFETY: a value of a map; one less.
    unsafe { add(&raw mut (*tap).timed, u64::MAX) };
    Some((tap, queued_ns))
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
