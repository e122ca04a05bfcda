//! The drop probe: why the kernel drops packets on the network devices of VMs.
//!
//! Runs once per packet that is dropped anywhere on the host, and looks at its device: a packet on one that is not watched costs a few
//! loads and a look-up, and nothing at all happens to packets that arrive. Packets of other network namespaces are left alone. Which reasons there
//! are, and what they are called, the running kernel's types say; this program only counts.
//!
//! A packet that a VM sent counts on its device only until it is on its way through the host: what a bridge or a route does to it later is
//! theirs.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod atomic;
mod member;
mod net_device;
mod object;

use atomic::add;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::{btf_map, btf_tracepoint};
use aya_ebpf::programs::BtfTracePointContext;
use gnomon_common::abi::drops::{DROPS_MAX, DropKey, TAPS_MAX};
use net_device::own_device_of;

/// Which devices are VMs', written by the agent.
#[btf_map]
static TAPS: HashMap<u32, u32, TAPS_MAX> = HashMap::new();

/// What was dropped on them.
#[btf_map]
static DROPS: HashMap<DropKey, u64, DROPS_MAX> = HashMap::new();

/// Drops that found no room there.
#[btf_map]
static DROPS_MISSED: Array<u64, 1> = Array::new();

/// `(struct sk_buff *skb, void *location, enum skb_drop_reason reason)`: the reason since 5.17, and a socket behind it since 6.11.
#[btf_tracepoint(function = "kfree_skb")]
pub fn packet_dropped(ctx: BtfTracePointContext) -> i32 {
    let Some(ifindex) = own_device_of(ctx.arg(0)) else {
        return 0;
    };
    // SAFETY: only whether there is one.
    if unsafe { TAPS.get(ifindex) }.is_none() {
        return 0;
    }
    count(&DropKey { ifindex, reason: ctx.arg::<u32>(2) });
    0
}

#[inline(always)]
fn count(key: &DropKey) {
    let mut counter = DROPS.get_ptr_mut(key);
    if counter.is_none() {
        // Another CPU may have made it just now.
        let _ = DROPS.insert(key, 0, u64::from(BPF_NOEXIST));
        counter = DROPS.get_ptr_mut(key);
    }
    if let Some(counter) = counter.or_else(|| DROPS_MISSED.get_ptr_mut(0)) {
        // SAFETY: a value of a map, which other CPUs add to as well.
        unsafe { add(counter, 1) };
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
