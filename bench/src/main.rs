//! Measures what the programs cost: by themselves (`programs`).

mod asm;
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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Programs(options) => programs::run(&options),
    }
}
