//! Datagrams of one flow from one CPU: as fast as they go, or at a rate. They leave in trains (UDP_SEGMENT), each
//! datagram a packet of its own behind the device: so that the sender is not the dearest part, and that packets
//! arrive together as those of a network card do.

use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use fsm_fastpath::control::sweep::now_ns;
use serde_json::{Value, json};

use super::query;
use crate::{kernel::cpu_time, machine::pin};

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
    /// Datagrams in a train
    #[arg(long)]
    train: usize,
}

/// Messages a call.
const BATCH: usize = 4;

/// Sends; says when, and how many.
pub fn run(options: &Options) -> Result<Value> {
    pin(options.cpu)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FROM))?;
    socket.connect((options.target.to, options.port))?;
    ensure!(options.payload >= query::LEAST, "--payload: too short");
    let train = options.train.clamp(1, 65_000 / (options.payload + 8));
    if train > 1 {
        let size = options.payload as libc::c_int;
        // SAFETY: the value lives through the call, and has the size that is said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const size).cast(),
                size_of_val(&size) as u32,
            )
        };
        ensure!(set == 0, "UDP_SEGMENT: {}", io::Error::last_os_error());
    }
    let payload = query::query(1, options.payload).repeat(train);
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
    let cpu = cpu_time(std::process::id())?;
    let mut sent = 0;
    while start.elapsed() < whole && sent < MOST {
        let count = match options.rate {
            0 => BATCH,
            rate => {
                let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
                (due.saturating_sub(sent) as usize / train).min(BATCH)
            }
        };
        if count == 0 {
            sleep(Duration::from_micros(100));
            continue;
        }
        // SAFETY: the messages point to one part each, which lives through the call.
        let done =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) };
        sent += u64::try_from(done).unwrap_or(0) * train as u64;
    }
    let end_ns = now_ns();
    let cpu_ns = (cpu_time(std::process::id())? - cpu).as_nanos() as u64;
    Ok(json!({ "start_ns": start_ns, "end_ns": end_ns, "sent": sent, "cpu_ns": cpu_ns }))
}
