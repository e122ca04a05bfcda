//! Reads members of the kernel's structures by plain loads: see `task.rs` for how their offsets come here.

use aya_ebpf::Global;

/// The member at that offset of what `of` points to.
#[inline(always)]
pub fn member<T: Copy>(of: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: `of` is a pointer that the verifier knows the type of, and it has checked that a member of this size lies at the offset; a load
    // through a null or stale pointer gives 0.
    unsafe { of.byte_add(offset.load() as usize).cast::<T>().read() }
}
