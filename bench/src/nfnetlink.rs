//! Messages of nfnetlink (`linux/netfilter/nfnetlink.h`), by hand.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};

/// NLM_F_REQUEST, NLM_F_ACK.
pub const REQUEST: u16 = 1;
/// The kernel answers.
pub const ACK: u16 = 4;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// NLMSG_ERROR.
const ERROR: u16 = 2;

/// One message: `nlmsghdr`, `nfgenmsg` for IPv4 and this resource (a queue's number), attributes.
pub fn put(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    resource: u16,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([0; 8]);
    out.extend([libc::AF_INET as u8, 0]);
    out.extend(resource.to_be_bytes());
    body(out);
    let len = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// An attribute of attributes.
pub fn nest(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 2]);
    out.extend((kind | NESTED).to_ne_bytes());
    body(out);
    let len = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

/// An attribute.
pub fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A socket of this namespace.
pub fn open() -> Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("netlink socket");
        }
        OwnedFd::from_raw_fd(fd)
    };
    Ok(socket)
}

/// Sends messages.
pub fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    // SAFETY: the message lives through the call.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The first error that the kernel has answered with; it answers before `send` returns.
pub fn refused(socket: &OwnedFd) -> Result<()> {
    let mut answer = [0u8; 8192];
    // SAFETY: the buffer is as long as said.
    let len = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast(),
            answer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    if len < 20 || answer[4..6] != ERROR.to_ne_bytes() {
        return Ok(());
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        code => bail!("netfilter: {}", io::Error::from_raw_os_error(-code)),
    }
}
