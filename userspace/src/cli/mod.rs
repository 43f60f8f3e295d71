//! The command line: one file a verb, one variant of [`Verb`] each.
//!
//! What only reads takes the pinned maps and so works with the daemon dead; what changes something asks
//! the daemon ([`crate::api`]). Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod acl;
mod arp;
mod cfg;
mod check;
mod doctor;
mod down;
mod dpi;
mod error;
mod flow;
mod flush;
mod global;
mod map;
mod nat;
mod opt;
mod out;
mod pcap;
mod pins;
mod reload;
mod run;
mod status;
mod trace;
mod wiring;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use error::Failure;
pub use global::Global;
pub use out::Format;

/// The node data path for service meshes: XDP, TC and AF_XDP.
///
/// Without a verb, `--config FILE` runs the daemon, as `run` does.
#[derive(Debug, Parser)]
#[command(name = "fsm-fastpath", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground; logs go to stderr
    Run,
    /// Check a configuration; say what would be attached and loaded, and change nothing
    Check,
    /// Show what works here, and what to do about the rest
    Doctor,
    /// Show the daemon, interfaces, counters, drops and how full the maps are
    Status,
    /// Rules by the peer's address: trusted, audit, deny
    #[command(subcommand)]
    Acl(acl::Acl),
    /// Where steered flows go
    #[command(subcommand)]
    Nat(nat::Nat),
    /// Virtual addresses of load balancers
    #[command(subcommand)]
    Arp(arp::Arp),
    /// Flags of the data path, for each family
    #[command(subcommand)]
    Cfg(cfg::Cfg),
    /// Live flows, as `conntrack` shows them
    #[command(subcommand)]
    Flow(flow::Flow),
    /// Original destinations of steered flows
    #[command(subcommand)]
    Opt(opt::Opt),
    /// What inspection knows: sessions, protocols, threats; its mode
    #[command(subcommand)]
    Dpi(dpi::Dpi),
    /// Addresses and ports whose packets are traced
    #[command(subcommand)]
    Trace(trace::Trace),
    /// The maps in the shapes of flomesh xnet, always as JSON
    #[command(subcommand)]
    Map(map::Map),
    /// Inspect captures: flows, their protocols, threats; needs no privileges and no daemon
    Pcap(pcap::Pcap),
    /// Make the daemon read its configuration again
    Reload,
    /// Remove programs, maps and pins, and end the daemon
    Down,
    /// A lab of network namespaces: build it, send real traffic through it, remove it
    Lab(wiring::LabArgs),
}

/// Parses the arguments, does what they say, and gives the exit code.
pub fn main() -> ExitCode {
    // Prints help or what is wrong, and ends with 0 or 2.
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("{}", failure.labelled(&text));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.verb.unwrap_or(Verb::Run) {
        Verb::Run => run::run(&global),
        Verb::Check => check::run(&global),
        Verb::Doctor => doctor::run(&global),
        Verb::Status => status::run(&global),
        Verb::Acl(verb) => acl::run(&global, verb),
        Verb::Nat(verb) => nat::run(&global, verb),
        Verb::Arp(verb) => arp::run(&global, verb),
        Verb::Cfg(verb) => cfg::run(&global, verb),
        Verb::Flow(verb) => flow::run(&global, verb),
        Verb::Opt(verb) => opt::run(&global, verb),
        Verb::Dpi(verb) => dpi::run(&global, verb),
        Verb::Trace(verb) => trace::run(&global, verb),
        Verb::Map(verb) => map::run(&global, verb),
        Verb::Pcap(args) => pcap::run(&global, &args),
        Verb::Reload => reload::run(&global),
        Verb::Down => down::run(&global),
        Verb::Lab(args) => wiring::lab(args, global.output == Format::Json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }
}
