//! ns a packet of every program path, by BPF_PROG_TEST_RUN, beside empty programs in the same rounds.
//!
//! Each sample of a path follows one of the empty program (behind the same wrapper, where there is one);
//! what counts is the difference. Rounds interleave all paths, so that a busy machine hits all alike.

mod paths;
mod report;
mod wrapped;

use std::{fs::File, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use fsm_common::{Reason, stats::Hook};
use paths::{Fresh, Path, Runner};
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
    let repeat = path.fresh.as_ref().map_or(repeat, |fresh| fresh.packets);
    let ran = |program: &std::os::fd::OwnedFd| -> Result<u32> {
        let ns = sys::test_run(program, &path.frame, repeat, None)?.ns;
        Ok(ns * path.per)
    };
    match &path.runner {
        Runner::Direct(program) => Ok((ran(empty)?, ran(program)?)),
        Runner::Wrapped(program, empty) => {
            let base = ran(&empty.program)?;
            if let Some(fresh) = &path.fresh {
                program.rewind()?;
                fresh.prepare(&path.frame)?;
            }
            let ns = ran(&program.program)?;
            if let Some(fresh) = &path.fresh {
                fresh.clean().with_context(|| path.name.clone())?;
            }
            Ok((base, ns))
        }
    }
}

impl Fresh {
    /// Does what goes before a sample.
    fn prepare(&self, frame: &[u8]) -> Result<()> {
        if let Some((wrapper, packets)) = &self.prepare {
            wrapper.rewind()?;
            sys::test_run(&wrapper.program, frame, *packets, None)?;
        }
        Ok(())
    }

    /// Removes what a sample has made, which must be all that was expected.
    fn clean(&self) -> Result<()> {
        let removed = (self.cleanup)()?;
        let expected = self.entries;
        ensure!(
            removed == expected,
            "{removed} entries made, not {expected}"
        );
        Ok(())
    }
}

/// Runs a path once over and looks at the counters: every packet must go the way that is measured.
fn verify(path: &Path, world: &mut World) -> Result<()> {
    world.place(path.role, &path.settings)?;
    let program = match &path.runner {
        Runner::Direct(program) => program,
        Runner::Wrapped(wrapper, _) => &wrapper.program,
    };
    match &path.fresh {
        // makes the flow of paths on which flows are made by their first packet
        None => drop(sys::test_run(program, &path.frame, 2, None)?),
        Some(fresh) => fresh.prepare(&path.frame)?,
    }
    let fresh = path.fresh.as_ref();
    let (runs, flows) = fresh.map_or((100, 0), |fresh| (fresh.packets, fresh.flows));
    let (hook, verdict) = path.expect;
    // A handshake goes both ways.
    let hooks: &[Hook] = match hook {
        Hook::Xdp => &[Hook::Xdp],
        _ => &[Hook::TcIngress, Hook::TcEgress],
    };
    let counted = |world: &World| -> Result<u64> {
        hooks.iter().map(|hook| world.counted(*hook, verdict)).sum()
    };
    let (before, new_before) = (counted(world)?, world.reason(Reason::FlowNew)?);
    let ran = sys::test_run(program, &path.frame, runs, None)?;
    let counted = counted(world)? - before;
    let made = world.reason(Reason::FlowNew)? - new_before;
    ensure!(
        counted == u64::from(runs),
        "{counted} of {runs} packets were {verdict:?}; last action {}",
        ran.action
    );
    ensure!(
        made == u64::from(flows),
        "{made} of {flows} flows were made"
    );
    if let Runner::Direct(program) = &path.runner {
        let mut out = vec![0; path.frame.len()];
        sys::test_run(program, &path.frame, 1, Some(&mut out))?;
        ensure!(packet::is_sound(&out), "checksums are wrong afterwards");
    }
    if let Some(fresh) = fresh {
        fresh.clean()?;
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
