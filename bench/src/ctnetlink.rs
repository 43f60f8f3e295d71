//! Fills this namespace's netfilter conntrack with translated TCP connections, by ctnetlink
//! (`linux/netfilter/nfnetlink_conntrack.h`): what `conntrack -I --dst-nat` does, many in one message.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use fsm_common::flow::FlowKey;

use crate::world::GATEWAY;

/// NFNL_SUBSYS_CTNETLINK << 8, with IPCTNL_MSG_CT_NEW and IPCTNL_MSG_CT_DELETE.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
/// NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// NLMSG_ERROR.
const ERROR: u16 = 2;
/// Connections in one message to the kernel.
const BATCH: usize = 64;
/// IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED.
const STATUS: u32 = 2 | 4 | 8;
/// TCP_CONNTRACK_ESTABLISHED.
const ESTABLISHED: u8 = 3;
/// Its timeout, netfilter's default.
const TIMEOUT_S: u32 = 432_000;

/// Established connections with these tuples, translated to `to`.
pub fn insert(keys: &[FlowKey<[u8; 4]>], to: ([u8; 4], u16)) -> Result<()> {
    let socket = open()?;
    for batch in keys.chunks(BATCH) {
        let mut message = Vec::new();
        for key in batch {
            put(&mut message, NEW, REQUEST | CREATE | EXCLUSIVE, |body| {
                connection(body, key, to);
            });
        }
        send(&socket, &message)?;
        refused(&socket)?;
    }
    Ok(())
}

/// The same, to the gateway.
pub fn insert_established(keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
    insert(keys, GATEWAY)
}

/// Forgets all connections.
pub fn flush() -> Result<()> {
    let socket = open()?;
    let mut message = Vec::new();
    put(&mut message, DELETE, REQUEST | ACK, |_| {});
    send(&socket, &message)?;
    refused(&socket)
}

fn connection(body: &mut Vec<u8>, key: &FlowKey<[u8; 4]>, to: ([u8; 4], u16)) {
    tuple(body, 1, key);
    tuple(body, 2, &key.reversed());
    attribute(body, 3, &STATUS.to_be_bytes());
    nest(body, 4, |info| {
        nest(info, 1, |tcp| attribute(tcp, 1, &[ESTABLISHED]));
    });
    attribute(body, 7, &TIMEOUT_S.to_be_bytes());
    nest(body, 13, |nat| {
        attribute(nat, 1, &to.0);
        attribute(nat, 2, &to.0);
        nest(nat, 3, |ports| {
            attribute(ports, 1, &to.1.to_be_bytes());
            attribute(ports, 2, &to.1.to_be_bytes());
        });
    });
}

fn tuple(body: &mut Vec<u8>, kind: u16, key: &FlowKey<[u8; 4]>) {
    nest(body, kind, |tuple| {
        nest(tuple, 1, |ip| {
            attribute(ip, 1, &key.saddr);
            attribute(ip, 2, &key.daddr);
        });
        nest(tuple, 2, |proto| {
            attribute(proto, 1, &[key.proto]);
            attribute(proto, 2, &key.sport);
            attribute(proto, 3, &key.dport);
        });
    });
}

/// One message: `nlmsghdr`, `nfgenmsg` for IPv4, attributes.
fn put(out: &mut Vec<u8>, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([0; 8]);
    out.extend([libc::AF_INET as u8, 0, 0, 0]);
    body(out);
    let len = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

fn nest(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 2]);
    out.extend((kind | NESTED).to_ne_bytes());
    body(out);
    let len = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn open() -> Result<OwnedFd> {
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

fn send(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
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
fn refused(socket: &OwnedFd) -> Result<()> {
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
        code => bail!("conntrack: {}", io::Error::from_raw_os_error(-code)),
    }
}
