//! `arp`: tells the network where virtual addresses are.

use clap::Subcommand;

use super::out::Out;
use super::words::address;
use super::{Failure, Global};
use crate::api::{Announced, Request};
use crate::view::Row;

/// Sub-verbs of `arp`.
#[derive(Debug, Subcommand)]
pub enum Arp {
    /// Send gratuitous ARP or an unsolicited neighbour advertisement now
    Announce {
        /// The virtual address; without it all
        #[arg(value_parser = address)]
        vip: Option<String>,
    },
}

impl Row for Announced {
    const HEAD: &'static [&'static str] = &["VIP", "INTERFACE", "MAC"];

    fn cells(&self) -> Vec<String> {
        vec![self.vip.clone(), self.interface.clone(), self.mac.clone()]
    }
}

pub fn run(global: &Global, verb: Arp) -> Result<(), Failure> {
    let Arp::Announce { vip } = verb;
    let response = global.ask(&Request::ArpAnnounce { vip })?;
    let rows: Vec<Announced> = serde_json::from_value(response.data).unwrap_or_default();
    Ok(Out::new(global.output).rows(rows)?)
}
