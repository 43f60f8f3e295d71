//! A consumer of an NFQUEUE at its best: whole packets up to 64 KiB, many a call, one verdict for all of them
//! (`linux/netfilter/nfnetlink_queue.h`).

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::see;
use crate::nfnetlink::{ACK, REQUEST, attribute, open, put, refused, send};

/// NFNL_SUBSYS_QUEUE << 8, with NFQNL_MSG_CONFIG and NFQNL_MSG_VERDICT_BATCH.
const CONFIG: u16 = 3 << 8 | 2;
const VERDICT_BATCH: u16 = 3 << 8 | 3;
/// NFQA_CFG_CMD with NFQNL_CFG_CMD_BIND.
const CFG_CMD: u16 = 1;
const BIND: u8 = 1;
/// NFQA_CFG_PARAMS with NFQNL_COPY_PACKET.
const CFG_PARAMS: u16 = 2;
const COPY_PACKET: u8 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
/// NFQA_CFG_F_GSO: packets are not cut into segments for the consumer.
const F_GSO: u32 = 4;
const PACKET_HDR: u16 = 1;
const VERDICT_HDR: u16 = 2;
const PAYLOAD: u16 = 10;
const NF_ACCEPT: u32 = 1;
/// Packets that may wait for a verdict.
const WAITING: u32 = 8192;
/// Of the socket.
const BUFFER: libc::c_int = 64 << 20;
/// Packets a call, and bytes of one with all that is said of it.
const BATCH: usize = 64;
const LONGEST: usize = 65_536 + 4096;

/// Takes all of a queue's packets, and lets them go on.
pub fn consume(queue: u16) -> Result<()> {
    let socket = open()?;
    for (level, name, value) in [
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER),
        (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1),
    ] {
        set(&socket, level, name, value).context("netlink socket")?;
    }
    configure(&socket, queue)?;
    let mut buffers = vec![0u8; BATCH * LONGEST];
    let mut parts: Vec<libc::iovec> = buffers
        .chunks_mut(LONGEST)
        .map(|chunk| libc::iovec {
            iov_base: chunk.as_mut_ptr().cast(),
            iov_len: chunk.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: zero is a value of this struct of integers and pointers.
            let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut verdict = Vec::new();
    loop {
        // SAFETY: each message points to a part, each part to a buffer of its own; all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let mut last = None;
        for (message, buffer) in messages.iter().zip(buffers.chunks(LONGEST)).take(count) {
            last = packet(&buffer[..message.msg_len as usize]).or(last);
        }
        if let Some(id) = last {
            verdict.clear();
            put(&mut verdict, VERDICT_BATCH, REQUEST, queue, |body| {
                let mut header = [0; 8];
                header[..4].copy_from_slice(&NF_ACCEPT.to_be_bytes());
                header[4..].copy_from_slice(&id.to_be_bytes());
                attribute(body, VERDICT_HDR, &header);
            });
            send(&socket, &verdict).context("verdict")?;
        }
    }
}

fn configure(socket: &OwnedFd, queue: u16) -> Result<()> {
    let mut message = Vec::new();
    put(&mut message, CONFIG, REQUEST | ACK, queue, |body| {
        attribute(body, CFG_CMD, &[BIND, 0, 0, libc::AF_INET as u8]);
    });
    send(socket, &message)?;
    refused(socket).context("bind")?;
    message.clear();
    put(&mut message, CONFIG, REQUEST | ACK, queue, |body| {
        let mut params = 0xffffu32.to_be_bytes().to_vec();
        params.push(COPY_PACKET);
        attribute(body, CFG_PARAMS, &params);
        attribute(body, CFG_QUEUE_MAXLEN, &WAITING.to_be_bytes());
        attribute(body, CFG_MASK, &F_GSO.to_be_bytes());
        attribute(body, CFG_FLAGS, &F_GSO.to_be_bytes());
    });
    send(socket, &message)?;
    refused(socket).context("queue")
}

fn set(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value lives through the call, and has the size that is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Looks at the packet of a message; its number.
fn packet(message: &[u8]) -> Option<u32> {
    // nlmsghdr and nfgenmsg
    let mut rest = message.get(20..)?;
    let mut id = None;
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..len)?;
        match kind {
            PACKET_HDR => id = value.first_chunk::<4>().map(|id| u32::from_be_bytes(*id)),
            PAYLOAD => see(value, super::IP_PAYLOAD),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    id
}
