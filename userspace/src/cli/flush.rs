//! `flow flush`: takes flows out of the kernel's tables.

use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use fsm_common::flags;
use fsm_common::flow::{Address, Flow, FlowKey};
use fsm_common::maps::{Origin, OriginKey, name, sys};
use fsm_common::wire::l3::IpProto;

use super::flow::Filter;
use super::{Failure, pins};
use crate::maps::Maps;
use crate::view::flow::FlowRow;
use crate::view::is_v6;

type OriginMap = HashMap<MapData, OriginKey, Origin>;

/// Removes the flows that are meant; says how many.
pub fn flush(maps: &mut Maps, filter: &Filter) -> Result<u64, Failure> {
    let settings = maps.settings()?;
    let (v4, v6, dir) = (settings.ipv4, settings.ipv6, &maps.dir);
    let (full, half) = (&mut maps.xopt, &mut maps.xopt_half);
    Ok(
        of_family((dir, name::FSM_XFLOW), &mut maps.flow4, full, filter, v4)?
            + of_family((dir, name::FSM_XFLOW6), &mut maps.flow6, full, filter, v6)?
            + of_family((dir, name::FSM_HALF), &mut maps.half4, half, filter, v4)?
            + of_family((dir, name::FSM_HALF6), &mut maps.half6, half, filter, v6)?,
    )
}

fn of_family<A: Address>(
    (dir, name): (&Path, &'static str),
    flows: &mut HashMap<MapData, FlowKey<A>, Flow<A>>,
    origins: &mut OriginMap,
    filter: &Filter,
    flags: u64,
) -> Result<u64, Failure>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let now_ns = pins::now_ns();
    let mut meant = Vec::new();
    pins::each_flow(dir, name, |key, flow, reply| {
        if filter.matches(&FlowRow::new(key, flow, reply, now_ns, None)) {
            meant.push((*key, *flow));
        }
        Ok(())
    })?;
    let count = meant.len() as u64;
    for (key, flow) in meant {
        // The original goes last: a packet finds all of its flow, or makes all of it anew. The other way
        // round it could make an original whose answer is then taken away.
        gone(flows.remove(&flow.pair_key(&key)))?;
        gone(origins.remove(&origin_key(&key, &flow, flags)))?;
        gone(flows.remove(&key))?;
    }
    Ok(count)
}

/// What is not there is as good as removed.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Key of the flow's original destination, as the kernel makes it under these flags.
pub fn origin_key<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, bits: u64) -> OriginKey {
    let (with_addr, with_port) = match IpProto(key.proto) {
        IpProto::UDP => (flags::UDP_OPT_LADDR, flags::UDP_OPT_LPORT),
        _ => (flags::TCP_OPT_LADDR, flags::TCP_OPT_LPORT),
    };
    let to = flow.translated(key);
    OriginKey {
        laddr: if bits & with_addr != 0 {
            to.daddr.widen()
        } else {
            [0; 16]
        },
        raddr: to.saddr.widen(),
        lport: if bits & with_port != 0 {
            to.dport
        } else {
            [0; 2]
        },
        rport: to.sport,
        proto: key.proto,
        v6: is_v6::<A>().into(),
        sys: sys::MESH,
        pad: 0,
    }
}
