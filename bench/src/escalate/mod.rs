//! The same inline job by different means: every packet of a UDP flow from A to B is taken on the node, seen by a
//! consumer in user space, and goes on. NFQUEUE, AF_PACKET, AF_XDP with libxdp, and ours, in turn.

mod net;
mod nfqueue;
mod ours;
mod programs;
mod report;
mod series;
mod tpacket;
mod xdpsock;

use std::{fs, path::PathBuf, thread};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    hosts,
    machine::{self, Machine, results},
    sys::{self, ProgramKind},
};
use net::{Alone, Cost, Mode, Row};
use ours::Dpi;
pub use programs::Sink;

/// Arguments of `escalate`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures everything once in every mode.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Bytes in a datagram, with commas between.
    #[arg(long, default_value = "64,1400", value_delimiter = ',')]
    payloads: Vec<u32>,
    /// Packets a second at which CPU time is measured; all modes must bear it.
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Datagrams that leave A together, as a network card hands packets over.
    #[arg(long, default_value_t = 32)]
    train: u32,
    /// Only these modes, with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Mode>,
    /// Only these parts, with commas between.
    #[arg(long, value_delimiter = ',', default_value = "through,alone,bulk")]
    parts: Vec<Part>,
    /// Where the raw figures go [default: bench/results/escalate-DATE.json].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// Packets by way of a consumer.
    Through,
    /// Loops of libxdp that send nothing on.
    Alone,
    /// TCP after a verdict, and without inspection.
    Bulk,
}

/// What takes packets, each a process.
#[derive(clap::Subcommand)]
pub enum Through {
    /// Accept whatever a queue has
    Nfqueue {
        #[arg(long)]
        queue: u16,
        #[arg(long)]
        cpu: usize,
    },
    /// Bridge two devices
    Tpacket {
        version: tpacket::Version,
        first: String,
        second: String,
        #[arg(long)]
        cpu: usize,
    },
    /// Have the datagrams of a device sent out of another
    Take { from: String, to: String },
    /// The same for two devices, and put them back when they come from the third
    Pair {
        first: String,
        second: String,
        pair: String,
    },
}

/// Where the payload of a datagram begins: in a packet, and in a frame.
const IP_PAYLOAD: usize = 28;
const FRAME_PAYLOAD: usize = 42;

/// A consumer's look at a packet: its payload is read at both ends.
fn see(packet: &[u8], payload: usize) {
    std::hint::black_box((
        packet
            .get(payload..)
            .and_then(|rest| rest.first_chunk::<8>().copied()),
        packet.last().copied(),
    ));
}

/// Consumes until killed.
pub fn through(what: &Through) -> Result<()> {
    let on = |cpu: &usize| machine::pin(*cpu).context("cpu");
    match what {
        Through::Nfqueue { queue, cpu } => {
            on(cpu)?;
            nfqueue::consume(*queue)
        }
        Through::Tpacket {
            version,
            first,
            second,
            cpu,
        } => {
            on(cpu)?;
            tpacket::bridge(*version, first, second)
        }
        Through::Take { from, to } => {
            let take = programs::take(sys::ifindex(to)?)?;
            let _link = sys::attach(ProgramKind::Tc, &take, sys::ifindex(from)?)?;
            rest()
        }
        Through::Pair {
            first,
            second,
            pair,
        } => {
            let [first, second, pair] = [first, second, pair].map(|device| sys::ifindex(device));
            let (first, second, pair) = (first?, second?, pair?);
            let take = programs::take(pair)?;
            let back = programs::give_back(net::TOWARDS_A, first, second)?;
            let _links = [
                sys::attach(ProgramKind::Tc, &take, first)?,
                sys::attach(ProgramKind::Tc, &take, second)?,
                sys::attach(ProgramKind::Tc, &back, pair)?,
            ];
            rest()
        }
    }
}

fn rest() -> ! {
    loop {
        thread::park();
    }
}

/// One run of a mode with one size of packets.
#[derive(Serialize)]
struct Run {
    round: u32,
    mode: &'static str,
    payload: u32,
    through: net::Through,
    /// Not of a loop alone: nothing arrives.
    cost: Option<Cost>,
    /// Microseconds there and back, p50 and p99: a millisecond between two, and at once.
    trip_idle_us: Option<[f64; 2]>,
    trip_busy_us: Option<[f64; 2]>,
}

