//! `acl`: the rules by the peer's address.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use fsm_common::maps::name;
use fsm_common::policy::{Acl4Key, Acl6Key, CidrRules, CidrValue, acl as kernel};

use super::out::Out;
use super::words::{network, word};
use super::{Failure, Global, pins};
use crate::api::{AclArgs, Request};
use crate::config::{AclAction, AclProto, PortRange};
use crate::maps::Maps;
use crate::view::{acl, ip, port};

/// Sub-verbs of `acl`.
#[derive(Debug, Subcommand)]
pub enum Acl {
    /// Show the rules that are in force
    List,
    /// Add a rule, or change the one with this address, port and protocol
    Add {
        #[command(flatten)]
        key: Key,
        /// trusted: forward without NAT or DPI; audit: steer and inspect; deny: drop
        #[arg(long, value_parser = word::<AclAction>)]
        action: String,
        /// The owner's tag
        #[arg(long, default_value_t = 0)]
        id: u16,
        /// Write it to the configuration too; else it lasts until the next reload
        #[arg(long)]
        save: bool,
    },
    /// Remove a rule
    Del {
        #[command(flatten)]
        key: Key,
        /// Remove it from the configuration too
        #[arg(long)]
        save: bool,
    },
}

/// What makes two rules the same rule.
#[derive(Debug, Args)]
pub struct Key {
    /// The peer's address or network
    #[arg(value_parser = network)]
    addr: String,
    /// The peer's port or FIRST-LAST; 0 for any
    #[arg(long, default_value = "0", value_parser = word::<PortRange>)]
    port: String,
    /// tcp, udp, icmp or any
    #[arg(long, default_value = "any", value_parser = word::<AclProto>)]
    proto: String,
}

impl Key {
    fn args(self, action: String, id: u16, save: bool) -> Result<AclArgs, Failure> {
        let any_port = self.port.parse::<PortRange>().is_ok_and(PortRange::is_any);
        if self.proto == AclProto::Icmp.as_str() && !any_port {
            return Err(Failure::Usage(
                "ICMP has no ports: leave out --port, or use --proto tcp or udp".into(),
            ));
        }
        Ok(AclArgs {
            addr: self.addr,
            port: self.port,
            proto: self.proto,
            action,
            id,
            save,
        })
    }
}

pub fn run(global: &Global, verb: Acl) -> Result<(), Failure> {
    let request = match verb {
        Acl::List => return list(global),
        Acl::Add {
            key,
            action,
            id,
            save,
        } => Request::AclAdd(key.args(action, id, save)?),
        Acl::Del { key, save } => {
            Request::AclDel(key.args(AclAction::Audit.as_str().into(), 0, save)?)
        }
    };
    let response = global.ask(&request)?;
    Ok(Out::new(global.output).response(&response)?)
}

fn list(global: &Global) -> Result<(), Failure> {
    let maps = global.maps()?;
    let mut exact = Vec::new();
    each(&maps, |entry| {
        exact.push(entry);
        Ok(())
    })?;
    let policy = maps.settings()?.policy;
    let mut sets = HashMap::new();
    pins::each(&maps.dir, name::FSM_CIDR_SET, |number: u32, rules| {
        sets.insert(number, rules);
        Ok(())
    })?;
    let mut cidrs = Vec::new();
    let mut add = |net, value: CidrValue| {
        cidrs.extend(in_force(&value, policy, &sets).map(|rules| (net, rules)));
    };
    pins::nets4(&maps.dir, name::FSM_CIDR4, &mut add)?;
    pins::nets6(&maps.dir, name::FSM_CIDR6, &mut add)?;
    Ok(Out::new(global.output).rows(acl::rows(&exact, &cidrs))?)
}

/// The rules of a CIDR under this version of the policy, if it has any.
fn in_force(value: &CidrValue, policy: u32, sets: &HashMap<u32, CidrRules>) -> Option<CidrRules> {
    let rule = value.at(policy);
    match rule.acl {
        kernel::SILENT => None,
        kernel::SET => sets.get(&rule.number()).copied(),
        _ => {
            let mut one = CidrRules {
                len: 1,
                ..CidrRules::ZERO
            };
            one.rules[0] = *rule;
            Some(one)
        }
    }
}

/// Calls `visit` for what the entries of addresses and ports in force say.
pub fn each(
    maps: &Maps,
    mut visit: impl FnMut(acl::Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let policy = maps.settings()?.policy;
    pins::each(&maps.dir, name::FSM_XACL, |key: Acl4Key, value| {
        acl::entries(ip(key.addr), port(key.port), &value, policy).try_for_each(&mut visit)
    })?;
    pins::each(&maps.dir, name::FSM_XACL6, |key: Acl6Key, value| {
        acl::entries(ip(key.addr), port(key.port), &value, policy).try_for_each(&mut visit)
    })
}
