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

/// Writes `new` where 0 is, in one step; whether it did.
///
/// # Safety
/// `place` points into a map's value.
#[inline(always)]
#[cfg(target_arch = "bpf")]
#[allow(dead_code)] // not in every object
pub unsafe fn claim(place: *mut u64, new: u64) -> bool {
    let mut found = 0_u64;
    // SAFETY: aligned as all records of the maps are, and by the contract above valid; the instruction (5.12) compares with r0 and leaves there
    // what it found.
    unsafe {
        core::arch::asm!("r0 = cmpxchg_64({p} + 0, r0, {n})", p = in(reg) place, n = in(reg) new, inout("r0") found);
    }
    found == 0
}

#[cfg(not(target_arch = "bpf"))]
#[allow(dead_code)]
pub unsafe fn claim(_place: *mut u64, _new: u64) -> bool {
    false
}

/// The element at an index, of `N` that lie in a row; the first one for an index that is none.
///
/// In one piece with its check: the compiler may load an index anew from the stack between a check and its use, and verifiers before 6.4 or so
/// do not know that it is the same.
///
/// # Safety
/// `first` points to the first of `N` elements.
#[inline(always)]
#[cfg(target_arch = "bpf")]
#[allow(dead_code)] // not in every object
pub unsafe fn element<const N: usize>(first: *mut u64, index: u32) -> *mut u64 {
    let mut element = first;
    // SAFETY: within the row, by the comparison, and by the contract above.
    unsafe {
        core::arch::asm!(
            "if {i} < {n} goto +1",
            "{i} = 0",
            "{i} <<= 3",
            "{p} += {i}",
            i = inout(reg) u64::from(index) => _,
            p = inout(reg) element,
            n = const N,
        );
    }
    element
}

#[cfg(not(target_arch = "bpf"))]
#[allow(dead_code)]
pub unsafe fn element<const N: usize>(first: *mut u64, _index: u32) -> *mut u64 {
    first
}
