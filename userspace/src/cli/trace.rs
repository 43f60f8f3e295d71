//! `trace`: addresses and ports whose packets are traced.

use clap::{Args, Subcommand};
use fsm_common::maps::name;

use super::out::Out;
use super::words::address;
use super::{Failure, Global, pins};
use crate::api::{Request, TraceArgs};
use crate::view::trace::TraceRow;

/// Sub-verbs of `trace`.
#[derive(Debug, Subcommand)]
pub enum Trace {
    /// Show what is traced
    List,
    /// Trace an address or a port
    Add(What),
    /// Stop tracing it
    Del(What),
}

/// What is traced.
#[derive(Debug, Args)]
pub struct What {
    #[command(flatten)]
    which: Which,
    /// Write it to the configuration too
    #[arg(long)]
    save: bool,
}

/// One of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Source or destination address
    #[arg(long, value_name = "ADDR", value_parser = address)]
    ip: Option<String>,
    /// Source or destination port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

impl From<What> for TraceArgs {
    fn from(what: What) -> Self {
        Self {
            ip: what.which.ip,
            port: what.which.port,
            save: what.save,
        }
    }
}

pub fn run(global: &Global, verb: Trace) -> Result<(), Failure> {
    let request = match verb {
        Trace::List => return list(global),
        Trace::Add(what) => Request::TraceAdd(what.into()),
        Trace::Del(what) => Request::TraceDel(what.into()),
    };
    let response = global.ask(&request)?;
    Ok(Out::new(global.output).response(&response)?)
}

fn list(global: &Global) -> Result<(), Failure> {
    let maps = global.maps()?;
    let mut rows = Vec::new();
    pins::each(&maps.dir, name::FSM_TRIP, |key, on| {
        rows.push(TraceRow::of_ip(&key, &on));
        Ok(())
    })?;
    pins::each(&maps.dir, name::FSM_TRPT, |key, on| {
        rows.push(TraceRow::of_port(&key, &on));
        Ok(())
    })?;
    rows.sort();
    Ok(Out::new(global.output).rows(rows)?)
}
