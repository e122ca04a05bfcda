//! Live migration: the call, its job, where a domain stands, and what the other host says before.

use super::needs::{CpuNeed, Needs, flattened};
use super::storage::Copies;
use super::{Hypervisor, HypervisorError, is_no_domain};
use crate::host::libvirt_raw::migration::{self as raw, RawJob};
use crate::host::libvirt_raw::parameters::Value;
use gnomon_common::wire::{Migration, VmId};
use std::ffi::CStr;
use virt::domain::{Domain, DomainPausedReason, DomainState, DomainStateReason, MigrateParameters};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys;

/// libvirt counts bandwidth in these.
const MIB: u64 = 1 << 20;

/// How a domain stands on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its vCPUs run, or it is in a state of its guest's own (asleep, crashed, shutting down).
    Active,
    /// Its vCPUs are stopped.
    Stopped {
        /// By a migration, or by what libvirt does not remember; else by a person or an error.
        by_migration: bool,
    },
    /// Defined, and shut off: it ran there, and ended.
    Off,
    /// Unknown.
    Absent,
}

/// A job of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Sent so far, in bytes of memory and storage.
    pub sent_bytes: u64,
    /// Of that, storage.
    pub sent_storage_bytes: u64,
    /// Left to send, in bytes.
    pub remaining_bytes: u64,
    /// What the guest writes to its memory, in bytes per second.
    pub dirty_bytes_per_s: Option<u64>,
    /// How long the guest stood still, or will by what is known now, in microseconds.
    pub downtime_us: Option<u64>,
}

/// What the other host says of what a domain needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// It has a domain of this identity or name.
    pub has_it: bool,
    /// What its CPU lacks.
    pub cpu: Option<String>,
    /// Memory free, caches included, in bytes.
    pub available_bytes: u64,
    /// The first of the networks and bridges that it lacks.
    pub lacks_network: Option<String>,
}

/// Whether a stopped domain is being received: only its source knows how far that has come, and libvirt says so.
pub(super) fn is_arriving(domain: &Domain) -> bool {
    let by_migration = matches!(standing(domain), Ok(Standing::Stopped { by_migration: true }));
    // Which of the two depends on libvirt's version.
    let of_source = |code| matches!(code, ErrorNumber::OperationUnsupported | ErrorNumber::OperationInvalid);
    by_migration && raw::job(domain, false).is_err_and(|error| error.code().is_known_and(of_source))
}

impl Hypervisor {
    /// Migrates a running domain, peer to peer, and returns when that has ended. What is persistent here is so there, and no longer here.
    /// Never post-copy: of a domain that is in two places at once, a broken link takes both. Blocks for as long as it takes.
    ///
    /// Disks are copied at the same time, each with an equal part of the bandwidth, before the memory goes; what the guest writes to them meanwhile
    /// goes along until it stands still. The files must be there.
    pub fn migrate(&self, vm: VmId, how: &Migration, copies: Option<&Copies>) -> Result<(), HypervisorError> {
        let call = |e| HypervisorError::call("migrate it", &e);
        let domain = self.domain(vm)?;
        let mut flags = sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_PEER2PEER | sys::VIR_MIGRATE_ABORT_ON_ERROR;
        let is_persistent = domain.is_persistent().map_err(call)?;
        if is_persistent {
            flags |= sys::VIR_MIGRATE_PERSIST_DEST | sys::VIR_MIGRATE_UNDEFINE_SOURCE;
        }
        if how.auto_converge {
            flags |= sys::VIR_MIGRATE_AUTO_CONVERGE;
        }
        let mut parameters = MigrateParameters::default();
        let mut shares = 1;
        if let Some(copies) = copies {
            flags |= if copies.is_layered { sys::VIR_MIGRATE_NON_SHARED_INC } else { sys::VIR_MIGRATE_NON_SHARED_DISK };
            parameters.migrate_disks = copies.originals.iter().map(|original| original.target.clone()).collect();
            shares = parameters.migrate_disks.len().max(1) as u64;
            if !copies.is_layered {
                // The target finds out by itself what a disk is a layer on, unless the definition says it: of a whole copy that is not so any more.
                let flat = |kind| -> Result<Option<String>, HypervisorError> {
                    let xml = domain.xml_desc(kind).map_err(call)?;
                    let none = || HypervisorError::Unsupported("its definition is not understood".to_owned());
                    let flat = flattened(&xml, &parameters.migrate_disks).ok_or_else(none)?;
                    Ok((flat != xml).then_some(flat))
                };
                parameters.dest_xml = flat(sys::VIR_DOMAIN_XML_MIGRATABLE)?;
                let inactive = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
                parameters.persist_xml = if is_persistent { flat(inactive)? } else { None };
            }
        }
        parameters.bandwidth = how.bandwidth_bytes_per_s.map(|bytes_per_s| (bytes_per_s / shares).div_ceil(MIB).max(1));
        domain.migrate_to_uri3(Some(&how.uri), parameters, flags).map_err(call)
    }

