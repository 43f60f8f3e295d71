//! Measures what the programs cost: by themselves (`programs`), beside nft (`compare`), and what
//! a million rules take (`acl`).

mod acl;
mod asm;
mod compare;
mod machine;
mod packet;
mod programs;
mod sys;
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
    /// Throughput, connections, latency and small packets beside nft's DNAT and no NAT at all.
    Compare(compare::Options),
    /// Clients and listeners of `compare`
    #[command(subcommand, hide = true)]
    Load(compare::Load),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Programs(options) => programs::run(&options),
        Verb::Acl(options) => acl::run(&options),
        Verb::Compare(options) => compare::run(&options),
        Verb::Load(load) => compare::load(&load),
    }
}
