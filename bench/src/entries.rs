//! Flow entries and tuples for the measured paths.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use anyhow::Result;
use fsm_common::{
    flow::{Address, Flow, FlowKey, nf},
    maps::{OriginKey, sys as system},
    wire::l4::tcp_flag,
};
use fsm_fastpath::control::sweep::now_ns;

use crate::{
    asm::Header,
    packet::{Segment, TCP, header4, key4},
    sys::{self, TableKind},
    world::{GENERATION, World, peer, to_gateway},
};

/// An entry that passes its packets as they are, the last one just now.
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
        born: 0,
        seq_end: 0,
        acked: 0,
        window: 0,
        nf: 0,
        tcp: 0,
    };
    flow.start(key, GENERATION, now_ns());
    flow.packets = 1;
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

/// Established flows with these tuples, translated to the gateway, and their answers' entries.
pub fn insert_established(world: &World, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
    insert_into(world.flow4.as_raw_fd(), keys)
}

/// The same into any `fsm_xflow`.
pub fn insert_into(flows: RawFd, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
    let to: Vec<_> = keys.iter().map(to_gateway).collect();
    let forward: Vec<Flow<[u8; 4]>> = keys
        .iter()
        .zip(&to)
        .map(|(key, to)| translated(key, to, nf::ALLOW | nf::XNAT))
        .collect();
    let answer_keys: Vec<_> = to.iter().map(FlowKey::reversed).collect();
    let answers: Vec<_> = keys
        .iter()
        .zip(&answer_keys)
        .map(|(key, answer)| translated(answer, &key.reversed(), nf::ALLOW | nf::XNAT | nf::REPLY))
        .collect();
    sys::insert_all(flows, keys, &forward)?;
    Ok(sys::insert_all(flows, &answer_keys, &answers)?)
}

/// The tuple of the gateway's answer, as it arrives.
pub fn answer(key: &FlowKey<[u8; 4]>) -> FlowKey<[u8; 4]> {
    to_gateway(key).reversed()
}

/// The key that the program makes in `fsm_xopt`.
pub fn origin(key: &FlowKey<[u8; 4]>) -> OriginKey {
    let to = to_gateway(key);
    OriginKey {
        laddr: to.daddr.widen(),
        raddr: to.saddr.widen(),
        lport: to.dport,
        rport: to.sport,
        proto: key.proto,
        v6: 0,
        sys: system::MESH,
        pad: 0,
    }
}

/// Flows whose packets are on their way at the same time, in [`handshakes`].
const AT_ONCE: usize = 256;
/// Number of a wrapper's target for what apps send.
pub const FROM_APP: u64 = 0;
/// Number of a wrapper's target for what the gateway answers.
pub const TO_APP: u64 = 1;

/// The three packets of each flow's handshake: the SYNs of 256 flows, then their answers, then their ACKs.
pub fn handshakes(keys: &[FlowKey<[u8; 4]>]) -> Vec<Header> {
    let mut headers = Vec::with_capacity(keys.len() * 3);
    for group in keys.chunks(AT_ONCE) {
        headers.extend(opened(group));
        headers.extend(acknowledged(group));
    }
    headers
}

/// The first two packets of each flow's handshake.
pub fn opened(keys: &[FlowKey<[u8; 4]>]) -> Vec<Header> {
    let [syn, syn_ack, _] = Segment::HANDSHAKE;
    let syns = keys.iter().map(|key| header4(key, syn, FROM_APP));
    let answers = keys
        .iter()
        .map(|key| header4(&answer(key), syn_ack, TO_APP));
    syns.chain(answers).collect()
}

/// The third packet.
pub fn acknowledged(keys: &[FlowKey<[u8; 4]>]) -> Vec<Header> {
    let [.., ack] = Segment::HANDSHAKE;
    keys.iter().map(|key| header4(key, ack, FROM_APP)).collect()
}

/// The array that a wrapper walks through.
pub struct Headers {
    /// The array.
    pub map: OwnedFd,
    /// Its entries.
    pub count: u32,
}

impl Headers {
    /// These.
    pub fn new(headers: &[Header]) -> Result<Self> {
        let count = headers.len() as u32;
        let map = sys::table(TableKind::Array, size_of::<Header>() as u32, count)?;
        let indices: Vec<u32> = (0..count).collect();
        sys::insert_all(map.as_raw_fd(), &indices, headers)?;
        Ok(Self { map, count })
    }

    /// One packet of each tuple.
    pub fn of(keys: &[FlowKey<[u8; 4]>], segment: impl Into<Segment>) -> Result<Self> {
        let segment = segment.into();
        let headers: Vec<_> = keys
            .iter()
            .map(|key| header4(key, segment, FROM_APP))
            .collect();
        Self::new(&headers)
    }

    /// One ordinary packet of each tuple.
    pub fn acks(keys: &[FlowKey<[u8; 4]>]) -> Result<Self> {
        Self::of(keys, tcp_flag::ACK)
    }
}

/// The network of tuples whose flows do not exist yet.
pub const FRESH: u8 = 0xf0;

/// The tuple of this number, below 2^24; those of another `net` differ from them.
pub fn tuple(number: u32, net: u8) -> FlowKey<[u8; 4]> {
    let [_, host, high, low] = number.to_be_bytes();
    let sport = 1024 + (u16::from(high) << 8 | u16::from(low)) % 60000;
    key4(TCP, [10, net, host, low ^ high], sport, peer::NONE, 8080)
}

/// The first `count` tuples, in random order.
pub fn random(count: u32, net: u8) -> Vec<FlowKey<[u8; 4]>> {
    let mut keys: Vec<_> = (0..count).map(|number| tuple(number, net)).collect();
    // Fisher-Yates over xorshift64: the same order in every run
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..keys.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        keys.swap(i, (state % (i as u64 + 1)) as usize);
    }
    keys
}
