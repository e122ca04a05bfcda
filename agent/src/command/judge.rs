//! Whether a command may be carried out: pure, so that every rule can be tested without a host.
//!
//! The rules in their order, the first that applies decides:
//! 1. the fence: a term lower than the highest seen on this host, or a fence not newer than the last one obeyed for this VM, is stale;
//! 2. the time to live, on `CLOCK_BOOTTIME` from receipt;
//! 3. the target must be a finite positive number;
//! 4. while the VM is being migrated nothing is done to it but to give that up;
//! 5. the host's configuration must allow the means, one more migration, or copies of disks;
//! 6. the VM must be here and active; where libvirt does not answer, that cannot be known;
//! 7. its owner must not have opted it out; before its definition is read that cannot be known either;
//!    to describe a VM changes nothing, and is done unless its owner wants no shadow of it; its dirty rate is measured unless it is opted out; its
//!    disks are copied unless it is opted out, or its owner wants no shadow or no copy;
//! 8. the bounds of the means: the host's, and what the VM is defined with ([`bounds`]).
//!
//! Orders about a shadow end with rule 5: the rest is judged where they are carried out ([`crate::actuate::shadow`]).
//!
//! That far without asking libvirt. What is in force is read next, and the balloon is judged against that: see
//! [`against_what_is_in_force`].
//!
//! A command whose id is known is never judged again: its recorded outcome is the answer. A release is not bounded: what was there
//! before the first change was legal then, also of a VM that has been opted out since.

mod allowed;
mod bounds;

pub use allowed::{Allowed, MeansSet};
pub use bounds::{MemoryResources, Resources, against_what_is_in_force};

use crate::actuate::shadow::is_size;
use crate::host::libvirt::DIRTY_RATE_PERIOD_MAX_S;
use gnomon_common::wire::{Action, Command, CpuBounds, Fence, PROFILE_STEPS_MAX, RefusedCommand, Setting, ShadowOrder};
use std::time::Duration;

/// What the inventory says about a command's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Here and active (running or paused).
    Active {
        /// vCPUs online.
        vcpus: u32,
    },
    /// Not here, or shut off.
    Absent,
    /// Not in the last inventory, which is incomplete because libvirt does not answer.
    Unknown,
}

/// What the judge needs to know of migrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrations {
    /// The most that may be under way from here at once; 0 where none may.
    pub most: u32,
    /// How many are.
    pub under_way: u32,
    /// Whether the command's VM is among them.
    pub of_vm: bool,
}

/// What the judge needs to know beyond the command.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Time since the command was received; `None` if that was before a reboot.
    pub waited: Option<Duration>,
    /// Highest lease term seen on this host.
    pub term_highest: u64,
    /// Last fence obeyed for this VM.
    pub fence_of_vm: Option<Fence>,
    /// The VM.
    pub vm: Sighting,
    /// The host's own limits of CPU.
    pub bounds: CpuBounds,
    /// What else the host's configuration allows.
    pub allowed: Allowed,
    /// What the VM has beside CPU.
    pub resources: Resources,
    /// Whether its owner keeps Gnomon's hands off it; `None` before its definition was read.
    pub opted_out: Option<bool>,
    /// Migrations.
    pub migrations: Migrations,
    /// Shadows that may be here; 0 where none may.
    pub shadows_max: u32,
    /// Whether disks may be copied.
    pub copies: bool,
}

/// The judge's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Carry it out.
    Obey,
    /// Do not, and say why.
    Refuse(RefusedCommand),
    /// It cannot be judged now: libvirt does not answer, or has not told yet.
    Unknowable,
}

/// Applies the rules above.
pub fn judge(command: &Command, circumstances: &Circumstances) -> Verdict {
    match refusal(command, circumstances) {
        Some(refused) => Verdict::Refuse(refused),
        None if matches!(command.action, Action::AbortMigration | Action::Shadow(_)) => Verdict::Obey,
        None if circumstances.vm == Sighting::Unknown || bounds::unknowable(command, &circumstances.resources) => {
            Verdict::Unknowable
        }
        None if circumstances.opted_out.is_none() && command.action != Action::Release => Verdict::Unknowable,
        None => Verdict::Obey,
    }
}

/// Whether, and by how many milliseconds, a time to live has run out. After a reboot every command has: `waited` is `None`.
pub fn expired(command: &Command, waited: Option<Duration>) -> Option<u64> {
    let time_to_live = Duration::from_millis(command.time_to_live_ms);
    match waited {
        Some(waited) if waited <= time_to_live => None,
        Some(waited) => Some(u64::try_from((waited - time_to_live).as_millis()).unwrap_or(u64::MAX)),
        None => Some(0),
    }
}

