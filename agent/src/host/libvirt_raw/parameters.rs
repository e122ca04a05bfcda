//! Typed parameters of a domain's disks, network interfaces and jobs, for which the `virt` crate has no safe calls.

use super::check;
use std::ffi::{CStr, c_char, c_int, c_uint};
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// More parameters than any libvirt has for one device (20 for a disk in 9.0): a reply that announces more is cut.
const PARAMETERS_MAX: c_int = 64;

/// What libvirt says of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct Parameter {
    /// Its name, `VIR_DOMAIN_BLOCK_IOTUNE_...` or `VIR_DOMAIN_BANDWIDTH_...`.
    pub(in crate::host) name: String,
    /// Its value.
    pub(in crate::host) value: Value,
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) enum Value {
    /// An unsigned number.
    Number(u64),
    /// A text.
    Text(String),
    /// Of a type that none of these parameters has today.
    Other,
}

/// Reads parameters: domain, device, array, its length (in and out), flags.
type Get =
    unsafe extern "C" fn(sys::virDomainPtr, *const c_char, sys::virTypedParameterPtr, *mut c_int, c_uint) -> c_int;

/// The I/O limits of one disk of a running domain, by its target (`vda`). Asks QEMU. Blocks.
pub(in crate::host) fn block_io_tune(domain: &Domain, disk: &CStr) -> Result<Vec<Parameter>, Error> {
    get(domain, disk, sys::virDomainGetBlockIoTune)
}

/// Sets I/O limits of one disk of what the flags name: the running domain, its definition, or both. Those that are not named stay as they are. Blocks.
pub(in crate::host) fn set_block_io_tune(
    domain: &Domain,
    disk: &CStr,
    limits: &[(&CStr, u64)],
    flags: sys::virDomainModificationImpact,
) -> Result<(), Error> {
    let mut list = Outgoing::default();
    for (name, value) in limits {
        list.add(|list, used, room| {
            // SAFETY: the three describe a list that libvirt itself has made and grows, or an empty one; the name ends with 0.
            unsafe { sys::virTypedParamsAddULLong(list, used, room, name.as_ptr(), *value) }
        })?;
    }
    // SAFETY: the domain is alive, the name ends with 0, and the list holds `used` parameters, which libvirt only reads.
    let result = unsafe { sys::virDomainSetBlockIoTune(domain.as_ptr(), disk.as_ptr(), list.list, list.used, flags) };
    check(result)
}

/// The bandwidth of one interface of a running domain, by its host device (`vnet0`) or MAC address. Blocks.
pub(in crate::host) fn interface_parameters(domain: &Domain, device: &CStr) -> Result<Vec<Parameter>, Error> {
    get(domain, device, sys::virDomainGetInterfaceParameters)
}

/// Sets the bandwidth of one interface of what the flags name: the running domain, its definition, or both. Blocks while libvirt runs `tc`.
pub(in crate::host) fn set_interface_parameters(
    domain: &Domain,
    device: &CStr,
    limits: &[(&CStr, u32)],
    flags: sys::virDomainModificationImpact,
) -> Result<(), Error> {
    let mut list = Outgoing::default();
    for (name, value) in limits {
        list.add(|list, used, room| {
            // SAFETY: the three describe a list that libvirt itself has made and grows, or an empty one; the name ends with 0.
            unsafe { sys::virTypedParamsAddUInt(list, used, room, name.as_ptr(), *value) }
        })?;
    }
    // SAFETY: the domain is alive, the name ends with 0, and the list holds `used` parameters, which libvirt only reads.
    let result =
        unsafe { sys::virDomainSetInterfaceParameters(domain.as_ptr(), device.as_ptr(), list.list, list.used, flags) };
    check(result)
}

fn get(domain: &Domain, device: &CStr, call: Get) -> Result<Vec<Parameter>, Error> {
    let (device, flags) = (device.as_ptr(), sys::VIR_DOMAIN_AFFECT_LIVE);
    let mut count: c_int = 0;
    // SAFETY: the domain is alive and the name ends with 0; with a count of 0 and no array libvirt only tells how many there are.
    check(unsafe { call(domain.as_ptr(), device, std::ptr::null_mut(), &mut count, flags) })?;
    let mut count = count.clamp(0, PARAMETERS_MAX);
    // SAFETY: a parameter is plain data, for which all zeros (no name, no type, no string) is a value.
    let empty: sys::virTypedParameter = unsafe { std::mem::zeroed() };
    let mut list = vec![empty; usize::try_from(count).unwrap_or(0)];
    // SAFETY: as above, and the array has room for `count` parameters, of which libvirt fills at most that many and says how many.
    check(unsafe { call(domain.as_ptr(), device, list.as_mut_ptr(), &mut count, flags) })?;
    let filled = usize::try_from(count).unwrap_or(0).min(list.len());
    let parameters = list[..filled].iter().map(parameter).collect();
    // SAFETY: the array holds `filled` parameters, whose strings libvirt has allocated and frees here, once.
    unsafe { sys::virTypedParamsClear(list.as_mut_ptr(), c_int::try_from(filled).unwrap_or(0)) };
    Ok(parameters)
}

pub(super) fn parameter(raw: &sys::virTypedParameter) -> Parameter {
    let bytes: Vec<u8> = raw.field.iter().map(|&byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    let value = match u32::try_from(raw.type_).unwrap_or(0) {
        // SAFETY: the type says which member libvirt has written.
        sys::VIR_TYPED_PARAM_UINT => Value::Number(unsafe { raw.value.ui }.into()),
        // SAFETY: as above.
        sys::VIR_TYPED_PARAM_ULLONG => Value::Number(unsafe { raw.value.ul }),
        // SAFETY: as above. None of these has values below zero.
        sys::VIR_TYPED_PARAM_INT => Value::Number(u64::try_from(unsafe { raw.value.i }).unwrap_or(0)),
        // SAFETY: as above; a string that is set ends with 0 and lives until it is cleared.
        sys::VIR_TYPED_PARAM_STRING => match unsafe { raw.value.s } {
            text if text.is_null() => Value::Text(String::new()),
            // SAFETY: as above, and it is not null.
            text => Value::Text(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()),
        },
        _ => Value::Other,
    };
    Parameter { name: String::from_utf8_lossy(&bytes).into_owned(), value }
}

/// A list of parameters in libvirt's memory.
struct Outgoing {
    list: sys::virTypedParameterPtr,
    used: c_int,
    room: c_int,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { list: std::ptr::null_mut(), used: 0, room: 0 }
    }
}

impl Outgoing {
    fn add(
        &mut self,
        call: impl FnOnce(*mut sys::virTypedParameterPtr, *mut c_int, *mut c_int) -> c_int,
    ) -> Result<(), Error> {
        check(call(&mut self.list, &mut self.used, &mut self.room))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // SAFETY: the list is libvirt's own, or null, holds `used` parameters, and is freed once.
        unsafe { sys::virTypedParamsFree(self.list, self.used) };
    }
}
