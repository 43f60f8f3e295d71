//! ns of CPU a packet of the inspection engine alone: frames in memory, one core, no device.
//!
//! Every frame goes through the engine, those too that the kernel would keep to itself after the verdict `Allow`. A
//! round is a new engine and all frames of a load; rounds of all loads take turns.

#[expect(dead_code, reason = "the frames of all tests")]
#[path = "../../common/tests/support/frame.rs"]
mod frame;

use std::{fs, hint::black_box, ops::Range, path::PathBuf, sync::Arc};

use anyhow::Result;
use fsm_fastpath::{
    config::DpiMode,
    dpi::{Engine, Inspector, Meta, Policies, Settings, Verdict},
};
use serde::Serialize;

use crate::machine::{self, Machine};
use frame::{ACK, FIN, SYN, tcp, udp};

/// Options.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds over all loads.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Only loads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Raw figures as JSON.
    #[arg(long)]
    out: Option<PathBuf>,
    /// CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

const GET: &[u8] =
    b"GET /item HTTP/1.1\r\nHost: shop.example.org\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
const OK: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nhello world\n";
const HELLOS: [&[u8]; 2] = [
    include_bytes!("../../userspace/tests/dpi/tls13-client.bin"),
    include_bytes!("../../userspace/tests/dpi/tls13-server.bin"),
];
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04shop\x07example\x03org\0\0\x01\0\x01";
const ANSWER: &[u8] =
    b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x04shop\x07example\x03org\0\0\x01\0\x01\
    \xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01";
/// Payload of a full segment.
const SEGMENT: usize = 1448;

struct Load {
    name: &'static str,
    /// Room for sessions.
    sessions: usize,
    frames: Vec<(bool, Range<usize>)>,
    /// All frames, in the order in which they come, as in a capture.
    bytes: Vec<u8>,
    ns: Vec<f64>,
    allowed: usize,
}

/// Flows that are open at a time, where not all are.
const AT_A_TIME: usize = 256;

