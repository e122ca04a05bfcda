//! Which network device a packet is on.
//!
//! Devices are told apart by their number, which is one network namespace's own: packets of other namespaces than the agent's are on none.

use crate::member::member;
use aya_ebpf::Global;

#[unsafe(no_mangle)]
static SKB_DEVICE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DEVICE_NUMBER_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DEVICE_NAMESPACE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NAMESPACE_NUMBER_OFFSET: Global<u32> = Global::new(0);
/// Of the agent's network namespace.
#[unsafe(no_mangle)]
static OWN_NAMESPACE: Global<u32> = Global::new(0);

/// The number of the device that a packet is on, if that is in the agent's network namespace.
#[inline(always)]
pub fn own_device_of(skb: *const u8) -> Option<u32> {
    let device = member::<*const u8>(skb, &SKB_DEVICE_OFFSET);
    if device.is_null() {
        return None;
    }
    let namespace = member::<*const u8>(device, &DEVICE_NAMESPACE_OFFSET);
    if namespace.is_null() || member::<u32>(namespace, &NAMESPACE_NUMBER_OFFSET) != OWN_NAMESPACE.load() {
        return None;
    }
    Some(member(device, &DEVICE_NUMBER_OFFSET))
}
