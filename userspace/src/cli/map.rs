//! `map dump`: the maps in the shapes of flomesh xnet.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use fsm_common::flow::Flow;
use fsm_common::maps::{name, sys};
use fsm_common::nat::NatKey;
use serde_json::Value;

use super::out::{Array, Out};
use super::{Failure, Global, acl, pins};
use crate::maps::Maps;
use crate::view::seed;

/// Sub-verbs of `map`.
#[derive(Debug, Subcommand)]
pub enum Map {
    /// Write a map as [{"key":{…},"value":{…}}]; the maps of both families come as one
    Dump {
        /// Which map
        #[arg(value_parser = PossibleValuesParser::new(seed::DUMPS))]
        name: String,
    },
}

pub fn run(global: &Global, verb: Map) -> Result<(), Failure> {
    let Map::Dump { name } = verb;
    let maps = global.maps()?;
    let mut array = Out::new(global.output).array();
    dump(&maps, &name, &mut array)?;
    Ok(array.end()?)
}

fn dump(maps: &Maps, map: &str, array: &mut Array) -> Result<(), Failure> {
    let mut push = |entry: Value| Ok(array.push(&entry)?);
    match map {
        name::FSM_XNAT => {
            let bank = maps.settings()?.nat_bank;
            pins::each(&maps.dir, name::FSM_XNAT, |key: NatKey, value| {
                match u16::from(key.bank) == bank {
                    true => push(seed::nat(&key, &value)),
                    false => Ok(()),
                }
            })
        }
        name::FSM_XOPT => [name::FSM_XOPT, name::FSM_XOPT_HALF]
            .into_iter()
            .try_for_each(|map| {
                pins::each(&maps.dir, map, |key, value| {
                    push(seed::origin(&key, &value))
                })
            }),
        name::FSM_TRIP => pins::each(&maps.dir, name::FSM_TRIP, |key, value| {
            push(seed::trace_ip(&key, &value))
        }),
        name::FSM_TRPT => pins::each(&maps.dir, name::FSM_TRPT, |key, value| {
            push(seed::trace_port(&key, &value))
        }),
        name::FSM_XACL => acl::each(maps, |entry| push(seed::acl(&entry))),
        name::FSM_XFLOW => {
            let now_ns = pins::now_ns();
            for (map, flows) in [
                (name::FSM_XFLOW, &maps.flow4),
                (name::FSM_HALF, &maps.half4),
            ] {
                pins::each(&maps.dir, map, |key, flow: Flow<[u8; 4]>| {
                    let pair = pins::found(flows.get(&flow.pair_key(&key), 0))?;
                    push(seed::flow(&key, &flow, pair.as_ref(), now_ns))
                })?;
            }
            for (map, flows) in [
                (name::FSM_XFLOW6, &maps.flow6),
                (name::FSM_HALF6, &maps.half6),
            ] {
                pins::each(&maps.dir, map, |key, flow: Flow<[u8; 16]>| {
                    let pair = pins::found(flows.get(&flow.pair_key(&key), 0))?;
                    push(seed::flow(&key, &flow, pair.as_ref(), now_ns))
                })?;
            }
            Ok(())
        }
        name::FSM_XCFG => {
            // A load balancer's flags are the mesh's.
            let settings = maps.settings()?;
            for number in [sys::MESH, sys::E4LB].map(u32::from) {
                push(seed::cfg(number, &settings))?;
            }
            Ok(())
        }
        other => Err(Failure::Usage(format!("there is no dump of {other}"))),
    }
}
