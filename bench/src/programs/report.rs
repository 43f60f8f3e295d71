//! Figures: medians, differences to the empty program, ratios to xnet's; as a table and as JSON lines.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Write as _},
};

use anyhow::Result;
use fsm_fastpath::loader::objects::program;
use serde_json::json;

use super::paths::{Path, Runner, Target};
use crate::{machine::Machine, sys::ProgramKind, world::World};

/// What xnet's harness measured for empty programs: TC, XDP.
const XNET_EMPTY: [f64; 2] = [19.0, 8.0];

/// One path's samples, in ns a packet.
pub struct Figure {
    name: String,
    kind: ProgramKind,
    wrapped: bool,
    target: Target,
    /// Of the empty program, or of the wrapper before it.
    pub base: Vec<u32>,
    /// Of the path.
    pub samples: Vec<u32>,
}

impl Figure {
    /// Without samples yet.
    pub fn new(path: &Path) -> Self {
        Self {
            name: path.name.clone(),
            kind: path.kind,
            wrapped: matches!(path.runner, Runner::Wrapped(..)),
            target: path.target,
            base: Vec::new(),
            samples: Vec::new(),
        }
    }

    fn net_median(&self) -> f64 {
        let nets: Vec<i64> = self
            .samples
            .iter()
            .zip(&self.base)
            .map(|(ns, base)| i64::from(*ns) - i64::from(*base))
            .collect();
        median_of(nets)
    }

    fn net_min(&self) -> f64 {
        min(&self.samples) - min(&self.base)
    }

    /// Ours as xnet's harness would show it, as a ratio to xnet's; whether the target is met.
    fn judge(&self, empty: [f64; 2]) -> Verdict {
        let at = usize::from(self.kind == ProgramKind::Xdp);
        let scale = XNET_EMPTY[at] / empty[at];
        let net = self.net_median() * scale;
        let (scaled, ratio, met) = match self.target {
            Target::Ratio(xnet, factor) => {
                (Some(net), Some(net / xnet), Some(net <= xnet * factor))
            }
            Target::Known(xnet) => (Some(net), Some(net / xnet), None),
            Target::Whole(wanted) => {
                let whole = median(&self.samples) * scale;
                (Some(whole), None, Some(whole <= wanted))
            }
            Target::None => (None, None, None),
        };
        Verdict { scaled, ratio, met }
    }
}

/// How a figure compares.
struct Verdict {
    scaled: Option<f64>,
    ratio: Option<f64>,
    met: Option<bool>,
}

fn median_of(mut values: Vec<i64>) -> f64 {
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle] as f64,
        _ => (values[middle - 1] + values[middle]) as f64 / 2.0,
    }
}

/// Of samples.
pub fn median(values: &[u32]) -> f64 {
    median_of(values.iter().map(|value| i64::from(*value)).collect())
}

fn min(values: &[u32]) -> f64 {
    values
        .iter()
        .min()
        .map_or(f64::NAN, |least| f64::from(*least))
}

/// The table, in Markdown.
pub fn table(figures: &[Figure], empty: [f64; 2]) -> String {
    let mut text = format!(
        "Empty program: TC {} ns, XDP {} ns.\n\n",
        empty[0], empty[1]
    );
    text += "| path | hook | ns | above empty | least | in xnet's harness | xnet | ratio | wanted | |\n";
    text += "|---|---|---:|---:|---:|---:|---:|---:|---:|---|\n";
    for figure in figures {
        let Verdict { scaled, ratio, met } = figure.judge(empty);
        let (xnet, wanted) = match figure.target {
            Target::Ratio(xnet, factor) => (xnet.to_string(), format!("{factor:.2}")),
            Target::Known(xnet) => (xnet.to_string(), String::new()),
            Target::Whole(ns) => (String::new(), format!("{ns} ns")),
            Target::None => (String::new(), String::new()),
        };
        let _ = writeln!(
            text,
            "| {}{} | {:?} | {} | {} | {} | {} | {xnet} | {} | {wanted} | {} |",
            figure.name,
            if figure.wrapped { " (w)" } else { "" },
            figure.kind,
            median(&figure.samples),
            figure.net_median(),
            figure.net_min(),
            scaled.map_or(String::new(), |scaled| format!("{scaled:.0}")),
            ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
            met.map_or("", |met| if met { "met" } else { "missed" }),
        );
    }
    text
}

/// Size of a program.
pub struct Program {
    name: &'static str,
    insns: u32,
    jited_bytes: u32,
    verified: u32,
}

/// All programs of a world.
pub fn programs(world: &mut World) -> Result<Vec<Program>> {
    let xdp = [program::XDP]
        .into_iter()
        .chain(program::XDP_SLOW.map(|(name, _)| name));
    let tc = [program::TC_INGRESS, program::TC_EGRESS]
        .into_iter()
        .chain(program::TC_SLOW.map(|(name, _)| name));
    let mut infos = Vec::new();
    for name in xdp {
        infos.push((name, world.objects.xdp(name).info()?));
    }
    for name in tc {
        infos.push((name, world.objects.tc(name).info()?));
    }
    infos.push((program::ORIGIN, world.objects.origin().info()?));
    let size = |(name, info): (&'static str, aya::programs::ProgramInfo)| Program {
        name,
        insns: info.size_translated().unwrap_or(0) / 8,
        jited_bytes: info.size_jitted(),
        verified: info.verified_instruction_count().unwrap_or(0),
    };
    Ok(infos.into_iter().map(size).collect())
}

/// Their table.
pub fn program_table(programs: &[Program]) -> String {
    let mut text =
        "| program | instructions | JIT bytes | verified |\n|---|---:|---:|---:|\n".to_owned();
    for p in programs {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            p.name, p.insns, p.jited_bytes, p.verified
        );
    }
    text
}

/// JSON lines: the machine, the programs, each path with every sample.
pub fn write(
    file: File,
    machine: &Machine,
    programs: &[Program],
    figures: &[Figure],
    empty: [f64; 2],
) -> Result<()> {
    let mut out = BufWriter::new(file);
    writeln!(
        out,
        "{}",
        json!({ "machine": machine, "empty_tc_ns": empty[0], "empty_xdp_ns": empty[1] })
    )?;
    for p in programs {
        let (insns, jited, verified) = (p.insns, p.jited_bytes, p.verified);
        writeln!(
            out,
            "{}",
            json!({ "program": p.name, "insns": insns, "jited_bytes": jited, "verified": verified })
        )?;
    }
    for figure in figures {
        let Verdict { scaled, ratio, met } = figure.judge(empty);
        let line = json!({
            "path": figure.name,
            "hook": format!("{:?}", figure.kind),
            "wrapped": figure.wrapped,
            "median_ns": median(&figure.samples),
            "min_ns": min(&figure.samples),
            "net_median_ns": figure.net_median(),
            "net_min_ns": figure.net_min(),
            "ns_in_xnet_harness": scaled,
            "ratio_to_xnet": ratio,
            "target_met": met,
            "base_samples_ns": figure.base,
            "samples_ns": figure.samples,
        });
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
