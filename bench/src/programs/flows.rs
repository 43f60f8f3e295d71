//! Flow entries and tuples for the measured paths.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Result;
use fsm_common::flow::{Address, Flow, FlowKey};

use crate::{
    packet::{TCP, header4, key4},
    sys::{self, TableKind},
    world::{GENERATION, World, peer},
};

/// An entry that passes its packets as they are.
pub fn entry<A: Address>(key: &FlowKey<A>, nf: u8) -> Flow<A> {
    let mut flow = Flow {
        last_seen_ns: 0,
        packets: 0,
        bytes: 0,
        to_saddr: A::ANY,
        to_daddr: A::ANY,
        to_sport: [0; 2],
        to_dport: [0; 2],
        addr_delta: 0,
        port_delta: 0,
        generation: 0,
        ifindex: 0,
        created: 0,
        nf: 0,
        tcp: 0,
        opt: 0,
        pad: 0,
    };
    flow.start(key, GENERATION, 1);
    flow.nf = nf;
    flow
}

/// An entry that translates its packets.
pub fn translated<A: Address>(key: &FlowKey<A>, to: &FlowKey<A>, nf: u8) -> Flow<A> {
    let mut flow = entry(key, nf);
    flow.set_translation(key, to);
    flow
}

/// Two entries that translate into each other.
pub fn pair4(world: &mut World, a: &FlowKey<[u8; 4]>, b: &FlowKey<[u8; 4]>, nf: u8) -> Result<()> {
    world.maps.flow4.insert(a, translated(a, b, nf), 0)?;
    Ok(world.maps.flow4.insert(b, translated(b, a, nf), 0)?)
}

/// The same over IPv6.
pub fn pair6(
    world: &mut World,
    a: &FlowKey<[u8; 16]>,
    b: &FlowKey<[u8; 16]>,
    nf: u8,
) -> Result<()> {
    world.maps.flow6.insert(a, translated(a, b, nf), 0)?;
    Ok(world.maps.flow6.insert(b, translated(b, a, nf), 0)?)
}

/// Tuples, and the array of their headers that a wrapper walks through.
pub struct Headers {
    /// The tuples, in the wrapper's order.
    pub keys: Vec<FlowKey<[u8; 4]>>,
    /// The array.
    pub map: OwnedFd,
}

impl Headers {
    /// The headers of these tuples.
    pub fn from_keys(keys: Vec<FlowKey<[u8; 4]>>) -> Result<Self> {
        let count = keys.len() as u32;
        let map = sys::table(TableKind::Array, 16, count)?;
        let (indices, headers): (Vec<u32>, Vec<[u8; 16]>) =
            (0..count).zip(keys.iter().map(header4)).unzip();
        sys::insert_all(map.as_raw_fd(), &indices, &headers)?;
        Ok(Self { keys, map })
    }

    /// Tuples of flows that do not exist yet.
    pub fn fresh(count: u32) -> Result<Self> {
        Self::random(count, 0xf0)
    }

    /// `count` different tuples in random order; those of another `net` differ from them.
    pub fn random(count: u32, net: u8) -> Result<Self> {
        let mut keys: Vec<_> = (0..count)
            .map(|i| {
                let [_, host, high, low] = i.to_be_bytes();
                let sport = 1024 + (u16::from(high) << 8 | u16::from(low)) % 60000;
                key4(TCP, [10, net, host, low ^ high], sport, peer::NONE, 8080)
            })
            .collect();
        // Fisher-Yates over xorshift64: the same order in every run
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for i in (1..keys.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            keys.swap(i, (state % (i as u64 + 1)) as usize);
        }
        Self::from_keys(keys)
    }
}
