//! Side by side in one run: no interception, nft's DNAT with conntrack, and ours. Three equal pairs of
//! namespaces (app, node with the listener), measured in turn, round after round; medians are compared.

mod load;
mod net;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::machine::{Machine, results};
pub use load::{Load, run as load};
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

/// Runs it, prints the table and keeps the raw figures.
pub fn run(options: &Options) -> Result<()> {
    let daemon = std::env::current_exe()?.with_file_name("fsm-fastpath");
    anyhow::ensure!(
        daemon.exists(),
        "{} is missing: build it with `cargo build --release`, or run bench/compare",
        daemon.display()
    );
    let pairs = Mode::ALL
        .map(|mode| Pair::new(mode, &daemon))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        // Another one begins each time: what warms up or throttles hits all alike.
        for turn in 0..pairs.len() {
            let pair = &pairs[(turn + round as usize) % pairs.len()];
            for (measure, value) in pair.measure(options.seconds).context(pair.mode.name())? {
                samples.push(Sample {
                    round,
                    mode: pair.mode.name(),
                    measure,
                    value,
                });
            }
        }
        eprintln!("round {} of {} done", round + 1, options.rounds);
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

fn table(samples: &[Sample]) -> String {
    let mut by: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for sample in samples {
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

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
