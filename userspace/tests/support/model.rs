//! What must become of a frame at TC or XDP, by the host's build of the packet logic: parse, the flow's entry
//! as it is in the maps, [`Rewrite::apply`]. For an app's device on which egress NAT takes everything.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use fsm_common::{
    checksum,
    flow::{Address, Flow, FlowKey, nf},
    maps::{FragmentKey, FragmentPorts, name},
    parse::{Fragment, Packet, Parsed, Quoted, has_ports, parse, quoted4, quoted6},
    reason::Reason,
    rewrite::Rewrite,
};

use super::{Hook, Node};

/// What happens to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Dropped for this reason.
    Dropped(Reason),
    /// Goes on with these bytes.
    Goes(Vec<u8>),
}

/// A family whose flows can be looked up.
pub trait Look: Address {
    /// The entry under `key`, in either table.
    fn entry(node: &Node, key: &FlowKey<Self>) -> Option<Flow<Self>>;
    /// Whether that is the main table's.
    fn is_settled(node: &Node, key: &FlowKey<Self>) -> bool;
    /// The tuple that an ICMP error quotes.
    fn quoted(frame: &[u8], at: usize) -> Option<Quoted<Self>>;
}

impl Look for [u8; 4] {
    fn entry(node: &Node, key: &FlowKey<Self>) -> Option<Flow<Self>> {
        let maps = &node.maps;
        maps.flow4
            .get(key, 0)
            .or_else(|_| maps.half4.get(key, 0))
            .ok()
    }

    fn is_settled(node: &Node, key: &FlowKey<Self>) -> bool {
        node.maps.flow4.get(key, 0).is_ok()
    }

    fn quoted(frame: &[u8], at: usize) -> Option<Quoted<Self>> {
        quoted4(frame, at)
    }
}

impl Look for [u8; 16] {
    fn entry(node: &Node, key: &FlowKey<Self>) -> Option<Flow<Self>> {
        let maps = &node.maps;
        maps.flow6
            .get(key, 0)
            .or_else(|_| maps.half6.get(key, 0))
            .ok()
    }

    fn is_settled(node: &Node, key: &FlowKey<Self>) -> bool {
        node.maps.flow6.get(key, 0).is_ok()
    }

    fn quoted(frame: &[u8], at: usize) -> Option<Quoted<Self>> {
        quoted6(frame, at)
    }
}

/// The model; it reads the node's maps.
pub struct Model {
    fragments: HashMap<MapData, FragmentKey, FragmentPorts>,
    /// The peer that the ACL denies TCP, of either family.
    pub denied: [Vec<u8>; 2],
}

/// What is known before the frame is handed in; [`Known::fate`] says the rest.
#[derive(Debug)]
pub enum Known {
    /// Decided.
    Decided(Fate),
    /// It has, or gets, a flow: that is looked up afterwards.
    Flow4(Tracked<[u8; 4]>),
    /// The same for IPv6.
    Flow6(Tracked<[u8; 16]>),
}

/// A packet of a flow.
#[derive(Debug)]
pub struct Tracked<A> {
    packet: Parsed<A>,
    /// There is an entry; `before` is it, unless it will be judged again.
    is_there: bool,
    before: Option<Flow<A>>,
    hook: Hook,
}

impl Model {
    /// Opens what the node's own maps do not have.
    pub fn new(node: &Node, denied: [Vec<u8>; 2]) -> Self {
        let path: &Path = &node.pins;
        let data = MapData::from_pin(path.join(name::FSM_FRAG)).unwrap();
        let fragments = HashMap::try_from(Map::LruHashMap(data)).unwrap();
        Self { fragments, denied }
    }

    /// What the frame's fate depends on.
    pub fn ask(&self, node: &Node, hook: Hook, frame: &[u8]) -> Known {
        match parse(frame) {
            Err(reason) => Known::Decided(Fate::Dropped(reason)),
            Ok(Packet::Other(_)) => Known::Decided(Fate::Goes(frame.to_vec())),
            Ok(Packet::V4(packet)) => match self.packet(node, hook, frame, packet) {
                Ok(fate) => Known::Decided(fate),
                Err(tracked) => Known::Flow4(tracked),
            },
            Ok(Packet::V6(packet)) => match self.packet(node, hook, frame, packet) {
                Ok(fate) => Known::Decided(fate),
                Err(tracked) => Known::Flow6(tracked),
            },
        }
    }

