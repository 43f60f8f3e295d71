//! Spoofed SYNs or datagrams onto a wire, at a fixed rate: an XDP program makes the sources up, and
//! BPF_PROG_TEST_RUN sends its frames for real.

use std::{
    io,
    net::SocketAddrV4,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use fsm_common::wire::l4::tcp_flag;
use fsm_fastpath::control::sweep::now_ns;
use serde_json::json;

use crate::{asm, packet, sys};

/// Frames of a call at most: a burst of a millisecond or two.
const MOST: u64 = 2048;
/// Those at least.
const LEAST: u64 = 64;
/// Each call ends with some grace periods of RCU, 20 ms in all, in which its thread sleeps.
const THREADS: u32 = 32;

/// What is sent.
#[derive(Clone, Copy, clap::ValueEnum, serde::Serialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// TCP SYNs with an MSS, 58 bytes a frame.
    Syn,
    /// Datagrams of 18 bytes, 60 bytes a frame.
    Udp,
}

impl Kind {
    /// Its word on the command line and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Udp => "udp",
        }
    }
}

/// Arguments.
#[derive(Args)]
pub struct Options {
    /// Device whose other end gets them
    #[arg(long)]
    device: String,
    /// MAC of that other end
    #[arg(long)]
    mac: String,
    /// What is sent
    #[arg(long)]
    kind: Kind,
    /// To whom
    #[arg(long)]
    to: SocketAddrV4,
    /// Packets a second
    #[arg(long)]
    rate: u64,
    /// How long
    #[arg(long)]
    seconds: u64,
}

/// Sends; says when, how many were offered, and in what time.
pub fn run(options: &Options) -> Result<serde_json::Value> {
    let ifindex = sys::ifindex(&options.device)?;
    let frame = frame(options.kind, options.to, mac(&options.mac)?);
    let program = asm::spoof(ifindex, sums(&frame), check_at(options.kind))?;
    // A device's interrupts would not wait for processes either.
    // SAFETY: no pointers.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } < 0 {
        return Err(io::Error::last_os_error()).context("priority");
    }
    let (start_ns, start) = (now_ns(), Instant::now());
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| send(options, &program, &frame, start, &sent)))
            .collect();
        senders.into_iter().try_for_each(|sender| {
            sender
                .join()
                .map_err(|_| io::Error::other("a sender has died"))?
        })
    })?;
    let sent = sent.into_inner();
    Ok(json!({
        "start_ns": start_ns,
        // What ends later was begun before.
        "end_ns": start_ns + options.seconds * 1_000_000_000,
        "offered": sent,
        "offered_per_s": sent as f64 / options.seconds as f64,
    }))
}

/// Sends what is due and nobody has taken yet.
fn send(
    options: &Options,
    program: &OwnedFd,
    frame: &[u8],
    start: Instant,
    sent: &AtomicU64,
) -> io::Result<()> {
    let whole = Duration::from_secs(options.seconds);
    while start.elapsed() < whole {
        let due = (start.elapsed().as_secs_f64() * options.rate as f64) as u64;
        let taken = sent.load(Ordering::Relaxed);
        let count = due.saturating_sub(taken).min(MOST);
        if count < LEAST {
            thread::sleep(Duration::from_micros(200));
        } else if sent
            .compare_exchange(taken, taken + count, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            sys::send_live(program, frame, count as u32)?;
        }
    }
    Ok(())
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|b| u8::from_str_radix(b, 16)).collect();
    bytes?
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text}: not a MAC"))
}

/// Where the transport's checksum is.
const fn check_at(kind: Kind) -> i16 {
    match kind {
        Kind::Syn => 50,
        Kind::Udp => 40,
    }
}

/// A frame without source address and port, and without checksums.
fn frame(kind: Kind, to: SocketAddrV4, dmac: [u8; 6]) -> Vec<u8> {
    let mut l4 = match kind {
        Kind::Syn => {
            let mut tcp = vec![0; 24];
            tcp[4..8].copy_from_slice(&0x1234_5678u32.to_be_bytes());
            (tcp[12], tcp[13]) = (6 << 4, tcp_flag::SYN);
            tcp[14..16].copy_from_slice(&64240u16.to_be_bytes());
            // MSS 1460
            tcp[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
            tcp
        }
        Kind::Udp => {
            let mut udp = vec![0; 26];
            udp[4..6].copy_from_slice(&26u16.to_be_bytes());
            udp
        }
    };
    l4[2..4].copy_from_slice(&to.port().to_be_bytes());
    let mut frame = dmac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 2, 8, 0]);
    let mut ip = [0u8; 20];
    (ip[0], ip[6], ip[8]) = (0x45, 0x40, 64);
    ip[9] = match kind {
        Kind::Syn => packet::TCP,
        Kind::Udp => packet::UDP,
    };
    ip[2..4].copy_from_slice(&(20 + l4.len() as u16).to_be_bytes());
    ip[16..20].copy_from_slice(&to.ip().octets());
    frame.extend(ip);
    frame.extend(l4);
    frame
}

/// The sums that `asm::spoof` goes on from, in memory order.
fn sums(frame: &[u8]) -> [u16; 2] {
    let (ip, l4) = (&frame[14..34], &frame[34..]);
    let proto = u16::from(ip[9]);
    let pseudo = packet::sum(
        packet::sum(proto, &ip[12..20]),
        &(l4.len() as u16).to_be_bytes(),
    );
    [packet::sum(0, ip), packet::sum(pseudo, l4)].map(u16::to_be)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoofed_frames_have_right_checksums() {
        let Ok(to) = "10.1.0.2:9000".parse() else {
            panic!("an address");
        };
        for kind in [Kind::Syn, Kind::Udp] {
            let template = frame(kind, to, [2; 6]);
            let Ok(program) = asm::spoof(1, sums(&template), check_at(kind)) else {
                panic!("needs root");
            };
            for _ in 0..1000 {
                let mut out = template.clone();
                let ran = sys::test_run(&program, &template, 1, Some(&mut out));
                assert!(ran.is_ok(), "{ran:?}");
                assert!(packet::is_sound(&out), "{kind:?} {out:?}");
                assert_eq!((out[26], out[27] & !1), (198, 18));
                assert!(u16::from_be_bytes([out[34], out[35]]) >= 1024);
            }
        }
    }
}