    /// Asks the domain's job to end. Blocks shortly.
    pub fn abort_job(&self, vm: VmId) -> Result<(), HypervisorError> {
        raw::abort(&self.domain(vm)?).map_err(|e| HypervisorError::call("abort the migration", &e))
    }

    /// The migration away from here that is under way, if there is one. Blocks.
    pub fn migration_job(&self, vm: VmId) -> Result<Option<Job>, HypervisorError> {
        let job = raw::job(&self.domain(vm)?, false).map_err(|e| HypervisorError::call("tell of the migration", &e))?;
        let outward = number(&job, sys::VIR_DOMAIN_JOB_OPERATION)
            .is_some_and(|operation| operation == u64::from(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT));
        let under_way = matches!(job.kind, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED) && outward;
        Ok(under_way.then(|| figures(&job)))
    }

    /// What is remembered of the migration by which the domain came here. Blocks.
    pub fn completed_job(&self, vm: VmId) -> Result<Option<Job>, HypervisorError> {
        let job = raw::job(&self.domain(vm)?, true).map_err(|e| HypervisorError::call("tell of the migration", &e))?;
        Ok((job.kind == sys::VIR_DOMAIN_JOB_COMPLETED).then(|| figures(&job)))
    }

    /// How a domain stands here. Blocks.
    pub fn standing(&self, vm: VmId) -> Result<Standing, HypervisorError> {
        match self.domain(vm) {
            Ok(domain) => match standing(&domain) {
                Err(error) if is_no_domain(&error) => Ok(Standing::Absent),
                known => known.map_err(|e| HypervisorError::call("tell its state", &e)),
            },
            Err(HypervisorError::NoSuchDomain(_)) => Ok(Standing::Absent),
            Err(error) => Err(error),
        }
    }