    fn packet<A: Look>(
        &self,
        node: &Node,
        hook: Hook,
        frame: &[u8],
        mut packet: Parsed<A>,
    ) -> Result<Fate, Tracked<A>> {
        let pass = || Ok(Fate::Goes(frame.to_vec()));
        if packet.is_neighbour_discovery() {
            return pass();
        }
        // The peer is the one whom the app sends to, or who sends to it.
        let peer = |key: &FlowKey<A>| match hook {
            Hook::TcOut => key.saddr,
            Hook::TcIn | Hook::Xdp => key.daddr,
        };
        let is_denied = |key: &FlowKey<A>| {
            let peer = peer(key).widen();
            key.proto == 6
                && self
                    .denied
                    .iter()
                    .any(|denied| denied[..] == peer[..size_of::<A>()])
        };
        if hook == Hook::Xdp {
            let is_settled = A::is_settled(node, &packet.key);
            return if !is_settled && is_denied(&packet.key) {
                Ok(Fate::Dropped(Reason::AclDeny))
            } else {
                pass()
            };
        }
        if packet.is_icmp_error() {
            return Ok(Fate::Goes(error(node, frame, &packet)));
        }
        if packet.fragment == Fragment::Later && packet.is_flow() {
            let key = FragmentKey {
                saddr: packet.key.saddr.widen(),
                daddr: packet.key.daddr.widen(),
                id: packet.fragment_id,
                proto: packet.key.proto,
                pad: [0; 3],
            };
            let Ok(ports) = self.fragments.get(&key, 0) else {
                return Ok(Fate::Dropped(Reason::FragmentOrphan));
            };
            (packet.key.sport, packet.key.dport) = (ports.sport, ports.dport);
        }
        // Judged for a hook that did not know where it leads: the app's device judges again.
        let is_again = |flow: &Flow<A>| {
            (hook == Hook::TcOut && flow.nf & nf::PROVISIONAL != 0)
                || has_lost_its_answer(node, &packet.key, flow)
        };
        let entry = A::entry(node, &packet.key);
        let is_there = entry.is_some();
        let before = entry.filter(|flow| !is_again(flow));
        // Half-open flows too are asked about each time.
        let is_asked = before.is_none() || !A::is_settled(node, &packet.key);
        if is_asked && is_denied(&packet.key) {
            return Ok(Fate::Dropped(Reason::AclDeny));
        }
        Err(Tracked {
            packet,
            is_there,
            before,
            hook,
        })
    }
}

impl Known {
    /// The fate, now that the frame has been through.
    pub fn fate(&self, node: &Node, frame: &[u8]) -> Fate {
        match self {
            Self::Decided(fate) => fate.clone(),
            Self::Flow4(tracked) => tracked.fate(node, frame),
            Self::Flow6(tracked) => tracked.fate(node, frame),
        }
    }
}

