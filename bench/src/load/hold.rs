//! Connections that send at a steady rate, and stay: what becomes of them in a flood.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use fsm_fastpath::control::sweep::now_ns;
use serde_json::json;

use super::TCP;

/// Bytes given to the kernel at once.
const CHUNK: usize = 16_384;

/// Arguments.
#[derive(Args)]
pub struct Options {
    /// Address
    #[arg(long)]
    to: IpAddr,
    /// Connections
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Mbit/s of all together; 0: as much as goes
    #[arg(long)]
    mbit: u32,
    /// How long
    #[arg(long)]
    seconds: f64,
    /// Milliseconds of an interval
    #[arg(long, default_value_t = 250)]
    interval_ms: u64,
}

/// One connection, as its sender sees it.
#[derive(Default)]
struct Sender {
    bytes: AtomicU64,
    has_failed: AtomicBool,
}

/// Sends; gives for each interval its end and the bytes of each connection, and how many have failed.
pub fn run(options: &Options) -> Result<serde_json::Value> {
    let to = SocketAddr::new(options.to, TCP);
    let bytes_per_s = f64::from(options.mbit) * 1e6 / 8.0 / options.connections as f64;
    let pause = match options.mbit {
        0 => Duration::ZERO,
        _ => Duration::from_secs_f64(CHUNK as f64 / bytes_per_s),
    };
    let senders: &'static [Sender] = Vec::leak(
        (0..options.connections)
            .map(|_| Sender::default())
            .collect::<Vec<_>>(),
    );
    for sender in senders {
        let mut stream = TcpStream::connect(to).context("before the flood")?;
        stream.write_all(b"b")?;
        thread::spawn(move || {
            let data = [b'x'; CHUNK];
            let mut next = Instant::now();
            while let Ok(sent) = stream.write(&data) {
                sender.bytes.fetch_add(sent as u64, Ordering::Relaxed);
                // What could not be sent in time is not made up for.
                next = (next + pause).max(Instant::now() - pause);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            sender.has_failed.store(true, Ordering::Relaxed);
        });
    }
    let (start, start_ns) = (Instant::now(), now_ns());
    let mut intervals = Vec::new();
    while start.elapsed().as_secs_f64() < options.seconds {
        thread::sleep(Duration::from_millis(options.interval_ms));
        let bytes: Vec<u64> = senders
            .iter()
            .map(|sender| sender.bytes.swap(0, Ordering::Relaxed))
            .collect();
        intervals.push(json!({ "end_ns": now_ns(), "bytes": bytes }));
    }
    let failed = senders
        .iter()
        .filter(|sender| sender.has_failed.load(Ordering::Relaxed))
        .count();
    // The senders go with the process.
    Ok(json!({ "start_ns": start_ns, "intervals": intervals, "failed": failed }))
}