/// Bulk TCP in one round.
#[derive(Serialize)]
struct Bulk {
    round: u32,
    dpi: &'static str,
    gbit_per_s: f64,
}

#[derive(Serialize)]
struct Raw {
    machine: Machine,
    seconds: u32,
    rate: u64,
    train: u32,
    runs: Vec<Run>,
    bulk: Vec<Bulk>,
}

/// Trips of one measurement: with a millisecond in between, and at once.
const TRIPS: [(u32, u64); 2] = [(300, 1000), (5000, 0)];

/// Runs it, prints the tables and keeps the raw figures.
pub fn run(options: &Options) -> Result<()> {
    // Others' work on the machine waits for this benchmark's, all of which is alike.
    machine::come_first().context("priority")?;
    let daemon = hosts::daemon()?;
    let dir = hosts::Hosts::new("build", &[])?;
    let program = xdpsock::compile(&dir.dir)?;
    let has_ours = ours::is_there(&daemon)?;
    let mut modes = Mode::ALL.to_vec();
    if !has_ours {
        eprintln!("this build's daemon does not inspect: ours is left out");
        modes.retain(|mode| *mode != Mode::Ours);
    }
    modes.retain(|mode| options.only.is_empty() || options.only.contains(mode));
    let is_part = |part| options.parts.contains(&part);
    if !is_part(Part::Through) {
        modes.clear();
    }
    let (mut runs, mut bulk) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        for turn in 0..modes.len() {
            // Another one begins each time: what warms up or throttles hits all alike.
            let mode = modes[(turn + round as usize) % modes.len()];
            eprintln!("round {}: {}", round + 1, mode.name());
            let row = Row::new(mode, options.train, &program, &daemon).context(mode.name())?;
            for payload in &options.payloads {
                runs.push(once(options, &row, mode, *payload, round).context(mode.name())?);
            }
        }
        if is_part(Part::Alone) {
            for what in Alone::ALL {
                for payload in &options.payloads {
                    let row = Row::alone(what, options.train, &program).context(what.name())?;
                    let through = row.loop_alone(what, &program, *payload, options.seconds);
                    runs.push(Run {
                        round,
                        mode: what.name(),
                        payload: *payload,
                        through: through.context(what.name())?,
                        cost: None,
                        trip_idle_us: None,
                        trip_busy_us: None,
                    });
                }
            }
        }
        if is_part(Part::Bulk) && has_ours {
            for dpi in [Dpi::Off, Dpi::Offloading] {
                let row = Row::bulk(dpi, &daemon).context(dpi.name())?;
                match row.tcp(options.seconds.max(2)) {
                    Ok(gbit_per_s) => bulk.push(Bulk {
                        round,
                        dpi: dpi.name(),
                        gbit_per_s,
                    }),
                    Err(error) => eprintln!("bulk TCP, {}: {error:#}", dpi.name()),
                }
            }
        }
        eprintln!("round {} of {} done", round + 1, options.rounds);
    }
    let raw = Raw {
        machine: Machine::here()?,
        seconds: options.seconds,
        rate: options.rate,
        train: options.train,
        runs,
        bulk,
    };
    println!(
        "{}; {} rounds of {} s, medians\n",
        raw.machine.line(),
        options.rounds,
        options.seconds
    );
    print!("{}", report::tables(&raw, &options.payloads));
    let path = match &options.out {
        Some(path) => path.clone(),
        None => results("escalate")?,
    };
    fs::write(&path, serde_json::to_string_pretty(&raw)?)
        .with_context(|| path.display().to_string())?;
    println!("\nraw figures: {}", path.display());
    Ok(())
}

fn once(options: &Options, row: &Row, mode: Mode, payload: u32, round: u32) -> Result<Run> {
    let through = row.flood(payload, options.seconds)?;
    let cost = row.cost(payload, options.rate, options.seconds * 2)?;
    let [idle, busy] = TRIPS.map(|(count, rest_us)| row.trips(payload, count, rest_us));
    Ok(Run {
        round,
        mode: mode.name(),
        payload,
        through,
        cost: Some(cost),
        trip_idle_us: Some(idle?),
        trip_busy_us: Some(busy?),
    })
}
