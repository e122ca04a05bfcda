//! The address of an interface, `sockaddr_ll` of packet(7), which rustix has no type for.
#![allow(unsafe_code)]

use rustix::net::AddressFamily;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};

/// An interface of this machine, to bind a packet socket to. Laid out as the kernel reads it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct LinkAddress {
    family: u16,
    protocol: u16,
    index: u32,
    hardware: u16,
    packet: u8,
    address_bytes: u8,
    address: [u8; 8],
}

impl LinkAddress {
    /// `index` is the interface's.
    pub(super) fn new(index: u32) -> Self {
        let family = AddressFamily::PACKET.as_raw();
        LinkAddress { family, protocol: 0, index, hardware: 0, packet: 0, address_bytes: 0, address: [0; 8] }
    }
}

// SAFETY: the pointer is to `self`, which lives through the call and has no padding, and the length is its own.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const *self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}
