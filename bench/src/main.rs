//! Measures what the programs cost: by themselves (`programs`), with a big flow table (`flows`), beside nft
//! (`compare`, `flood`), what a million rules take (`acl`), the inspection engine (`dpi`), and packets by way of user
//! space (`escalate`).

mod acl;
mod asm;
mod compare;
mod ctnetlink;
mod dpi;
mod entries;
mod escalate;
mod flood;
mod hosts;
mod kernel;
mod load;
mod machine;
mod nfnetlink;
mod packet;
mod programs;
mod sys;
mod table;
mod world;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// ns a packet of every program path, beside empty programs.
    Programs(programs::Options),
    /// A million ACL rules: loading, changing, memory, and what packets pay.
    Acl(acl::Options),
    /// Connections a second, memory, look-ups and the sweep of a table of a million flows.
    Flows(table::Options),
    /// Throughput, connections, latency and small packets beside nft's DNAT and no NAT at all.
    Compare(compare::Options),
    /// Open and new connections in a flood of spoofed packets, beside nft's DNAT.
    Flood(flood::Options),
    /// ns a packet of the inspection engine, frames in memory.
    Dpi(dpi::Options),
    /// Packets by way of a consumer in user space: NFQUEUE, AF_PACKET, AF_XDP with libxdp, ours.
    Escalate(escalate::Options),
    /// Clients and listeners of `compare`, `flood` and `escalate`
    #[command(subcommand, hide = true)]
    Load(load::Load),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Programs(options) => programs::run(&options),
        Verb::Acl(options) => acl::run(&options),
        Verb::Flows(options) => table::run(&options),
        Verb::Compare(options) => compare::run(&options),
        Verb::Flood(options) => flood::run(&options),
        Verb::Dpi(options) => dpi::run(&options),
        Verb::Escalate(options) => escalate::run(&options),
        Verb::Load(load) => load::run(&load),
    }
}
