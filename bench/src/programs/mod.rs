//! ns a packet of every program path, by BPF_PROG_TEST_RUN, beside empty programs in the same rounds.
//!
//! Each sample of a path follows one of the empty program (behind the same wrapper, where there is one);
//! what counts is the difference. Rounds interleave all paths, so that a busy machine hits all alike.

mod flows;
mod paths;
mod report;
mod wrapped;

use std::{fs::File, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use fsm_common::Reason;
use paths::{Path, Runner};
use report::{Figure, Program};

use crate::{
    asm,
    machine::{self, Machine},
    packet,
    sys::{self, ProgramKind},
    world::{Sandbox, World},
};

/// Options.
#[derive(clap::Args)]
pub struct Options {
    /// Fewer rounds, smaller tables: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Rounds over all paths.
    #[arg(long)]
    rounds: Option<u32>,
    /// Runs of a sample.
    #[arg(long)]
    repeat: Option<u32>,
    /// Only paths whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Raw figures, one JSON object a line [default: bench/results/programs-DATE.json; none with --quick].
    #[arg(long)]
    out: Option<PathBuf>,
    /// CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// Runs; prints a table.
pub fn run(options: &Options) -> Result<()> {
    let quick = options.quick;
    let rounds = options.rounds.unwrap_or(if quick { 8 } else { 40 });
    let repeat = options.repeat.unwrap_or(if quick { 5_000 } else { 20_000 });
    machine::pin(options.cpu)?;
    let out = match &options.out {
        Some(path) => Some(path.clone()),
        None if quick => None,
        None => Some(machine::results("programs")?),
    };
    // opened before the mounts change
    let file = out
        .as_ref()
        .map(|path| File::create(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let sandbox = Sandbox::enter()?;

    let most = if quick { 100_000 } else { 1_048_576 };
    let labels = ["few", "4k", if quick { "100k" } else { "1M" }];
    let mut worlds = vec![
        World::new(&sandbox.root, "a", 1_250_000, 0)?,
        World::new(&sandbox.root, "b", 4096, 4096)?,
        World::new(&sandbox.root, "c", 4096, most)?,
    ];
    let programs = report::programs(&mut worlds[0])?;
    let many: &[u32] = if quick {
        &[100_000]
    } else {
        &[100_000, 1_000_000]
    };
    let mut paths = paths::all(&mut worlds, &labels, many, repeat.min(20_000))?;
    paths.retain(|path| path.name.contains(&options.only));
    for path in &paths {
        verify(path, &mut worlds[path.world]).with_context(|| path.name.clone())?;
    }

    let mut figures: Vec<Figure> = paths.iter().map(Figure::new).collect();
    let mut empty = [Vec::new(), Vec::new()];
    let direct = [asm::empty(ProgramKind::Tc)?, asm::empty(ProgramKind::Xdp)?];
    for _ in 0..rounds {
        for (program, samples) in direct.iter().zip(&mut empty) {
            samples.push(sys::test_run(program, &[0; 98], repeat, None)?.ns);
        }
        for (path, figure) in paths.iter().zip(&mut figures) {
            let empty = &direct[usize::from(path.kind == ProgramKind::Xdp)];
            let (base, ns) = sample(path, &mut worlds[path.world], empty, repeat)?;
            figure.base.push(base);
            figure.samples.push(ns);
        }
    }
    finish(
        &Machine::here()?,
        &programs,
        &figures,
        &empty,
        rounds,
        repeat,
        file,
    )?;
    if let Some(path) = out {
        eprintln!("raw figures: {}", path.display());
    }
    Ok(())
}

/// One sample of the empty program and one of the path, in ns a packet.
fn sample(
    path: &Path,
    world: &mut World,
    empty: &std::os::fd::OwnedFd,
    repeat: u32,
) -> Result<(u32, u32)> {
    world.place(path.role, &path.settings)?;
    let repeat = path.fresh.as_ref().map_or(repeat, |(count, ..)| *count);
    match &path.runner {
        Runner::Direct(program) => {
            let base = sys::test_run(empty, &path.frame, repeat, None)?.ns;
            Ok((base, sys::test_run(program, &path.frame, repeat, None)?.ns))
        }
        Runner::Wrapped(program, empty) => {
            let base = sys::test_run(&empty.program, &path.frame, repeat, None)?.ns;
            if path.fresh.is_some() {
                program.rewind()?;
            }
            let ns = sys::test_run(&program.program, &path.frame, repeat, None)?.ns;
            if let Some((_, made, cleanup)) = &path.fresh {
                let removed = cleanup()?;
                ensure!(
                    removed == *made,
                    "{}: {removed} entries made, not {made}",
                    path.name
                );
            }
            Ok((base, ns))
        }
    }
}

/// Runs a path once over and looks at the counters: every packet must go the way that is measured.
fn verify(path: &Path, world: &mut World) -> Result<()> {
    world.place(path.role, &path.settings)?;
    let program = match &path.runner {
        Runner::Direct(program) => program,
        Runner::Wrapped(wrapper, _) => &wrapper.program,
    };
    // makes the flow of paths on which flows are made by their first packet
    if path.fresh.is_none() {
        sys::test_run(program, &path.frame, 2, None)?;
    }
    let runs = path.fresh.as_ref().map_or(100, |(count, ..)| *count);
    let (hook, verdict) = path.expect;
    let new = |world: &World| {
        world
            .maps
            .reason
            .get(&(Reason::FlowNew as u32), 0)
            .map(|n| n.iter().sum::<u64>())
    };
    let (before, new_before) = (world.counted(hook, verdict)?, new(world)?);
    let ran = sys::test_run(program, &path.frame, runs, None)?;
    let counted = world.counted(hook, verdict)? - before;
    let made = new(world)? - new_before;
    ensure!(
        counted == u64::from(runs),
        "{counted} of {runs} packets were {verdict:?}; last action {}",
        ran.action
    );
    let expected = if path.fresh.is_some() {
        u64::from(runs)
    } else {
        0
    };
    ensure!(made == expected, "{made} of {expected} flows were made");
    if let Runner::Direct(program) = &path.runner {
        let mut out = vec![0; path.frame.len()];
        sys::test_run(program, &path.frame, 1, Some(&mut out))?;
        ensure!(packet::is_sound(&out), "checksums are wrong afterwards");
    }
    if let Some((_, entries, cleanup)) = &path.fresh {
        let removed = cleanup()?;
        ensure!(
            removed == *entries,
            "{removed} of {entries} entries were removed"
        );
    }
    Ok(())
}

fn finish(
    machine: &Machine,
    programs: &[Program],
    figures: &[Figure],
    empty: &[Vec<u32>; 2],
    rounds: u32,
    repeat: u32,
    file: Option<File>,
) -> Result<()> {
    println!("{}; {rounds} rounds of {repeat} packets\n", machine.line());
    let empty = [report::median(&empty[0]), report::median(&empty[1])];
    print!("{}", report::table(figures, empty));
    println!();
    print!("{}", report::program_table(programs));
    if let Some(file) = file {
        report::write(file, machine, programs, figures, empty)?;
    }
    Ok(())
}
