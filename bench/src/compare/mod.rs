//! Side by side in one run: no interception, nft's DNAT with conntrack, and ours. Three equal pairs of
//! namespaces (app, node with the listener), measured in turn, round after round; medians are compared.

mod net;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::{
    hosts,
    kernel::Setting,
    machine::{Machine, median, results},
};
use net::{Mode, Pair};

/// Arguments of `compare`.
#[derive(Args)]
pub struct Options {
    /// Rounds; each measures everything once in every mode.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Connections a second are measured once more with this many connections of others in the tables; "" for
    /// none.
    #[arg(long, default_value = "1000,500000")]
    existing: String,
    /// Where the raw figures go [default: bench/results/compare-DATE.json].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is measured, in the order of the table: name, unit, whether more is better.
const MEASURES: [(&str, &str, bool); 6] = [
    ("bulk", "Gbit/s", true),
    ("connections", "1/s", true),
    ("round trip p50", "us", false),
    ("round trip p99", "us", false),
    ("udp 64 bytes", "packets/s", true),
    ("cpu of a connection", "us", false),
];

/// One figure.
#[derive(Serialize)]
struct Sample {
    /// Connections of others in the tables.
    existing: u32,
    round: u32,
    mode: &'static str,
    measure: &'static str,
    value: f64,
}

#[derive(Serialize)]
struct Raw {
    machine: Machine,
    seconds: u32,
    samples: Vec<Sample>,
}

/// Connections that netfilter must have room for beyond the others': each client port once.
const OWN_CONNECTIONS: u32 = 200_000;

/// Runs it, prints the table and keeps the raw figures.
pub fn run(options: &Options) -> Result<()> {
    let existing = existing(&options.existing)?;
    let daemon = hosts::daemon()?;
    let most = existing.iter().max().copied().unwrap_or(0) + OWN_CONNECTIONS;
    let _held = [
        Setting::hold_at_least("net.netfilter.nf_conntrack_max", most)?,
        Setting::hold_at_least("net.netfilter.nf_conntrack_buckets", most)?,
    ];
    let pairs = Mode::ALL
        .map(|mode| Pair::new(mode, &daemon))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut samples = Vec::new();
    rounds(options, &pairs, 0, &mut samples, Pair::measure)?;
    let mut there = 0;
    for count in &existing {
        for pair in &pairs {
            pair.fill(there..*count).context(pair.mode.name())?;
        }
        there = *count;
        rounds(options, &pairs, there, &mut samples, Pair::connections)?;
    }
    drop(pairs);
    let machine = Machine::here()?;
    println!(
        "{}; {} rounds of {} s, medians\n",
        machine.line(),
        options.rounds,
        options.seconds
    );
    print!("{}", table(&samples));
    println!();
    print!("{}", existing_table(&samples, &existing));
    let path = match &options.out {
        Some(path) => path.clone(),
        None => results("compare")?,
    };
    let raw = Raw {
        machine,
        seconds: options.seconds,
        samples,
    };
    fs::write(&path, serde_json::to_string_pretty(&raw)?)
        .with_context(|| path.display().to_string())?;
    println!("\nraw figures: {}", path.display());
    Ok(())
}

/// Numbers with commas between them, the least first.
fn existing(text: &str) -> Result<Vec<u32>> {
    let words = text.split(',').filter(|word| !word.is_empty());
    let mut counts = words
        .map(|word| {
            word.trim()
                .parse()
                .with_context(|| format!("--existing {word}"))
        })
        .collect::<Result<Vec<u32>>>()?;
    counts.sort_unstable();
    Ok(counts)
}

/// Measures all pairs in turn, round after round.
fn rounds(
    options: &Options,
    pairs: &[Pair],
    existing: u32,
    samples: &mut Vec<Sample>,
    measure: impl Fn(&Pair, u32) -> Result<Vec<(&'static str, f64)>>,
) -> Result<()> {
    for round in 0..options.rounds {
        // Another one begins each time: what warms up or throttles hits all alike.
        for turn in 0..pairs.len() {
            let pair = &pairs[(turn + round as usize) % pairs.len()];
            let figures = measure(pair, options.seconds).context(pair.mode.name())?;
            samples.extend(figures.into_iter().map(|(measure, value)| Sample {
                existing,
                round,
                mode: pair.mode.name(),
                measure,
                value,
            }));
        }
        eprintln!("round {} of {} done", round + 1, options.rounds);
    }
    Ok(())
}

fn existing_table(samples: &[Sample], existing: &[u32]) -> String {
    let mut text = String::from(
        "| connections/s with others in the table | direct | nft | ours | ours : nft |\n",
    );
    text += "|---:|---:|---:|---:|---:|\n";
    for count in [0].iter().chain(existing) {
        let [direct, nft, ours] = Mode::ALL.map(|mode| {
            let of = |s: &&Sample| {
                s.existing == *count && s.measure == "connections" && s.mode == mode.name()
            };
            let values: Vec<f64> = samples.iter().filter(of).map(|s| s.value).collect();
            median(&values)
        });
        text += &format!(
            "| {count} | {direct:.0} | {nft:.0} | {ours:.0} | {:.2} |\n",
            ours / nft
        );
    }
    text
}

fn table(samples: &[Sample]) -> String {
    let mut by: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.existing == 0) {
        by.entry((sample.measure, sample.mode))
            .or_default()
            .push(sample.value);
    }
    let of = |measure: &'static str, mode: Mode| {
        by.get(&(measure, mode.name()))
            .map_or(f64::NAN, |v| median(v))
    };
    let mut text = String::from("| | unit | direct | nft | ours | ours : nft | ours : direct |\n");
    text += "|---|---|---:|---:|---:|---:|---:|\n";
    for (measure, unit, more_is_better) in MEASURES {
        let [direct, nft, ours] = Mode::ALL.map(|mode| of(measure, mode));
        let note = if more_is_better {
            ""
        } else {
            " (less is better)"
        };
        text += &format!(
            "| {measure}{note} | {unit} | {direct:.1} | {nft:.1} | {ours:.1} | {:.2} | {:.2} |\n",
            ours / nft,
            ours / direct,
        );
    }
    text
}
