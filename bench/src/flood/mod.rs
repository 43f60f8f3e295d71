//! Floods of spoofed SYNs and of datagrams, while real clients connect and open connections send: ours, ours with
//! `[[protect]]`, and nft's DNAT with conntrack, in turn.

mod net;
mod plot;
mod series;

use std::{fs, path::PathBuf, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use crate::{
    hosts,
    kernel::Setting,
    load::FloodKind,
    machine::{Machine, median, results},
};
use net::{Mode, Row};
use series::Series;

/// Arguments of `flood`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds over all floods and all modes.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Spoofed packets a second, with commas between.
    #[arg(long, default_value = "200000,1000000", value_delimiter = ',')]
    rates: Vec<u64>,
    /// Seconds before the flood, in it and after it.
    #[arg(long, default_value = "2,4,4", value_delimiter = ',')]
    seconds: Vec<u32>,
    /// Open connections that send.
    #[arg(long, default_value_t = 8)]
    connections: u32,
    /// Mbit/s that these send together; 0: as much as goes, which leaves less of the machine for the flood.
    #[arg(long, default_value_t = 400)]
    mbit: u32,
    /// New connections a second.
    #[arg(long, default_value_t = 200)]
    clients: u32,
    /// netfilter's limit of connections; the default of a node with 1 GiB, which a flood fills in a moment.
    #[arg(long, default_value_t = 65_536)]
    conntrack_max: u64,
    /// Only these modes, with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Mode>,
    /// Where the raw figures go [default: bench/results/flood-DATE.json]; the plots go beside them.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One run.
#[derive(Serialize)]
pub struct Run {
    round: u32,
    mode: &'static str,
    kind: FloodKind,
    /// Packets a second: wanted, sent, and come through the wire.
    rate: u64,
    offered_per_s: f64,
    arrived_per_s: f64,
    /// What its connection table said afterwards.
    table: Value,
    series: Series,
}

#[derive(Serialize)]
struct Raw {
    machine: Machine,
    conntrack_max: u64,
    protect_new_per_s: u32,
    seconds: Vec<u32>,
    runs: Vec<Run>,
}

/// Runs it, prints tables, keeps the raw figures and draws them.
pub fn run(options: &Options) -> Result<()> {
    let [before, during, after] = options.seconds[..] else {
        anyhow::bail!("--seconds: three numbers are needed");
    };
    let phases = [before, during, after];
    let daemon = hosts::daemon()?;
    let path = match &options.out {
        Some(path) => path.clone(),
        None => results("flood")?,
    };
    let _held = Setting::hold("net.netfilter.nf_conntrack_max", options.conntrack_max)?;
    let mut modes = vec![Mode::Nft, Mode::Ours];
    if Row::can_protect(&daemon)? {
        modes.push(Mode::Guarded);
    } else {
        eprintln!("this build does not know [[protect]]: left out");
    }
    modes.retain(|mode| options.only.is_empty() || options.only.contains(mode));
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        for kind in [FloodKind::Syn, FloodKind::Udp] {
            for rate in &options.rates {
                for turn in 0..modes.len() {
                    let mode = modes[(turn + round as usize) % modes.len()];
                    let what = format!("{} {kind:?} {rate}", mode.name());
                    eprintln!("round {}: {what}", round + 1);
                    runs.push(
                        once(options, &daemon, mode, kind, *rate, phases, round).context(what)?,
                    );
                }
            }
        }
    }
    let machine = Machine::here()?;
    println!(
        "{}; {} rounds of {before}, {during} and {after} s, medians; nf_conntrack_max {}\n",
        machine.line(),
        options.rounds,
        options.conntrack_max
    );
    print!("{}", table(&runs, &modes, &options.rates));
    for kind in [FloodKind::Syn, FloodKind::Udp] {
        let file = path.with_file_name(format!(
            "{}-{}.svg",
            path.file_stem().unwrap_or_default().to_string_lossy(),
            kind.name()
        ));
        let most = options.rates.iter().max().copied().unwrap_or(0);
        let drawn: Vec<&Run> = runs
            .iter()
            .filter(|run| run.kind == kind && run.rate == most && run.round == 0)
            .collect();
        plot::draw(&file, kind, most, phases, &drawn)?;
        println!("plot: {}", file.display());
    }
    let raw = Raw {
        machine,
        conntrack_max: options.conntrack_max,
        protect_new_per_s: net::PROTECT_RATE,
        seconds: options.seconds.clone(),
        runs,
    };
    fs::write(&path, serde_json::to_string(&raw)?).with_context(|| path.display().to_string())?;
    println!("raw figures: {}", path.display());
    Ok(())
}

fn once(
    options: &Options,
    daemon: &std::path::Path,
    mode: Mode,
    kind: FloodKind,
    rate: u64,
    [before, during, after]: [u32; 3],
    round: u32,
) -> Result<Run> {
    let row = Row::new(mode, daemon)?;
    let whole = f64::from(before + during + after);
    let hold = row.hold(options.connections, options.mbit, whole)?;
    let probe = row.probe(options.clients, whole)?;
    sleep(Duration::from_secs(u64::from(before)));
    let arrived = row.arrived()?;
    let flood = row.flood(kind.name(), rate, during)?;
    let arrived = row.arrived()? - arrived;
    let table = row.table(daemon)?;
    let (hold, probe) = (hold.end()?, probe.end()?);
    let number = |key: &str| flood[key].as_u64().context("flood");
    let (start_ns, end_ns) = (number("start_ns")?, number("end_ns")?);
    Ok(Run {
        round,
        mode: mode.name(),
        kind,
        rate,
        offered_per_s: flood["offered_per_s"].as_f64().context("flood")?,
        arrived_per_s: arrived as f64 / ((end_ns - start_ns) as f64 / 1e9),
        table,
        series: Series::new(&hold, &probe, start_ns, end_ns)?,
    })
}

fn table(runs: &[Run], modes: &[Mode], rates: &[u64]) -> String {
    let mut text = String::from(
        "| flood | by | sent, k/s | arrived, k/s | open connections before, Mbit/s | in it | share | lost \
         | new connections in it, 1/s | of those tried | p50, ms | p99, ms |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for kind in [FloodKind::Syn, FloodKind::Udp] {
        for rate in rates {
            for mode in modes {
                let all: Vec<&Run> = runs
                    .iter()
                    .filter(|run| run.kind == kind && run.rate == *rate && run.mode == mode.name())
                    .collect();
                let of = |value: &dyn Fn(&Run) -> f64| {
                    median(&all.iter().map(|run| value(run)).collect::<Vec<_>>())
                };
                let (before, during) = (
                    of(&|run| run.series.before.mbit_per_s),
                    of(&|run| run.series.during.mbit_per_s),
                );
                text += &format!(
                    "| {} {}k/s | {} | {:.0} | {:.0} | {before:.0} | {during:.0} | {:.0} % | {:.0} | {:.0} | {:.0} % | {:.1} | {:.1} |\n",
                    kind.name(),
                    rate / 1000,
                    mode.name(),
                    of(&|run| run.offered_per_s) / 1e3,
                    of(&|run| run.arrived_per_s) / 1e3,
                    100.0 * during / before,
                    of(&|run| run.series.lost as f64),
                    of(&|run| run.series.during.connected_per_s),
                    100.0 * of(&|run| run.series.during.connected_share),
                    of(&|run| run.series.during.p50_ms),
                    of(&|run| run.series.during.p99_ms),
                );
            }
        }
    }
    text
}
