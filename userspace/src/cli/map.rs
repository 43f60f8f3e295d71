//! `map dump`: the maps in the shapes of flomesh xnet.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use fsm_common::maps::{name, sys};
use serde_json::Value;

use super::out::{Array, Out};
use super::{Failure, Global, pins};
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
        name::FSM_XNAT => pins::each(&maps.xnat, |key, value| push(seed::nat(&key, &value))),
        name::FSM_XOPT => [&maps.xopt, &maps.xopt_half]
            .into_iter()
            .try_for_each(|origins| {
                pins::each(origins, |key, value| push(seed::origin(&key, &value)))
            }),
        name::FSM_TRIP => pins::each(&maps.trip, |key, value| push(seed::trace_ip(&key, &value))),
        name::FSM_TRPT => pins::each(&maps.trpt, |key, value| {
            push(seed::trace_port(&key, &value))
        }),
        name::FSM_XACL => {
            pins::each(&maps.acl4, |key, value| push(seed::acl4(&key, &value)))?;
            pins::each(&maps.acl6, |key, value| push(seed::acl6(&key, &value)))
        }
        name::FSM_XFLOW => {
            let now_ns = pins::now_ns();
            for flows in [&maps.flow4, &maps.half4] {
                pins::each(flows, |key, flow| {
                    let pair = pins::found(flows.get(&flow.pair_key(&key), 0))?;
                    push(seed::flow(&key, &flow, pair.as_ref(), now_ns))
                })?;
            }
            for flows in [&maps.flow6, &maps.half6] {
                pins::each(flows, |key, flow| {
                    let pair = pins::found(flows.get(&flow.pair_key(&key), 0))?;
                    push(seed::flow(&key, &flow, pair.as_ref(), now_ns))
                })?;
            }
            Ok(())
        }
        name::FSM_XCFG => {
            for number in [sys::MESH, sys::E4LB].map(u32::from) {
                push(seed::cfg(number, &maps.xcfg.get(&number, 0)?))?;
            }
            Ok(())
        }
        other => Err(Failure::Usage(format!("there is no dump of {other}"))),
    }
}