    /// Lets a stopped domain run on. Blocks.
    pub fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.domain(vm)?.resume().map_err(|e| HypervisorError::call("resume it", &e))
    }

    /// The definition in force, as the other host of a migration will get it. Blocks.
    pub fn definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        let xml = self.domain(vm)?.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE);
        xml.map_err(|e| HypervisorError::call("read the definition", &e))
    }

    /// The definition in force with all that was found out since it began to run, such as what its disks are layers on. Blocks.
    pub fn live_definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        self.domain(vm)?.xml_desc(0).map_err(|e| HypervisorError::call("read the definition", &e))
    }

    /// The `<cpu>` of this host, as its capabilities tell it. Blocks.
    pub fn host_cpu(&self) -> Result<Option<String>, HypervisorError> {
        let capabilities = self.connect.capabilities().map_err(|e| HypervisorError::call("tell its CPU", &e))?;
        Ok(super::needs::host_cpu(&capabilities))
    }

    /// What this host says of what a domain needs that is to come here. Blocks.
    pub fn offer(&self, vm: VmId, needs: &Needs) -> Result<Offer, HypervisorError> {
        let by_name = self.connect.lookup_domain_by_name(&needs.name);
        let has_it = self.standing_of_any(vm)? || known(by_name, ErrorNumber::NoDomain, "look a domain up")?.is_some();
        let mut lacks_network = None;
        for network in &needs.networks {
            let found = self.connect.lookup_network_by_name(network);
            let active = match known(found, ErrorNumber::NoNetwork, "look a network up")? {
                Some(network) => network.is_active().map_err(|e| HypervisorError::call("look a network up", &e))?,
                None => false,
            };
            if !active {
                lacks_network.get_or_insert_with(|| network.clone());
            }
        }
        for bridge in &needs.bridges {
            // Not every libvirt has a driver for interfaces. Without one libvirt itself finds out when it prepares the domain there.
            let found = self.connect.lookup_interface_by_name(bridge);
            if found.is_err_and(|e| e.code().is_known_and(|code| code == ErrorNumber::NoInterface)) {
                lacks_network.get_or_insert_with(|| bridge.clone());
            }
        }
        let cpu = match &needs.cpu {
            CpuNeed::Any => None,
            CpuNeed::Features(cpu) => self.lacks_cpu(cpu, sys::VIR_CPU_COMPARE_SUPERSET)?,
            CpuNeed::SameAs(cpu) => self.lacks_cpu(cpu, sys::VIR_CPU_COMPARE_IDENTICAL)?,
        };
        let memory = raw::node_memory(&self.connect).map_err(|e| HypervisorError::call("tell its memory", &e))?;
        let kinds =
            [sys::VIR_NODE_MEMORY_STATS_FREE, sys::VIR_NODE_MEMORY_STATS_BUFFERS, sys::VIR_NODE_MEMORY_STATS_CACHED];
        let counts = |name: &str| kinds.iter().any(|kind| kind.to_bytes() == name.as_bytes());
        let available_kib: u64 = memory.iter().filter(|(name, _)| counts(name)).map(|(_, kib)| kib).sum();
        Ok(Offer { has_it, cpu, available_bytes: available_kib.saturating_mul(1024), lacks_network })
    }

    fn standing_of_any(&self, vm: VmId) -> Result<bool, HypervisorError> {
        match self.domain(vm) {
            Ok(_) => Ok(true),
            Err(HypervisorError::NoSuchDomain(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is wrong with this host's CPU for what another one's guest sees.
    fn lacks_cpu(&self, cpu: &str, at_most: sys::virCPUCompareResult) -> Result<Option<String>, HypervisorError> {
        match self.connect.compare_cpu(cpu, 0) {
            Ok(sys::VIR_CPU_COMPARE_IDENTICAL) => Ok(None),
            Ok(sys::VIR_CPU_COMPARE_SUPERSET) if at_most == sys::VIR_CPU_COMPARE_SUPERSET => Ok(None),
            Ok(sys::VIR_CPU_COMPARE_SUPERSET) => {
                Ok(Some("it is not the same, and the guest was given all that its host has".to_owned()))
            }
            Ok(_) => Ok(Some("it lacks features that the guest sees".to_owned())),
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::CpuIncompatible) => {
                Ok(Some(error.message().to_owned()))
            }
            Err(error) => Err(HypervisorError::call("compare CPUs", &error)),
        }
    }
}

/// What was looked up; `None` where libvirt says that there is no such thing.
pub(super) fn known<T>(
    found: Result<T, Error>,
    none: ErrorNumber,
    what: &'static str,
) -> Result<Option<T>, HypervisorError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code().is_known_and(|code| code == none) => Ok(None),
        Err(error) => Err(HypervisorError::call(what, &error)),
    }
}

fn standing(domain: &Domain) -> Result<Standing, Error> {
    let (state, reason) = domain.state()?;
    Ok(match state.known() {
        Some(DomainState::Shutoff) => Standing::Off,
        Some(DomainState::Paused) => {
            let of_migration = |reason| matches!(reason, DomainPausedReason::Migration | DomainPausedReason::Unknown);
            let by_migration = match reason {
                Enum::Known(DomainStateReason::Paused(why)) => why.known().is_some_and(of_migration),
                _ => false,
            };
            Standing::Stopped { by_migration }
        }
        _ => Standing::Active,
    })
}

fn number(job: &RawJob, name: &CStr) -> Option<u64> {
    let found = job.parameters.iter().find(|parameter| parameter.name.as_bytes() == name.to_bytes())?;
    match found.value {
        Value::Number(number) => Some(number),
        _ => None,
    }
}

fn figures(job: &RawJob) -> Job {
    let of = |name| number(job, name);
    let pages_per_s = of(sys::VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE).filter(|pages| *pages > 0);
    Job {
        sent_bytes: of(sys::VIR_DOMAIN_JOB_DATA_PROCESSED).unwrap_or(0),
        sent_storage_bytes: of(sys::VIR_DOMAIN_JOB_DISK_PROCESSED).unwrap_or(0),
        remaining_bytes: of(sys::VIR_DOMAIN_JOB_DATA_REMAINING).unwrap_or(0),
        dirty_bytes_per_s: pages_per_s
            .zip(of(sys::VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE))
            .map(|(pages, bytes)| pages.saturating_mul(bytes)),
        downtime_us: of(sys::VIR_DOMAIN_JOB_DOWNTIME).map(|ms| ms.saturating_mul(1000)),
    }
}
