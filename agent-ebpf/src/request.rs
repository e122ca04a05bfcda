//! Reads members of the kernel's `struct request` and of what it points to, by plain loads: see `task.rs` for how offsets come here.
//!
//! The verifier follows the types from member to member; a load through a pointer that is null or stale gives 0.

use super::member::member;
use aya_ebpf::Global;

#[unsafe(no_mangle)]
static RQ_QUEUE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static RQ_FLAGS_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static RQ_BYTES_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static RQ_BIO_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static QUEUE_DISK_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MAJOR_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DISK_MINOR_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BIO_BLKG_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BLKG_BLKCG_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BLKCG_CGROUP_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_NODE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NODE_ID_OFFSET: Global<u32> = Global::new(0);

/// `REQ_OP_MASK` of `include/linux/blk_types.h`.
const OP_MASK: u32 = 0xff;
/// `REQ_OP_READ`.
const OP_READ: u32 = 0;
/// `REQ_OP_WRITE`.
const OP_WRITE: u32 = 1;

/// A request that the kernel handed to the running program; valid for as long as that program runs.
#[derive(Clone, Copy)]
pub struct Rq(*const u8);

impl Rq {
    /// Wraps an argument of a BTF tracepoint, which is never null.
    #[inline(always)]
    pub fn from_arg(rq: *const u8) -> Self {
        Self(rq)
    }

    /// What tells it from all others under way.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn operation(self) -> u32 {
        member::<u32>(self.0, &RQ_FLAGS_OFFSET) & OP_MASK
    }

    /// Whether it reads or writes data.
    #[inline(always)]
    pub fn is_transfer(self) -> bool {
        self.operation() <= OP_WRITE
    }

    /// Whether it reads.
    #[inline(always)]
    pub fn is_read(self) -> bool {
        self.operation() == OP_READ
    }

    /// Bytes not yet transferred.
    #[inline(always)]
    pub fn bytes_left(self) -> u32 {
        member(self.0, &RQ_BYTES_OFFSET)
    }

    /// Major and first minor number of the whole disk; zeros for a queue that has none.
    #[inline(always)]
    pub fn disk(self) -> (u32, u32) {
        let queue = member::<*const u8>(self.0, &RQ_QUEUE_OFFSET);
        if queue.is_null() {
            return (0, 0);
        }
        let disk = member::<*const u8>(queue, &QUEUE_DISK_OFFSET);
        if disk.is_null() {
            return (0, 0);
        }
        (member(disk, &DISK_MAJOR_OFFSET), member(disk, &DISK_MINOR_OFFSET))
    }

    /// The control group it is charged to, as the number of the group's inode; 0 for none.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        let mut at = self.0;
        for offset in [&RQ_BIO_OFFSET, &BIO_BLKG_OFFSET, &BLKG_BLKCG_OFFSET, &BLKCG_CGROUP_OFFSET, &CGROUP_NODE_OFFSET]
        {
            at = member::<*const u8>(at, offset);
            if at.is_null() {
                return 0;
            }
        }
        member(at, &NODE_ID_OFFSET)
    }
}
