//! Medians, as Markdown.

use super::{
    Raw, Run,
    net::{Alone, Mode},
};
use crate::machine::median;

/// All tables.
pub fn tables(raw: &Raw, payloads: &[u32]) -> String {
    let mut text = String::new();
    for payload in payloads {
        text += &format!("{payload} bytes a datagram:\n\n");
        text += &through(raw, *payload);
        text += "\n";
    }
    text += &alone(raw, payloads);
    if !raw.bulk.is_empty() {
        text += &bulk(raw);
    }
    text
}

fn all<'a>(raw: &'a Raw, mode: &str, payload: u32) -> Vec<&'a Run> {
    let runs = raw.runs.iter();
    runs.filter(|run| run.mode == mode && run.payload == payload)
        .collect()
}

fn of(runs: &[&Run], value: impl Fn(&Run) -> Option<f64>) -> f64 {
    median(&runs.iter().filter_map(|run| value(run)).collect::<Vec<_>>())
}

/// What a mode adds to a trip, one way: half of what it adds to both ways.
fn added(runs: &[&Run], direct: &[&Run], value: impl Fn(&Run) -> Option<f64>) -> f64 {
    (of(runs, &value) - of(direct, &value)) / 2.0
}

fn through(raw: &Raw, payload: u32) -> String {
    let mut text = String::from(
        "| | k packets/s at B, median | best | best of direct's | of xdpsock pair's | sent, k/s | CPU a packet, ns | beyond direct \
         | arrived at that rate | added one way, us: idle p50 | p99 | at once p50 | p99 |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let rate = |runs: &[&Run]| of(runs, |run| Some(run.through.per_second));
    let best = |runs: &[&Run]| {
        let rates = runs.iter().map(|run| run.through.per_second);
        rates.fold(0.0, f64::max)
    };
    let cpu = |runs: &[&Run]| {
        of(runs, |run| {
            let cost = run.cost.as_ref()?;
            Some(cost.sender_ns + cost.consumer_ns)
        })
    };
    let direct = all(raw, Mode::Direct.name(), payload);
    let pair = all(raw, Mode::Pair.name(), payload);
    for mode in Mode::ALL {
        let runs = all(raw, mode.name(), payload);
        if runs.is_empty() {
            continue;
        }
        let sent = of(&runs, |run| Some(run.through.sent_per_second));
        let share = of(&runs, |run| Some(run.cost.as_ref()?.arrived_share));
        let idle = |at: usize| added(&runs, &direct, |run| Some(run.trip_idle_us?[at]));
        let busy = |at: usize| added(&runs, &direct, |run| Some(run.trip_busy_us?[at]));
        text += &format!(
            "| {} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.1} % | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            mode.name(),
            rate(&runs) / 1e3,
            best(&runs) / 1e3,
            best(&runs) / best(&direct),
            best(&runs) / best(&pair),
            sent / 1e3,
            cpu(&runs),
            cpu(&runs) - cpu(&direct),
            100.0 * share,
            idle(0),
            idle(1),
            busy(0),
            busy(1),
        );
    }
    text
}

fn alone(raw: &Raw, payloads: &[u32]) -> String {
    let mut text = String::from("| libxdp's loop alone, best, k packets/s |");
    for payload in payloads {
        text += &format!(" {payload} bytes |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(payloads.len());
    text += "\n";
    let mut rows = 0;
    for what in Alone::ALL {
        let mut row = format!("| {} |", what.name());
        for payload in payloads {
            let runs = all(raw, what.name(), *payload);
            rows += runs.len();
            let rates = runs.iter().map(|run| run.through.per_second);
            row += &format!(" {:.0} |", rates.fold(0.0, f64::max) / 1e3);
        }
        text += &row;
        text += "\n";
    }
    if rows == 0 {
        String::new()
    } else {
        text + "\n"
    }
}

fn bulk(raw: &Raw) -> String {
    let of = |dpi: &str| {
        let runs = raw.bulk.iter().filter(|run| run.dpi == dpi);
        median(&runs.map(|run| run.gbit_per_s).collect::<Vec<_>>())
    };
    let (off, offloaded) = (of("off"), of("offloaded"));
    format!(
        "| bulk TCP, Gbit/s | never inspected | after the verdict | ratio |\n|---|---:|---:|---:|\n\
         | one connection | {off:.1} | {offloaded:.1} | {:.2} |\n",
        offloaded / off
    )
}
