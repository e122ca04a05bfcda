//! Adding to a value of a map that other CPUs, and interrupts on this one, add to as well.

/// Atomic: the library's own operations are not there for this target, which has no compare-and-swap of every width.
///
/// # Safety
/// `count` points into a map's value.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub unsafe fn add(count: *mut u64, amount: u64) {
    // SAFETY: aligned as all records of the maps are, and by the contract above valid.
    unsafe { core::arch::asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) count, v = in(reg) amount) };
}

#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(_count: *mut u64, _amount: u64) {}