/// Frames of many flows, one of each in turn, as they come on a wire.
fn interleave(flows: Vec<Vec<(bool, Vec<u8>)>>) -> Vec<(bool, Vec<u8>)> {
    let longest = flows.iter().map(Vec::len).max().unwrap_or(0);
    let mut flows: Vec<_> = flows.into_iter().map(Vec::into_iter).collect();
    (0..longest)
        .flat_map(|_| {
            flows
                .iter_mut()
                .filter_map(Iterator::next)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn ends(flow: usize, port: u16) -> [String; 2] {
    let client = format!(
        "10.{}.{}.{}:{}",
        flow >> 16,
        flow >> 8 & 255,
        flow & 255,
        20_000 + flow % 40_000
    );
    [client, format!("20.0.0.2:{port}")]
}

/// A connection in which client and server say these things.
fn connection(flow: usize, says: &[(usize, &[u8])], is_closed: bool) -> Vec<(bool, Vec<u8>)> {
    let ends = ends(flow, 8080);
    let mut next = [1_000u32, 2_000];
    let mut frames = Vec::new();
    let mut send = |side: usize, flags: u8, payload: &[u8], next: &mut [u32; 2]| {
        let frame = tcp(&ends[side], &ends[1 - side], flags);
        frames.push((
            side == 1,
            frame
                .at(next[side], next[1 - side])
                .payload(payload)
                .bytes(),
        ));
        next[side] += payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
    };
    send(0, SYN, b"", &mut next);
    send(1, SYN | ACK, b"", &mut next);
    send(0, ACK, b"", &mut next);
    for (side, payload) in says {
        send(*side, ACK | 8, payload, &mut next);
    }
    if is_closed {
        send(0, FIN | ACK, b"", &mut next);
        send(1, FIN | ACK, b"", &mut next);
        send(0, ACK, b"", &mut next);
    }
    frames
}

fn datagrams(flow: usize, port: u16, says: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
    let ends = ends(flow, port);
    let frame = |(at, payload): (usize, &&[u8])| {
        let frame = udp(&ends[at % 2], &ends[1 - at % 2]).payload(payload);
        (at % 2 == 1, frame.bytes())
    };
    says.iter().enumerate().map(frame).collect()
}

fn loads() -> Vec<Load> {
    let many = |count: usize, flow: &dyn Fn(usize) -> Vec<(bool, Vec<u8>)>| {
        interleave((0..count).map(flow).collect())
    };
    let few = |count: usize, flow: &dyn Fn(usize) -> Vec<(bool, Vec<u8>)>| {
        let flows: Vec<_> = (0..count).map(flow).collect();
        let groups = flows.chunks(AT_A_TIME);
        groups
            .flat_map(|group| interleave(group.to_vec()))
            .collect()
    };
    let keep_alive: Vec<(usize, &[u8])> = (0..80).map(|at| [(0, GET), (1, OK)][at % 2]).collect();
    let full = [b'x'; SEGMENT];
    let mut large: Vec<(usize, &[u8])> = vec![(0, GET), (1, OK)];
    for at in 0..450 {
        large.push(if at % 3 == 2 { (0, b"") } else { (1, &full) });
    }
    let handshake = [
        (0, HELLOS[0]),
        (1, HELLOS[1]),
        (0, &full[..80]),
        (1, &full[..200]),
    ];
    // What costs most: nothing is known until the line's end, and each byte has all of them looked at.
    let line = [&b"GET /"[..], &[b'a'; 2000], b" HTTP/1.1\r\n"].concat();
    let slow: Vec<(usize, &[u8])> = line.chunks(1).map(|byte| (0, byte)).collect();
    let (small, big): (&[u8], &[u8]) = (&full[..18], &full[..1400]);
    let load = |name, sessions, frames: Vec<(bool, Vec<u8>)>| {
        let mut bytes = Vec::new();
        let mut place = |(is_reply, frame): (bool, Vec<u8>)| {
            let start = bytes.len();
            bytes.extend(frame);
            (is_reply, start..bytes.len())
        };
        Load {
            name,
            sessions,
            frames: frames.into_iter().map(&mut place).collect(),
            bytes,
            ns: Vec::new(),
            allowed: 0,
        }
    };
    vec![
        load(
            "http keep-alive, small",
            4096,
            many(1000, &|n| connection(n, &keep_alive, true)),
        ),
        load(
            "http, large bodies",
            4096,
            many(64, &|n| connection(n, &large, true)),
        ),
        load(
            "http, a connection each",
            65_536,
            few(10_000, &|n| connection(n, &[(0, GET), (1, OK)], true)),
        ),
        load(
            "tls handshakes",
            65_536,
            few(10_000, &|n| connection(n, &handshake, true)),
        ),
        load(
            "dns",
            65_536,
            few(20_000, &|n| datagrams(n, 53, &[QUERY, ANSWER])),
        ),
        load(
            "dns, 20k unanswered at a time",
            65_536,
            many(20_000, &|n| datagrams(n, 53, &[QUERY, ANSWER])),
        ),
        load(
            "udp 60 bytes, 20k flows",
            65_536,
            many(20_000, &|n| datagrams(n, 4000, &[small; 6])),
        ),
        load(
            "udp 1400 bytes",
            4096,
            many(64, &|n| datagrams(n, 4000, &[big; 400])),
        ),
        load(
            "http, a byte a segment",
            4096,
            many(16, &|n| connection(n, &slow, true)),
        ),
        load(
            "syn flood, table full",
            16_384,
            many(200_000, &|n| connection(n, &[], false)[..1].to_vec()),
        ),
    ]
}

/// CPU time of this thread: other work on the machine counts only by what it does to the caches.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec that lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn run_once(load: &mut Load, now_ns: u64) {
    let settings = Settings {
        mode: DpiMode::Monitor,
        max_sessions: load.sessions,
        stream_depth: 1 << 20,
    };
    let mut engine = Inspector::new(settings, Arc::new(Policies::default()), now_ns);
    let meta = Meta {
        ifindex: 1,
        is_ingress: true,
        is_reply: false,
        is_copy: true,
        policy: 0,
    };
    let (mut events, mut allowed) = (0usize, 0usize);
    let start = cpu_ns();
    for (at, (is_reply, range)) in load.frames.iter().enumerate() {
        let meta = Meta {
            is_reply: *is_reply,
            ..meta
        };
        let now_ns = now_ns + at as u64 * 1000;
        let frame = &load.bytes[range.clone()];
        let verdict = engine.judge(now_ns, &meta, frame, &mut |_| events += 1);
        allowed += usize::from(verdict == Verdict::Allow);
        if at % 4096 == 0 {
            engine.tick(now_ns, &mut |_| events += 1);
        }
    }
    let ns = (cpu_ns() - start) as f64 / load.frames.len() as f64;
    black_box(events);
    load.ns.push(ns);
    load.allowed = allowed;
}

#[derive(Serialize)]
struct Figure {
    name: &'static str,
    packets: usize,
    /// Share of packets that would have stayed in the kernel, or were the last that did not.
    allowed: f64,
    median_ns: f64,
    min_ns: f64,
}

#[derive(Serialize)]
struct Raw {
    machine: Machine,
    session_bytes: usize,
    loads: Vec<Figure>,
}

/// Runs; prints a table.
pub fn run(options: &Options) -> Result<()> {
    machine::pin(options.cpu)?;
    let mut loads = loads();
    loads.retain(|load| load.name.contains(&options.only));
    for round in 0..options.rounds {
        for load in &mut loads {
            run_once(load, u64::from(round + 1) << 40);
        }
    }
    let figure = |load: &Load| Figure {
        name: load.name,
        packets: load.frames.len(),
        allowed: load.allowed as f64 / load.frames.len() as f64,
        median_ns: machine::median(&load.ns),
        min_ns: load.ns.iter().copied().fold(f64::INFINITY, f64::min),
    };
    let raw = Raw {
        machine: Machine::here()?,
        session_bytes: Inspector::SESSION_BYTES,
        loads: loads.iter().map(figure).collect(),
    };
    println!(
        "{}; a session takes {} bytes",
        raw.machine.line(),
        raw.session_bytes
    );
    println!(
        "{:30} {:>9} {:>8} {:>12} {:>9}",
        "load", "packets", "allowed", "median, ns", "best, ns"
    );
    for Figure {
        name,
        packets,
        allowed,
        median_ns,
        min_ns,
    } in &raw.loads
    {
        println!(
            "{name:30} {packets:>9} {:>7.0}% {median_ns:>12.0} {min_ns:>9.0}",
            allowed * 100.0
        );
    }
    if let Some(path) = &options.out {
        fs::write(path, serde_json::to_string_pretty(&raw)? + "\n")?;
    }
    Ok(())
}
