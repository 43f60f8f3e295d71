//! Real clients: new connections at a fixed rate, each with one byte there and back.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use fsm_fastpath::control::sweep::now_ns;
use serde::Serialize;
use serde_json::json;

use super::TCP;

/// Clients; each waits for its own answer before it connects again.
const CLIENTS: u32 = 32;
/// How long a client waits; a lost SYN is sent again after one second, which is too late.
const PATIENCE: Duration = Duration::from_millis(900);

/// Arguments.
#[derive(Args)]
pub struct Options {
    /// Address
    #[arg(long)]
    to: IpAddr,
    /// Connections a second, by all clients together
    #[arg(long)]
    rate: u32,
    /// How long
    #[arg(long)]
    seconds: f64,
}

/// One attempt.
#[derive(Serialize)]
struct Attempt {
    start_ns: u64,
    /// Microseconds until the byte was back; `None` where it was not in time.
    took_us: Option<u64>,
}

/// Connects; gives every attempt, in time's order.
pub fn run(options: &Options) -> Result<serde_json::Value> {
    let to = SocketAddr::new(options.to, TCP);
    let pause = Duration::from_secs_f64(f64::from(CLIENTS) / f64::from(options.rate.max(1)));
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            thread::spawn(move || {
                thread::sleep(pause * client / CLIENTS);
                let mut attempts = Vec::new();
                let mut next = Instant::now();
                while next < end {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    let (start_ns, start) = (now_ns(), Instant::now());
                    let answered = once(to).is_ok();
                    let took = start.elapsed();
                    let took_us = (answered && took <= PATIENCE)
                        .then(|| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                    attempts.push(Attempt { start_ns, took_us });
                    // What could not be done in time is not made up for.
                    next = (next + pause).max(Instant::now());
                }
                attempts
            })
        })
        .collect();
    let mut attempts = Vec::new();
    for client in clients {
        attempts.extend(
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client has died"))?,
        );
    }
    attempts.sort_by_key(|attempt| attempt.start_ns);
    Ok(json!({ "attempts": attempts }))
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"c")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)
}
