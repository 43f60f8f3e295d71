//! Where an accepted connection was going before it was steered here: SO_ORIGINAL_DST and its
//! IPv6 twin. Answered by conntrack where netfilter steers, by a cgroup program where we do.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

/// The option's number, at level SOL_IP and at level SOL_IPV6 alike.
const ORIGINAL_DST: libc::c_int = 80;

/// The original destination of an accepted TCP connection.
pub fn of_tcp(connection: &(impl AsRawFd + ?Sized), local: SocketAddr) -> io::Result<SocketAddr> {
    if local.is_ipv4() {
        let raw: libc::sockaddr_in = getsockopt(connection, libc::SOL_IP)?;
        let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        Ok(SocketAddr::from((ip, u16::from_be(raw.sin_port))))
    } else {
        let raw: libc::sockaddr_in6 = getsockopt(connection, libc::SOL_IPV6)?;
        let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
        Ok(SocketAddr::from((ip, u16::from_be(raw.sin6_port))))
    }
}

/// Reads the option as one of the two address structs, which are plain numbers.
fn getsockopt<T: Copy>(connection: &(impl AsRawFd + ?Sized), level: libc::c_int) -> io::Result<T> {
    // SAFETY: called only with sockaddr_in and sockaddr_in6, for which all zeroes is a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            level,
            ORIGINAL_DST,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match result {
        0 if length as usize == size_of::<T>() => Ok(value),
        0 => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "short answer to SO_ORIGINAL_DST",
        )),
        _ => Err(io::Error::last_os_error()),
    }
}
