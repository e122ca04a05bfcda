//! The labels of all IPv4 addresses, for which neither `/proc` nor a safe call has a list by device.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// More addresses than a hypervisor has. A list that fills the room may be cut, and then nothing is known.
const ADDRESSES_MAX: usize = 4_096;

/// The label of each IPv4 address of this network namespace, `eth0` or `eth0:1`, by `SIOCGIFCONF` (netdevice(7)).
pub(super) fn ipv4_labels() -> std::io::Result<Vec<String>> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    // SAFETY: it is plain data, for which all zeros (no name, no address) is a value.
    let empty: libc::ifreq = unsafe { std::mem::zeroed() };
    let mut list = vec![empty; ADDRESSES_MAX];
    let room = c_int::try_from(size_of_val(list.as_slice())).unwrap_or(c_int::MAX);
    let mut request =
        libc::ifconf { ifc_len: room, ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_req: list.as_mut_ptr() } };
    // SAFETY: the socket is open, and the kernel writes at most `ifc_len` bytes of whole entries to the list, which has that room.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFCONF, &mut request) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let filled = usize::try_from(request.ifc_len).unwrap_or(0) / size_of::<libc::ifreq>();
    if filled >= ADDRESSES_MAX {
        return Err(std::io::Error::other("the host has more addresses than can be looked at"));
    }
    let label = |entry: &libc::ifreq| {
        let bytes: Vec<u8> = entry.ifr_name.iter().map(|byte| byte.cast_unsigned()).collect();
        CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
    };
    Ok(list[..filled].iter().map(label).collect())
}