impl<A: Look> Tracked<A> {
    fn fate(&self, node: &Node, frame: &[u8]) -> Fate {
        let packet = &self.packet;
        let key = &packet.key;
        let entry = A::entry(node, key);
        let is_reset = packet.is_tcp() && packet.tcp_flags & 4 != 0;
        let is_local = key.saddr.is_local_scope() || key.daddr.is_local_scope();
        let has_none = !packet.is_flow() || is_local || (self.before.is_none() && is_reset);
        let is_new = packet.is_tcp() && packet.tcp_flags & 0x12 == 2;
        if self.before.is_none() && has_none {
            assert!(self.is_there || entry.is_none(), "a flow of {packet:?}");
            return Fate::Goes(frame.to_vec());
        }
        match (&self.before, &entry) {
            // Judged: what the app sends is taken to the gateway, the host's own passes.
            (None, entry) if self.hook == Hook::TcIn => {
                let entry = entry.unwrap_or_else(|| panic!("no flow of {packet:?}"));
                assert_eq!(entry.nf & nf::XNAT != 0, has_ports(key.proto), "{packet:?}");
            }
            (Some(before), Some(entry)) if !is_new => {
                assert_eq!(
                    (before.translated(key), before.nf),
                    (entry.translated(key), entry.nf),
                    "{packet:?}"
                );
            }
            (Some(_), None) if !is_new => panic!("{packet:?} removed its flow"),
            _ => {}
        }
        let mut bytes = frame.to_vec();
        let Some(entry) = entry.filter(|entry| entry.nf & nf::XNAT != 0) else {
            return Fate::Goes(bytes);
        };
        if self.hook == Hook::TcOut && entry.nf & nf::REPLY == 0 {
            // The host's own packet, with the tuple that the app's have.
            return Fate::Goes(bytes);
        }
        let plan = Rewrite::plan(key, &entry.translated(key));
        plan.apply(&mut bytes, packet)
            .expect("a plan for this frame");
        Fate::Goes(bytes)
    }
}

/// Whether a half-open flow's answering entry was evicted, or is one that a stray answer has begun: then the
/// flow is made anew.
fn has_lost_its_answer<A: Look>(node: &Node, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    if flow.nf & nf::REPLY != 0 || A::is_settled(node, key) {
        return false;
    }
    let pair = flow.pair_key(key);
    match A::entry(node, &pair).filter(|_| !A::is_settled(node, &pair)) {
        Some(answer) => flow.nf & !answer.nf & nf::XNAT != 0,
        None => true,
    }
}

/// An ICMP error, translated inside and out as the flow of its quote has it, or as it came.
fn error<A: Look>(node: &Node, frame: &[u8], packet: &Parsed<A>) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let inner = packet.l4_at() + 8;
    let Some(quoted) = A::quoted(frame, inner) else {
        return bytes;
    };
    let answer = quoted.key.reversed();
    let Some(flow) = A::entry(node, &answer).filter(|flow| flow.nf & nf::XNAT != 0) else {
        return bytes;
    };
    let (ports, len) = (usize::from(quoted.l4), size_of::<A>());
    let adjust = |at: usize, delta: u16, bytes: &mut Vec<u8>| {
        let check = checksum::adjust([bytes[at], bytes[at + 1]], delta);
        bytes[at..at + 2].copy_from_slice(&check);
    };
    let addresses = |at: usize, from: A, to: A, bytes: &mut Vec<u8>| {
        bytes[at..at + len].copy_from_slice(&from.widen()[..len]);
        bytes[at + len..at + 2 * len].copy_from_slice(&to.widen()[..len]);
    };
    let is_from_end = packet.key.saddr == answer.saddr;
    let from = if is_from_end {
        flow.to_saddr
    } else {
        packet.key.saddr
    };
    let outer = FlowKey {
        saddr: from,
        daddr: flow.to_daddr,
        ..packet.key
    };
    let (outer_delta, _) = fsm_common::rewrite::deltas(&packet.key, &outer);
    let at = if len == 4 { 12 } else { 8 };
    bytes[ports..ports + 4].copy_from_slice(&[flow.to_dport, flow.to_sport].concat());
    if len == 4 {
        adjust(inner + 10, flow.addr_delta, &mut bytes);
        adjust(packet.l3_at() + 10, outer_delta, &mut bytes);
        adjust(packet.l4_at() + 2, flow.port_delta, &mut bytes);
    } else {
        let quote = checksum::fold(u32::from(flow.addr_delta) + u32::from(flow.port_delta));
        adjust(packet.l4_at() + 2, quote, &mut bytes);
        adjust(packet.l4_at() + 2, outer_delta, &mut bytes);
    }
    addresses(inner + at, flow.to_daddr, flow.to_saddr, &mut bytes);
    addresses(packet.l3_at() + at, outer.saddr, outer.daddr, &mut bytes);
    bytes
}
