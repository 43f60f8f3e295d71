//! `nat`: where steered flows go.

use clap::{Args, Subcommand};
use fsm_common::maps::name;
use fsm_common::nat::NatKey;

use super::out::Out;
use super::words::{endpoint, word};
use super::{Failure, Global, pins};
use crate::api::{NatArgs, Request};
use crate::config::{Direction, Health, NatProto, NatTarget, OnRemoved, Select, Source, System};
use crate::view::nat::NatRow;

/// Sub-verbs of `nat`.
#[derive(Debug, Subcommand)]
pub enum Nat {
    /// Show the entries that are in force, those of [gateway] too
    List,
    /// Add an entry, or change the one with this direction, protocol and destination
    Add {
        #[command(flatten)]
        key: Key,
        /// Where the flows go: ADDR:PORT or ADDR:PORT@WEIGHT; may be repeated
        #[arg(long, required = true, value_name = "ADDR:PORT[@WEIGHT]", value_parser = endpoint)]
        endpoint: Vec<String>,
        /// maglev: by a hash of the flow; round-robin: in turn
        #[arg(long, default_value = "maglev", value_parser = word::<Select>)]
        select: String,
        /// e4lb: the uplink that carries the virtual address; without it every uplink
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
        /// e4lb: whose address endpoints see: auto, client or vip
        #[arg(long, default_value = "auto", value_parser = word::<Source>)]
        source: String,
        /// What becomes of flows whose endpoint is no longer there: drain or reset
        #[arg(long, default_value = "drain", value_parser = word::<OnRemoved>)]
        on_removed: String,
        /// Probe the endpoints: tcp, http or http:/PATH; without it an entry keeps what it has
        #[arg(long, value_name = "KIND", value_parser = word::<Health>)]
        health: Option<String>,
        /// Write it to the configuration too; else it lasts until the next reload
        #[arg(long)]
        save: bool,
    },
    /// Remove an entry
    Del {
        #[command(flatten)]
        key: Key,
        /// Remove it from the configuration too
        #[arg(long)]
        save: bool,
    },
}

/// What makes two entries the same entry.
#[derive(Debug, Args)]
pub struct Key {
    /// mesh: apps' traffic; e4lb: a virtual address
    #[arg(long, default_value = "mesh", value_parser = word::<System>)]
    system: String,
    /// egress: the app sends; ingress: the app receives, or a virtual address does
    #[arg(long, value_parser = word::<Direction>, required_unless_present = "system", required_if_eq("system", "mesh"), default_value_if("system", "e4lb", "ingress"))]
    direction: Option<String>,
    /// tcp or udp
    #[arg(long, value_parser = word::<NatProto>)]
    proto: String,
    /// The original destination: ADDR:PORT, ADDR, :PORT or any
    #[arg(long, value_parser = word::<NatTarget>)]
    to: String,
}

impl Key {
    fn args(self, endpoints: Vec<String>, select: String, save: bool) -> NatArgs {
        NatArgs {
            system: self.system,
            interface: None,
            source: Source::Auto.to_string(),
            on_removed: OnRemoved::Drain.to_string(),
            health: None,
            direction: self.direction.unwrap_or_default(),
            proto: self.proto,
            to: self.to,
            endpoints,
            select,
            save,
        }
    }
}

pub fn run(global: &Global, verb: Nat) -> Result<(), Failure> {
    let request = match verb {
        Nat::List => return list(global),
        Nat::Add {
            key,
            endpoint,
            select,
            interface,
            source,
            on_removed,
            health,
            save,
        } => Request::NatAdd(NatArgs {
            interface,
            source,
            on_removed,
            health,
            ..key.args(endpoint, select, save)
        }),
        Nat::Del { key, save } => {
            Request::NatDel(key.args(Vec::new(), Select::Maglev.as_str().into(), save))
        }
    };
    let response = global.ask(&request)?;
    Ok(Out::new(global.output).response(&response)?)
}

fn list(global: &Global) -> Result<(), Failure> {
    let maps = global.maps()?;
    let mut rows = Vec::new();
    let bank = maps.settings()?.nat_bank;
    pins::each(&maps.dir, name::FSM_XNAT, |key: NatKey, value| {
        if u16::from(key.bank) == bank {
            rows.push(NatRow::new(&key, &value));
        }
        Ok(())
    })?;
    rows.sort_by(|a, b| {
        let key = |row: &NatRow| {
            let (proto, to) = (row.proto.to_string(), row.to.clone());
            (row.system, row.direction, proto, row.family, to)
        };
        key(a).cmp(&key(b))
    });
    Ok(Out::new(global.output).rows(rows)?)
}