fn refusal(command: &Command, circumstances: &Circumstances) -> Option<RefusedCommand> {
    let Circumstances {
        waited,
        term_highest,
        fence_of_vm,
        vm,
        bounds,
        allowed,
        resources,
        opted_out,
        migrations,
        shadows_max,
        copies,
    } = *circumstances;
    if command.fence.term < term_highest {
        // The VM's own fence is the more telling answer where it is the newer of the two.
        let of_host = Fence { term: term_highest, generation: 0 };
        return Some(RefusedCommand::StaleFence { seen: of_host.max(fence_of_vm.unwrap_or_default()) });
    }
    if let Some(seen) = fence_of_vm.filter(|seen| command.fence <= *seen) {
        return Some(RefusedCommand::StaleFence { seen });
    }
    if let Some(late_ms) = expired(command, waited) {
        return Some(RefusedCommand::Expired { late_ms });
    }
    match &command.action {
        Action::AbortMigration => return None,
        Action::Shadow(order) => return shadow_refusal(order, shadows_max),
        _ if migrations.of_vm => return Some(RefusedCommand::Migrating),
        Action::Set(target) if is_nonsense(*target) => return Some(RefusedCommand::Nonsense),
        Action::Set(target) if !allowed.means.contains(target.means()) => {
            return Some(RefusedCommand::NotAllowed { means: target.means() });
        }
        Action::Migrate(migration) if migration.timeout_ms == 0 || migration.bandwidth_bytes_per_s == Some(0) => {
            return Some(RefusedCommand::Nonsense);
        }
        Action::Migrate(_) if migrations.most == 0 => return Some(RefusedCommand::MigrationNotAllowed),
        Action::Migrate(_) if migrations.under_way >= migrations.most => {
            return Some(RefusedCommand::TooManyMigrations { most: migrations.most });
        }
        Action::Image(imaging) if imaging.timeout_ms == 0 || imaging.bandwidth_bytes_per_s == Some(0) => {
            return Some(RefusedCommand::Nonsense);
        }
        Action::Image(_) if !copies => return Some(RefusedCommand::CopiesNotAllowed),
        Action::Set(_) | Action::Migrate(_) | Action::Release | Action::Describe | Action::Image(_) => {}
        Action::DirtyRate { period_s } if !(1..=DIRTY_RATE_PERIOD_MAX_S).contains(period_s) => {
            return Some(RefusedCommand::Nonsense);
        }
        Action::DirtyRate { .. } => {}
    }
    match (vm, &command.action) {
        (Sighting::Absent, _) => Some(RefusedCommand::UnknownVm),
        (Sighting::Unknown, _) | (_, Action::Release) => None,
        _ if opted_out == Some(true) => Some(RefusedCommand::OptedOut),
        (Sighting::Active { vcpus }, Action::Set(target)) => bounds::out_of_bounds(*target, vcpus, bounds, &resources),
        (Sighting::Active { .. }, _) => None,
    }
}

/// A shadow is looked for where the order is carried out, in libvirt and not in the last inventory. What was taken once can always be retired.
fn shadow_refusal(order: &ShadowOrder, shadows_max: u32) -> Option<RefusedCommand> {
    let is_nonsense = match order {
        ShadowOrder::Copy(spec) => !is_size(&spec.size) || !spec.blueprint.is_bounded(),
        ShadowOrder::Resize(size) => !is_size(size),
        ShadowOrder::Pace(profile) => profile.steps.len() > PROFILE_STEPS_MAX,
        ShadowOrder::Start | ShadowOrder::Retire => false,
    };
    if is_nonsense {
        return Some(RefusedCommand::Nonsense);
    }
    (shadows_max == 0 && *order != ShadowOrder::Retire).then_some(RefusedCommand::ShadowsNotAllowed)
}

