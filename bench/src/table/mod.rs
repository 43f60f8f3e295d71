//! What a big flow table costs: making flows, memory, look-ups, and the sweep.

mod insert;
mod lookup;
mod memory;
mod sweep;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    asm,
    kernel::Setting,
    machine::{self, Machine},
    sys::ProgramKind,
    world::{Sandbox, World},
};

/// Arguments of `flows`.
#[derive(clap::Args)]
pub struct Options {
    /// Flows in the big table.
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,
    /// Rounds of what is measured in rounds.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Where the raw figures go [default: bench/results/flows-DATE.json].
    #[arg(long)]
    out: Option<PathBuf>,
    /// CPU to run on; the sweep runs on another.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

impl Options {
    /// Flows that the tables are made for: with a million in them the default of `conntrack.max_flows`.
    fn room(&self) -> u32 {
        (self.flows + 1).next_power_of_two()
    }
}

#[derive(Serialize)]
struct Raw {
    machine: Machine,
    flows: u32,
    insert: insert::Figures,
    memory: memory::Figures,
    lookup: Vec<lookup::Figure>,
    sweep: sweep::Figures,
}

/// Runs it, prints tables and keeps the raw figures.
pub fn run(options: &Options) -> Result<()> {
    let path = match &options.out {
        Some(path) => std::path::absolute(path)?,
        None => std::path::absolute(machine::results("flows")?)?,
    };
    // Opened on the host: a namespace may only read them. As many buckets as connections, as the kernel has
    // it by default.
    let room = options.room();
    let most = u64::from(room);
    let held = [
        Setting::hold("net.netfilter.nf_conntrack_max", most)?,
        Setting::hold("net.netfilter.nf_conntrack_buckets", most)?,
    ];
    machine::pin(options.cpu)?;
    let sandbox = Sandbox::enter()?;
    let empty = asm::empty(ProgramKind::Tc)?;

    eprintln!("memory");
    let mut memory = memory::netfilter(options.flows)?;
    drop(held);
    let mut world = World::new(&sandbox.root, "big", room, 0)?;
    memory.ours(&mut world, options.flows)?;
    eprintln!("making flows");
    let insert = insert::measure(&mut world, &empty, options.flows)?;
    eprintln!("sweep");
    let sweep = sweep::measure(&mut world, &empty, options)?;
    drop(world);
    eprintln!("look-ups");
    let lookup = lookup::measure(&sandbox, &empty, options)?;

    let raw = Raw {
        machine: Machine::here()?,
        flows: options.flows,
        insert,
        memory,
        lookup,
        sweep,
    };
    println!("{}; {} flows\n", raw.machine.line(), raw.flows);
    raw.insert.print();
    raw.memory.print();
    lookup::print(&raw.lookup);
    raw.sweep.print();
    fs::write(&path, serde_json::to_string_pretty(&raw)?)
        .with_context(|| path.display().to_string())?;
    println!("raw figures: {}", path.display());
    Ok(())
}
