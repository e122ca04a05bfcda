//! The one unsafe edge to libvirt, for what the `virt` crate has no safe calls for: domain lifecycle events, and in [`parameters`]
//! the limits of disks and network interfaces, in [`dirty_rate`] how fast memory is written to, in
//! [`migration`] how far a migration has come, and in [`backup`] copies of disks.
#![allow(unsafe_code)]

pub(super) mod backup;
pub(super) mod dirty_rate;
pub(super) mod migration;
pub(super) mod parameters;

use super::libvirt::{LifecycleEvent, LifecycleKind};
use gnomon_common::wire::VmId;
use std::ffi::{c_int, c_void};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use virt::sys;

/// What is called for each event, on libvirt's event thread: it must neither block nor panic.
type Listener = Box<dyn Fn(LifecycleEvent) + Send + Sync>;

/// The callback of a lifecycle event: connection, domain, event, detail, listener.
type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;

/// The type under which callbacks of all kinds are registered.
type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// A standing subscription; dropping it ends it.
pub(super) struct LifecycleSubscription {
    connect: Connect,
    callback_id: c_int,
}

impl LifecycleSubscription {
    /// Subscribes to the lifecycle of all domains of a connection. libvirt's event loop must have been registered before the
    /// connection was opened, and must be run by some thread.
    pub(super) fn new(
        connect: &Connect,
        listener: impl Fn(LifecycleEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let connect = connect.clone();
        // SAFETY: libvirt passes callbacks of all event kinds through this one type and calls them with the arguments of the
        // kind they were registered for (VIR_DOMAIN_EVENT_CALLBACK in its headers is the same cast). Function pointers are
        // of one size.
        let callback = unsafe { std::mem::transmute::<LifecycleCallback, GenericCallback>(on_lifecycle) };
        let listener: Box<Listener> = Box::new(Box::new(listener));
        let opaque = Box::into_raw(listener);
        // SAFETY: the connection is alive, owned by `connect`; a null domain means all; `opaque` is a live Box<Listener>,
        // which is what `on_lifecycle` reads and `free_listener` frees, the latter called by libvirt exactly once, after the last
        // call of the former.
        let callback_id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                std::ptr::null_mut(),
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(callback),
                opaque.cast(),
                Some(free_listener),
            )
        };
        if callback_id < 0 {
            let error = Error::last_error();
            // SAFETY: libvirt did not take the listener: it calls the free function only for registered callbacks.
            drop(unsafe { Box::from_raw(opaque) });
            return Err(error);
        }
        Ok(Self { connect, callback_id })
    }
}

impl Drop for LifecycleSubscription {
    fn drop(&mut self) {
        // SAFETY: the connection is alive, and the id came from a successful registration on it. A failure (a connection that
        // broke meanwhile) leaves nothing to do: closing the connection frees the callback.
        unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), self.callback_id) };
    }
}

/// Called by libvirt's event loop. A panic in here aborts the process (`extern "C"`), so nothing in here panics.
unsafe extern "C" fn on_lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let mut uuid = [0u8; sys::VIR_UUID_BUFLEN as usize];
    // SAFETY: the domain is valid during the callback, and the buffer has the length the call fills.
    if unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) } == 0 {
        // SAFETY: `opaque` is the Box<Listener> of the registration, freed only after the last callback; shared access is all that
        // is taken.
        let listener = unsafe { &*opaque.cast::<Listener>() };
        listener(LifecycleEvent { vm: VmId(Uuid::from_bytes(uuid)), kind: kind_of(event) });
    }
    0
}

/// Called by libvirt once, when no callback can come any more.
unsafe extern "C" fn free_listener(opaque: *mut c_void) {
    // SAFETY: `opaque` is the Box<Listener> given to the registration, and libvirt calls this once.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}

fn check(result: c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::last_error()) } else { Ok(()) }
}

fn kind_of(event: c_int) -> LifecycleKind {
    match u32::try_from(event).unwrap_or(u32::MAX) {
        sys::VIR_DOMAIN_EVENT_DEFINED => LifecycleKind::Defined,
        sys::VIR_DOMAIN_EVENT_UNDEFINED => LifecycleKind::Undefined,
        sys::VIR_DOMAIN_EVENT_STARTED => LifecycleKind::Started,
        sys::VIR_DOMAIN_EVENT_SUSPENDED | sys::VIR_DOMAIN_EVENT_PMSUSPENDED => LifecycleKind::Suspended,
        sys::VIR_DOMAIN_EVENT_RESUMED => LifecycleKind::Resumed,
        sys::VIR_DOMAIN_EVENT_STOPPED | sys::VIR_DOMAIN_EVENT_SHUTDOWN => LifecycleKind::Stopped,
        sys::VIR_DOMAIN_EVENT_CRASHED => LifecycleKind::Crashed,
        _ => LifecycleKind::Other,
    }
}