/// Whether a target is no state that anything can be in. "Unlimited" is none for a command's CPU quota: it would be beyond any ceiling.
fn is_nonsense(target: Setting) -> bool {
    let zero = |limit: Option<u64>| limit == Some(0);
    match target {
        Setting::CpuQuota { cores } => !cores.is_some_and(|cores| cores.is_finite() && cores > 0.0),
        Setting::CpuWeight { weight } => weight == 0,
        Setting::Memory { bytes } => bytes == 0,
        Setting::Vcpus { count } => count == 0,
        Setting::DiskLimit { bytes_per_s, operations_per_s } => zero(bytes_per_s) || zero(operations_per_s),
        Setting::NetworkLimit { in_bytes_per_s, out_bytes_per_s } => zero(in_bytes_per_s) || zero(out_bytes_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{CommandId, HostId, Migration, VmId};
    use proptest::prelude::*;
    use uuid::Uuid;

    const BOUNDS: CpuBounds = CpuBounds { floor_cores: 0.25, ceiling_cores: 4.0 };

    fn quota(cores: f64) -> Setting {
        Setting::CpuQuota { cores: Some(cores) }
    }

    fn command(cores: f64, term: u64, generation: u64) -> Command {
        Command {
            id: CommandId { term, number: generation },
            vm: VmId(Uuid::from_u128(7)),
            action: Action::Set(quota(cores)),
            fence: Fence { term, generation },
            time_to_live_ms: 1_000,
            reason: String::new(),
        }
    }

    fn calm() -> Circumstances {
        Circumstances {
            waited: Some(Duration::from_millis(10)),
            term_highest: 3,
            fence_of_vm: Some(Fence { term: 3, generation: 5 }),
            vm: Sighting::Active { vcpus: 2 },
            bounds: BOUNDS,
            allowed: Allowed::default(),
            resources: Resources::default(),
            opted_out: Some(false),
            migrations: Migrations { most: 1, under_way: 0, of_vm: false },
            shadows_max: 0,
            copies: true,
        }
    }

    fn refused(command: &Command, circumstances: &Circumstances) -> RefusedCommand {
        match judge(command, circumstances) {
            Verdict::Refuse(refused) => refused,
            other => panic!("{other:?} instead of a refusal"),
        }
    }

    #[test]
    fn a_newer_command_within_bounds_is_obeyed() {
        assert_eq!(judge(&command(1.5, 3, 6), &calm()), Verdict::Obey);
        assert_eq!(judge(&command(1.5, 4, 0), &calm()), Verdict::Obey);
    }

    #[test]
    fn a_stale_fence_is_refused() {
        let seen = Fence { term: 3, generation: 5 };
        assert_eq!(refused(&command(1.5, 3, 5), &calm()), RefusedCommand::StaleFence { seen });
        assert_eq!(refused(&command(1.5, 2, 99), &calm()), RefusedCommand::StaleFence { seen });
    }

    #[test]
    fn a_lower_term_is_refused_even_for_a_vm_never_commanded() {
        let circumstances = Circumstances { fence_of_vm: None, ..calm() };
        let seen = Fence { term: 3, generation: 0 };
        assert_eq!(refused(&command(1.5, 2, 99), &circumstances), RefusedCommand::StaleFence { seen });
    }

    #[test]
    fn the_time_to_live_ends_strictly_after_its_last_millisecond() {
        let waited = |ms| Circumstances { waited: Some(Duration::from_millis(ms)), ..calm() };
        assert_eq!(judge(&command(1.0, 3, 6), &waited(1_000)), Verdict::Obey);
        assert_eq!(refused(&command(1.0, 3, 6), &waited(1_250)), RefusedCommand::Expired { late_ms: 250 });
    }

    #[test]
    fn a_reboot_expires_every_command() {
        let circumstances = Circumstances { waited: None, ..calm() };
        assert_eq!(refused(&command(1.0, 3, 6), &circumstances), RefusedCommand::Expired { late_ms: 0 });
    }

    #[test]
    fn bounds_of_host_and_vcpus_hold() {
        let big = Circumstances { vm: Sighting::Active { vcpus: 16 }, ..calm() };
        assert_eq!(refused(&command(0.2, 3, 6), &calm()), RefusedCommand::BelowFloor { floor: quota(0.25) });
        assert_eq!(refused(&command(2.5, 3, 6), &calm()), RefusedCommand::AboveCeiling { ceiling: quota(2.0) });
        assert_eq!(refused(&command(4.5, 3, 6), &big), RefusedCommand::AboveCeiling { ceiling: quota(4.0) });
    }

    #[test]
    fn a_floor_above_the_vcpus_leaves_exactly_the_vcpus() {
        let bounds = CpuBounds { floor_cores: 2.0, ceiling_cores: 8.0 };
        let circumstances = Circumstances { vm: Sighting::Active { vcpus: 1 }, bounds, ..calm() };
        assert_eq!(judge(&command(1.0, 3, 6), &circumstances), Verdict::Obey);
    }

    #[test]
    fn numbers_that_are_none_are_nonsense() {
        for cores in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, -1.0] {
            assert_eq!(refused(&command(cores, 3, 6), &calm()), RefusedCommand::Nonsense, "{cores}");
        }
    }

    #[test]
    fn an_absent_vm_is_refused_and_an_unanswered_question_is_not() {
        let vm = |vm| Circumstances { vm, ..calm() };
        assert_eq!(refused(&command(1.0, 3, 6), &vm(Sighting::Absent)), RefusedCommand::UnknownVm);
        assert_eq!(judge(&command(1.0, 3, 6), &vm(Sighting::Unknown)), Verdict::Unknowable);
    }

    #[test]
    fn a_means_that_the_host_does_not_allow_is_refused_before_anything_is_looked_up() {
        let set = |target| Command { action: Action::Set(target), ..command(1.0, 3, 6) };
        let circumstances = Circumstances { vm: Sighting::Unknown, ..calm() };
        for target in
            [Setting::Vcpus { count: 2 }, Setting::Memory { bytes: 1 << 30 }, Setting::CpuWeight { weight: 1 }]
        {
            let means = target.means();
            assert_eq!(refused(&set(target), &circumstances), RefusedCommand::NotAllowed { means });
        }
    }

    #[test]
    fn a_limit_of_nothing_is_nonsense_since_libvirt_would_take_it_for_no_limit() {
        let set = |target| Command { action: Action::Set(target), ..command(1.0, 3, 6) };
        let disk = Setting::DiskLimit { bytes_per_s: None, operations_per_s: Some(0) };
        let network = Setting::NetworkLimit { in_bytes_per_s: Some(0), out_bytes_per_s: None };
        for target in [disk, network, Setting::Vcpus { count: 0 }, Setting::Memory { bytes: 0 }] {
            assert_eq!(refused(&set(target), &calm()), RefusedCommand::Nonsense, "{target}");
        }
    }

    #[test]
    fn a_release_is_not_held_back_by_bounds() {
        let release = Command { action: Action::Release, ..command(0.0, 3, 6) };
        assert_eq!(judge(&release, &calm()), Verdict::Obey);
    }

    fn migrate(timeout_ms: u64) -> Command {
        let (to, uri) = (HostId::new("h2").unwrap(), "qemu+tls://h2/system".to_owned());
        let migration =
            Migration { to, uri, timeout_ms, bandwidth_bytes_per_s: None, auto_converge: false, copy_storage: false };
        Command { action: Action::Migrate(migration), ..command(0.0, 3, 6) }
    }

    #[test]
    fn a_migration_is_obeyed_where_it_is_allowed_and_there_is_room_for_one_more() {
        let with = |migrations| Circumstances { migrations, ..calm() };
        assert_eq!(judge(&migrate(1_000), &calm()), Verdict::Obey);
        assert_eq!(refused(&migrate(0), &calm()), RefusedCommand::Nonsense);
        let off = with(Migrations::default());
        assert_eq!(refused(&migrate(1_000), &off), RefusedCommand::MigrationNotAllowed);
        let full = with(Migrations { most: 2, under_way: 2, of_vm: false });
        assert_eq!(refused(&migrate(1_000), &full), RefusedCommand::TooManyMigrations { most: 2 });
        assert_eq!(judge(&command(1.0, 3, 6), &full), Verdict::Obey, "others are not held up");
    }

    #[test]
    fn a_vm_on_its_way_is_left_alone_but_for_giving_that_up() {
        let migrations = Migrations { most: 1, under_way: 1, of_vm: true };
        let on_its_way = Circumstances { migrations, vm: Sighting::Unknown, ..calm() };
        for action in [Action::Release, Action::Set(quota(1.0)), migrate(1).action] {
            assert_eq!(refused(&Command { action, ..migrate(1) }, &on_its_way), RefusedCommand::Migrating);
        }
        let abort = Command { action: Action::AbortMigration, ..migrate(1) };
        assert_eq!(judge(&abort, &on_its_way), Verdict::Obey);
        let stale = Command { fence: Fence { term: 3, generation: 5 }, ..abort };
        assert!(matches!(refused(&stale, &on_its_way), RefusedCommand::StaleFence { .. }));
    }

    #[test]
    fn a_vm_that_its_owner_opts_out_is_released_and_nothing_else() {
        let with = |opted_out| Circumstances { opted_out, ..calm() };
        let release = Command { action: Action::Release, ..command(1.0, 3, 6) };
        for command in [command(1.0, 3, 6), migrate(1_000)] {
            assert_eq!(refused(&command, &with(Some(true))), RefusedCommand::OptedOut);
            assert_eq!(judge(&command, &with(None)), Verdict::Unknowable, "its definition was not read yet");
        }
        assert_eq!([Some(true), None].map(|out| judge(&release, &with(out))), [Verdict::Obey, Verdict::Obey]);
    }

    proptest! {
        #[test]
        fn whatever_is_obeyed_is_newer_alive_and_within_bounds(
            cores in prop_oneof![any::<f64>(), 0.0..8.0_f64], term in 0..6_u64, generation in 0..9_u64, waited_ms in 0..2_000_u64, vcpus in 1..9_u32,
        ) {
            let circumstances = Circumstances {
                waited: Some(Duration::from_millis(waited_ms)), vm: Sighting::Active { vcpus }, ..calm()
            };
            let command = command(cores, term, generation);
            if judge(&command, &circumstances) == Verdict::Obey {
                prop_assert!(command.fence > circumstances.fence_of_vm.unwrap() && term >= circumstances.term_highest);
                prop_assert!(waited_ms <= command.time_to_live_ms);
                prop_assert!(cores >= BOUNDS.floor_cores && cores <= BOUNDS.ceiling_cores.min(f64::from(vcpus)));
            }
        }
    }
}
