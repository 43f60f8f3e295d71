//! `opt`: original destinations of steered flows.

use std::net::SocketAddr;

use clap::Subcommand;
use fsm_common::maps::name;

use super::out::Out;
use super::words::proto;
use super::{Failure, Global, pins};
use crate::config;
use crate::view;
use crate::view::origin::OriginRow;

/// Sub-verbs of `opt`.
#[derive(Debug, Subcommand)]
pub enum Opt {
    /// Show all of them
    List,
    /// Show that of one flow
    Get {
        /// The flow's source as the gateway sees it: its socket's peer
        #[arg(value_name = "ADDR:PORT", value_parser = config::socket)]
        peer: SocketAddr,
        /// tcp or udp; both if not given
        #[arg(long, value_parser = proto)]
        proto: Option<u8>,
    },
}

pub fn run(global: &Global, verb: Opt) -> Result<(), Failure> {
    let maps = global.maps()?;
    let mut rows = Vec::new();
    let meant = |row: &OriginRow| match &verb {
        Opt::List => true,
        Opt::Get { peer, proto } => {
            row.peer == peer.to_string()
                && proto.is_none_or(|number| view::proto(number) == row.proto)
        }
    };
    for map in [name::FSM_XOPT, name::FSM_XOPT_HALF] {
        pins::each(&maps.dir, map, |key, origin| {
            rows.extend(Some(OriginRow::new(&key, &origin)).filter(meant));
            Ok(())
        })?;
    }
    if let (Opt::Get { peer, .. }, true) = (&verb, rows.is_empty()) {
        return Err(Failure::Said(format!("no steered flow comes from {peer}")));
    }
    Ok(Out::new(global.output).rows(rows)?)
}
