//! A BPF array in this process's memory: shared with the kernel, unmapped when dropped.

use super::ProbeError;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

/// `len` elements of type `T`, which the kernel may change at any time.
pub(super) struct Mapping<T> {
    start: NonNull<T>,
    len: u32,
}

// SAFETY: the mapping belongs to this value alone; how its memory may be accessed is for those to say who get a pointer to it.
unsafe impl<T> Send for Mapping<T> {}

impl<T> Mapping<T> {
    /// Maps a BPF array whose elements are `T`.
    pub(super) fn of(array: BorrowedFd<'_>, len: u32, rights: ProtFlags) -> Result<Self, ProbeError> {
        const WHAT: &str = "mapping an array of the programs";
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(null_mut(), Self::bytes(len), rights, MapFlags::SHARED, array, 0) };
        let start = start.map_err(|e| ProbeError::System { what: WHAT, source: e.into() })?;
        let start = NonNull::new(start.cast())
            .ok_or_else(|| ProbeError::System { what: WHAT, source: std::io::Error::other("mapped at address 0") })?;
        Ok(Self { start, len })
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Where an element is; valid for as long as `self`.
    pub(super) fn at(&self, index: u32) -> *mut T {
        assert!(index < self.len, "index {index} is outside the array of {}", self.len);
        // SAFETY: in bounds of the mapping.
        unsafe { self.start.as_ptr().add(index as usize) }
    }

    fn bytes(len: u32) -> usize {
        len as usize * size_of::<T>()
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `of`, to which nothing refers any more. If it fails, the mapping leaks: nothing to be done.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), Self::bytes(self.len)) };
    }
}
