//! Records of the exits probe (`agent-ebpf/src/exits.rs`), and what the reasons of exits are called.
//!
//! A vCPU's thread alone writes its [`VcpuAccount`]: no addition is atomic. The agent reads it meanwhile; counts of one account may be an exit apart.

/// How many processes one host can have under measurement.
pub const EXIT_TGIDS_MAX: usize = super::sched::TGIDS_MAX;

/// How many vCPUs one host can have under measurement. What a vCPU beyond that does is not counted.
pub const VCPUS_MAX: usize = 8_192;

/// Kinds of reasons: [`ExitReason`].
pub const EXIT_REASONS: usize = 14;

/// Room for them in an account: a power of two, so that no index the verifier sees leads out of it.
pub const EXIT_REASONS_ROOM: usize = 16;

/// Why a vCPU left its guest. KVM tells the processor's own reason, of which there are far more; the kinds are the same for Intel's and AMD's.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ExitReason {
    /// The guest has nothing to do (`HLT`).
    Halt,
    /// An interrupt of the host, the timer's included.
    Interrupt,
    /// A wanted exit as soon as the guest takes interrupts.
    InterruptWindow,
    /// A port of a device.
    Io,
    /// Memory of a device, where the processor tells it from other memory.
    Mmio,
    /// Memory that the host has not mapped; on AMD a device's memory as well.
    PageFault,
    /// The interrupt controller.
    Apic,
    /// A model-specific register.
    Msr,
    /// `CPUID`.
    Cpuid,
    /// The guest asked its hypervisor for something.
    Hypercall,
    /// A spin loop (`PAUSE`): mostly for a lock whose holder does not run.
    Pause,
    /// An exception in the guest.
    Exception,
    /// A control or debug register.
    Register,
    /// Anything else.
    Other,
}

impl ExitReason {
    /// All of them, each at its own index.
    pub const ALL: [Self; EXIT_REASONS] = [
        Self::Halt,
        Self::Interrupt,
        Self::InterruptWindow,
        Self::Io,
        Self::Mmio,
        Self::PageFault,
        Self::Apic,
        Self::Msr,
        Self::Cpuid,
        Self::Hypercall,
        Self::Pause,
        Self::Exception,
        Self::Register,
        Self::Other,
    ];

    /// In a metric's label: as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Interrupt => "interrupt",
            Self::InterruptWindow => "interrupt_window",
            Self::Io => "io",
            Self::Mmio => "mmio",
            Self::PageFault => "page_fault",
            Self::Apic => "apic",
            Self::Msr => "msr",
            Self::Cpuid => "cpuid",
            Self::Hypercall => "hypercall",
            Self::Pause => "pause",
            Self::Exception => "exception",
            Self::Register => "register",
            Self::Other => "other",
        }
    }

    /// The kind of the reason that the tracepoint `kvm_exit` tells with `isa`, which is `KVM_ISA_VMX` or `KVM_ISA_SVM` of `arch/x86/kvm/trace.h`.
    #[inline(always)]
    pub const fn of(isa: u32, reason: u32) -> Self {
        match isa {
            // The upper half says that entering failed.
            1 => Self::of_vmx(reason & 0xffff),
            2 => Self::of_svm(reason),
            _ => Self::Other,
        }
    }

    /// Intel's: `arch/x86/include/uapi/asm/vmx.h`.
    #[inline(always)]
    const fn of_vmx(reason: u32) -> Self {
        match reason {
            0 => Self::Exception,
            1 | 52 => Self::Interrupt,
            7 | 8 => Self::InterruptWindow,
            10 => Self::Cpuid,
            12 => Self::Halt,
            18 => Self::Hypercall,
            28 | 29 => Self::Register,
            30 => Self::Io,
            31 | 32 | 84 | 85 => Self::Msr,
            40 => Self::Pause,
            43..=45 | 56 => Self::Apic,
            48 => Self::PageFault,
            49 => Self::Mmio,
            _ => Self::Other,
        }
    }

    /// AMD's: `arch/x86/include/uapi/asm/svm.h`.
    #[inline(always)]
    const fn of_svm(reason: u32) -> Self {
        match reason {
            0x000..=0x03f | 0x065 | 0x08f..=0x09f => Self::Register,
            0x040..=0x05f => Self::Exception,
            0x060 | 0x061 => Self::Interrupt,
            0x064 => Self::InterruptWindow,
            0x072 => Self::Cpuid,
            0x077 => Self::Pause,
            0x078 | 0x0a6 => Self::Halt,
            0x07b => Self::Io,
            0x07c => Self::Msr,
            0x081 => Self::Hypercall,
            0x400 => Self::PageFault,
            0x401 | 0x402 => Self::Apic,
            _ => Self::Other,
        }
    }
}

/// What one vCPU did. Value of the map `VCPUS`, keyed by its thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuAccount {
    /// Exits by [`ExitReason`].
    pub exits: [u64; EXIT_REASONS_ROOM],
    /// Time from them to the next entry, in nanoseconds; what has not ended is not in it.
    pub away_ns: [u64; EXIT_REASONS_ROOM],
    /// The number that the agent gave the VM.
    pub vm: u32,
    /// The thread's process, which tells the thread from a later one of the same number.
    pub tgid: u32,
    /// Why it left its guest last: an [`ExitReason`].
    pub reason: u32,
    /// Fills the record: the kernel refuses one with bytes that are not set.
    pub reserved: u32,
    /// When it left it, on `CLOCK_MONOTONIC`; zero while it is in there. Read last: a time that has ended by then is not in `away_ns` either.
    pub left_ns: u64,
}

const _: () = assert!(size_of::<VcpuAccount>() == 2 * 8 * EXIT_REASONS_ROOM + 24 && EXIT_REASONS <= EXIT_REASONS_ROOM);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_at_its_own_index() {
        for (index, reason) in ExitReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }

    #[test]
    fn both_processors_reasons_are_of_the_same_kinds() {
        let (vmx, svm) = (1, 2);
        for (intel, amd, kind) in [
            (12, 0x78, ExitReason::Halt),
            (1, 0x60, ExitReason::Interrupt),
            (30, 0x7b, ExitReason::Io),
            (48, 0x400, ExitReason::PageFault),
            (32, 0x7c, ExitReason::Msr),
            (28, 0x010, ExitReason::Register),
            (40, 0x77, ExitReason::Pause),
        ] {
            assert_eq!((ExitReason::of(vmx, intel), ExitReason::of(svm, amd)), (kind, kind));
        }
        assert_eq!(ExitReason::of(vmx, 0x8000_0000 | 33), ExitReason::Other, "an entry that failed");
        assert_eq!(ExitReason::of(svm, u32::MAX), ExitReason::Other, "an invalid guest");
        assert_eq!(ExitReason::of(3, 12), ExitReason::Other, "another processor");
    }
}
