//! Ends flows that have been idle for longer than their state allows. Reads the tables in bounded slices and
//! deletes both directions and the origin entry of what has ended; a packet costs nothing for it.

use std::{collections::BTreeMap, os::fd::AsFd as _, path::Path};

use aya::maps::{MapData, MapError};
use fsm_common::{
    flow::{Address, Flow, FlowKey, nf},
    maps::{OriginKey, name, sys},
};
use tracing::warn;

use crate::{
    config::Conntrack,
    loader::sys::Batch,
    maps::Maps,
    view::state::{State, state},
};

/// Entries read in one slice; a slice of this size takes some milliseconds.
const SLICE: usize = 16_384;

/// Where the sweep stands.
pub struct Sweep {
    v4: Table,
    v6: Table,
}

struct Table {
    name: &'static str,
    map: MapData,
    batch: Batch,
    /// Being counted in this pass, and as counted by the last whole one.
    census: [Census; 2],
}

/// What a pass over the tables has counted.
#[derive(Debug, Default, Clone)]
pub struct Census {
    /// Flows by protocol number and state.
    pub flows: BTreeMap<(u8, State), i64>,
    /// Entries by map.
    pub entries: BTreeMap<&'static str, i64>,
}

/// What a slice has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Flows ended.
    pub ended: usize,
}

impl Sweep {
    /// Opens the flow tables below the pin directory.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(dir: &Path) -> Result<Self, MapError> {
        let table = |name: &'static str| {
            let map = MapData::from_pin(dir.join(name))?;
            Ok::<_, MapError>(Table {
                name,
                map,
                batch: Batch::default(),
                census: Default::default(),
            })
        };
        Ok(Self {
            v4: table(name::FSM_XFLOW)?,
            v6: table(name::FSM_XFLOW6)?,
        })
    }

    /// Flows and entries as the last whole pass over each table has counted them.
    pub fn census(&self) -> Census {
        let mut both = self.v4.census[1].clone();
        for (key, count) in &self.v6.census[1].flows {
            *both.flows.entry(*key).or_default() += count;
        }
        both.entries.extend(&self.v6.census[1].entries);
        both
    }

    /// Looks at the next slice of each table.
    pub fn step(&mut self, maps: &mut Maps, conntrack: &Conntrack, now_ns: u64) -> Swept {
        let mut swept = Swept::default();
        for (key, flow) in self.v4.slice::<[u8; 4]>() {
            let pair = maps.flow4.get(&flow.pair_key(&key), 0).ok();
            if self.v4.judge(&key, &flow, pair, conntrack, now_ns) {
                swept.ended += end(maps, &key, &flow, |maps, key| drop(maps.flow4.remove(key)));
            }
            swept.seen += 1;
        }
        for (key, flow) in self.v6.slice::<[u8; 16]>() {
            let pair = maps.flow6.get(&flow.pair_key(&key), 0).ok();
            if self.v6.judge(&key, &flow, pair, conntrack, now_ns) {
                swept.ended += end(maps, &key, &flow, |maps, key| drop(maps.flow6.remove(key)));
            }
            swept.seen += 1;
        }
        swept
    }
}

impl Table {
    /// The next entries; at the front of the table a new census begins.
    fn slice<A>(&mut self) -> Vec<(FlowKey<A>, Flow<A>)>
    where
        FlowKey<A>: aya::Pod,
        Flow<A>: aya::Pod,
    {
        if self.batch.is_at_start() {
            self.census[1] = std::mem::take(&mut self.census[0]);
            self.census[0].entries.insert(self.name, 0);
        }
        let read = self.batch.next(&self.map.fd().as_fd(), SLICE);
        match read {
            Ok(entries) => entries.unwrap_or_default(),
            Err(error) => {
                warn!("the flow table cannot be read: {error}");
                self.batch = Batch::default();
                Vec::new()
            }
        }
    }

    /// Counts the entry, and says whether its flow has been idle for too long in both directions.
    fn judge<A: Address>(
        &mut self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        pair: Option<Flow<A>>,
        conntrack: &Conntrack,
        now_ns: u64,
    ) -> bool {
        let idle_s = |flow: &Flow<A>| now_ns.saturating_sub(flow.last_seen_ns) / 1_000_000_000;
        let is_reply = flow.nf & nf::REPLY != 0;
        let (orig, reply) = match is_reply {
            false => (Some(flow), pair.as_ref()),
            true => (pair.as_ref(), Some(flow)),
        };
        let replied = reply.is_some_and(|reply| reply.packets > 0);
        let state = state(
            key.proto,
            orig.map_or(0, |o| o.tcp),
            reply.map_or(0, |r| r.tcp),
            replied,
        );
        let idle = pair
            .as_ref()
            .map_or(idle_s(flow), |pair| idle_s(flow).min(idle_s(pair)));
        let is_over = idle > u64::from(state.timeout_s(conntrack));
        let census = &mut self.census[0];
        if !is_over {
            *census.entries.entry(self.name).or_default() += 1;
            if !is_reply {
                *census.flows.entry((key.proto, state)).or_default() += 1;
            }
        }
        is_over
    }
}

/// Deletes both directions and the origin; 1 for the original direction, 0 for a reply.
fn end<A: Address>(
    maps: &mut Maps,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    remove: impl Fn(&mut Maps, &FlowKey<A>),
) -> usize {
    let is_reply = flow.nf & nf::REPLY != 0;
    let pair = flow.pair_key(key);
    // The original goes last: a packet finds all of its flow, or makes all of it anew.
    for key in if is_reply { [key, &pair] } else { [&pair, key] } {
        remove(maps, key);
    }
    if flow.nf & nf::XNAT != 0 {
        // What the gateway saw: the translated tuple, or the reply's own.
        let seen = if is_reply {
            key.reversed()
        } else {
            flow.translated(key)
        };
        remove_origin(maps, &seen);
    }
    usize::from(!is_reply)
}

/// Removes the origin of a tuple as the gateway saw it, whichever parts the flags put into its key.
pub fn remove_origin<A: Address>(maps: &mut Maps, seen: &FlowKey<A>) {
    for (with_addr, with_port) in [(true, true), (true, false), (false, true), (false, false)] {
        let key = OriginKey {
            laddr: if with_addr {
                seen.daddr.widen()
            } else {
                [0; 16]
            },
            raddr: seen.saddr.widen(),
            lport: if with_port { seen.dport } else { [0; 2] },
            rport: seen.sport,
            proto: seen.proto,
            v6: u8::from(size_of::<A>() == 16),
            sys: sys::MESH,
            pad: 0,
        };
        if maps.xopt.remove(&key).is_ok() {
            return;
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the programs.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: points to a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
