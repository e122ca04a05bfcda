//! Records of the scheduler probe (`agent-ebpf/src/sched.rs`).

/// How many VMs one host can have under measurement. A slot is freed when its VM goes away.
pub const VM_SLOTS_MAX: usize = 1024;

/// How many VM threads one host can have under measurement, all VMs together (vCPU, iothread, vhost and emulator threads).
pub const THREADS_MAX: usize = 16_384;

/// Buckets of the run-queue wait histogram: bucket `b` counts waits of `2^b ..= 2^(b+1)-1` ns, the last one all longer.
pub const WAIT_BUCKETS: usize = 32;
