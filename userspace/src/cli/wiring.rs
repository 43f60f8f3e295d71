//! Where the command line meets the daemon, the loader and the lab.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Failure;
use crate::config::Config;

/// Runs the daemon until it is told to end.
pub fn run_daemon(_config: Config, _path: PathBuf) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not wired yet")
}

/// Removes programs, maps and pins without the daemon's help; says what was removed.
pub fn take_down(_config: &Config) -> anyhow::Result<Vec<String>> {
    anyhow::bail!("removing without the daemon is not wired yet")
}

/// Arguments of `lab`.
#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    verb: LabVerb,
}

#[derive(Debug, Clone, Subcommand)]
enum LabVerb {
    /// Build the lab and leave it up
    Up,
    /// Send real traffic through the lab and check which way it goes
    Run,
    /// Remove the lab
    Down,
}

/// Builds, runs or removes the lab.
pub fn lab(args: LabArgs, _json: bool) -> Result<(), Failure> {
    Err(Failure::Said(
        format!("lab {:?}: the lab is not wired yet", args.verb).to_lowercase(),
    ))
}
