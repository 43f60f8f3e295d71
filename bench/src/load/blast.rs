//! Datagrams of one flow from one CPU: as fast as they go, or so many every millisecond.

use std::{
    mem::MaybeUninit,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use fsm_fastpath::control::sweep::now_ns;
use serde_json::{Value, json};

use super::BATCH;
use crate::machine::pin;

/// Port that they are sent from.
const FROM: u16 = 40_000;
/// Datagrams at most: what bounds a run beside its time.
const MOST: u64 = 50_000_000;

/// Arguments.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    target: super::Target,
    /// Port
    #[arg(long)]
    port: u16,
    /// Bytes in each
    #[arg(long)]
    payload: usize,
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
    /// Datagrams a second; 0: as fast as they go
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

/// Sends; says when, and how many.
pub fn run(options: &Options) -> Result<Value> {
    pin(options.cpu)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FROM))?;
    socket.connect((options.target.to, options.port))?;
    let payload = vec![b'x'; options.payload];
    let mut part = libc::iovec {
        iov_base: payload.as_ptr() as *mut _,
        iov_len: payload.len(),
    };
    let mut messages: Vec<libc::mmsghdr> = (0..BATCH)
        .map(|_| {
            // SAFETY: zero is a value of this struct of integers and pointers.
            let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let whole = Duration::from_secs(options.target.seconds);
    let (start_ns, start) = (now_ns(), Instant::now());
    let mut sent = 0;
    while start.elapsed() < whole && sent < MOST {
        let due = match options.rate {
            0 => BATCH as u64,
            rate => (start.elapsed().as_micros() as u64 * rate / 1_000_000).saturating_sub(sent),
        };
        let count = due.min(BATCH as u64);
        if options.rate != 0 && due < options.rate / 1000 {
            sleep(Duration::from_micros(500));
            continue;
        }
        // SAFETY: the messages point to one part each, which lives through the call.
        let done =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) };
        sent += u64::try_from(done).unwrap_or(0);
    }
    Ok(json!({ "start_ns": start_ns, "end_ns": now_ns(), "sent": sent }))
}
