//! The agent <-> brain boundary: what is said, and how it becomes bytes.
//!
//! One agent keeps one QUIC connection (ALPN [`ALPN`]). On its first bidirectional stream, the *control stream*, it sends
//! [`AgentMessage::Hello`]; the brain answers [`BrainMessage::Welcome`] or [`BrainMessage::Refused`]. From then on
//! heart-beats, commands, outcomes and their acknowledgements travel there. On its second bidirectional stream, the *live
//! stream*, it sends the [`Report`]s that it makes, on its third, the *backlog stream*, those that wait from before the connection, earlier
//! epochs included, oldest first and with lower priority. The brain answers each with a [`ReportAck`], on the same stream and in its order, once
//! the report is synced to its store; one that it had is answered alike.
//! A host that has no certificate yet joins by another protocol, see [`enrol`]. Every message is one frame, see [`frame`]. This module touches no socket.

pub mod command;
pub mod copies;
pub mod culprit;
pub mod disk;
pub mod enrol;
pub mod exits;
pub mod frame;
pub mod hello;
pub mod id;
pub mod labels;
pub mod migration;
pub mod mode;
pub mod outcome;
pub mod report;
pub mod setting;
pub mod shadow;
pub mod terms;

pub use command::{Action, Command, Fence};
pub use copies::{
    BadCopies, COPIES_MAX, COPY_PATH_BYTES_MAX, DiskCopy, Imaged, Imaging, KeptCopies, RECEIVING_DIRECTORY_BYTES_MAX,
    RECEIVING_URI_BYTES_MAX, Receiving, received_prefix,
};
pub use culprit::{COMMAND_BYTES_MAX, CULPRIT_CORES_MIN, CULPRITS_MAX, CulpritShare, Culprits, Who};
pub use disk::{DISKS_MAX, DiskFlow, DiskRest, DiskShare, DiskWindow, GuestDisk, LatencyHistogram, ProcessIo};
pub use enrol::{
    CaPin, ENROL_ALPN, ENROL_BYTES_MAX, EnrolRefusal, EnrolReply, EnrolRequest, InvalidToken, InvalidTokenId, Token,
    TokenId, TokenSecret, renewal_due,
};
pub use exits::{EXIT_REASONS, ExitReason, ExitShare};
pub use frame::{FRAME_BYTES_MAX, FrameError};
pub use hello::{
    AgentMessage, BrainMessage, CpuBounds, CpuSource, Hello, HostFacts, MemoryBounds, NUMA_NODES_MAX, NumaNode,
    RefusalCode, VersionRange, Welcome,
};
pub use id::{AgentEpoch, CommandId, HostId, InvalidHostId, Sequence, VmId};
pub use labels::{InvalidLabels, LABEL_BYTES_MAX, LABELS_MAX, Labels};
pub use migration::{
    Copied, Immovable, LocalStorage, Migration, MigrationFacts, MigrationProgress, Moved, Whereabouts,
};
pub use mode::{InvalidMode, Mode};
pub use outcome::{LocalCause, Origin, Outcome, OutcomeResult, RefusedCommand};
pub use report::{
    Allocation, CpuWindow, DROP_REASONS_MAX, DemandSource, Dropped, GuestMemory, HostWindow, INTERFACES_MAX,
    InterfaceWindow, Losses, MeanMax, MemoryDemand, MemoryWindow, QueueWindow, ReclaimStalls, Report, ReportAck,
    Traffic, VmState, VmWindow, WaitHistogram,
};
pub use setting::{CPU_WEIGHT_DEFAULT, Means, Setting};
pub use shadow::{
    BLUEPRINT_DISKS_MAX, BLUEPRINT_INTERFACES_MAX, Base, Blueprint, Boot, DiskBlueprint, Load, NETWORK_BURST_MAX,
    PROFILE_STEPS_MAX, PacerWindow, Profile, ProfileStep, READING_BYTES_PER_S, ShadowDone, ShadowFacts, ShadowOrder,
    ShadowSize, ShadowSpec, ShadowWindow, Unshadowable,
};
pub use terms::{InvalidTerm, TERM_BYTES_MAX, VmTerms};

/// The application protocol that both sides demand in the TLS handshake.
pub const ALPN: &[u8] = b"gnomon/1";

/// Protocol versions this build speaks; the hello carries the range and the brain picks the highest common one.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };
