//! A flow as `flow list` shows it: the original direction, with what its answers add.

use std::borrow::Cow;
use std::net::IpAddr;

use fsm_common::flow::{Address, CREATED_UNIT_NS, Flow, FlowKey, nf};
use serde::Serialize;

use super::state::{self, Side, State};
use super::{Row, endpoint, family, ip, is_v6, or_dash, port, proto};

const NS_PER_S: u64 = 1_000_000_000;

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    /// Source address, as sent.
    pub src: IpAddr,
    /// Source port, as sent.
    pub sport: u16,
    /// Destination address, as sent.
    pub dst: IpAddr,
    /// Destination port, as sent.
    pub dport: u16,
    /// Protocol.
    pub proto: Cow<'static, str>,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Name of its [`State`].
    pub state: &'static str,
    /// Which way the app opened it, where it is steered.
    pub dir: Option<&'static str>,
    /// The tuple after translation.
    pub nat: Option<Tuple>,
    /// Packets.
    pub packets: Both,
    /// Frame bytes.
    pub bytes: Both,
    /// The detected application protocol.
    pub app: Option<String>,
    /// `nat`, `redirect` or `pass`.
    pub verdict: &'static str,
    /// Seconds since it was made.
    pub age_s: u64,
    /// Seconds since its last packet in either direction.
    pub idle_s: u64,
    /// The interface whose hook counts it.
    pub iface: Option<String>,
}

/// Addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
}

/// A number for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Both {
    /// As the flow was opened.
    pub orig: u64,
    /// The answers.
    pub reply: u64,
}

/// Whether an entry is the original direction of its flow.
pub fn is_original<A>(flow: &Flow<A>) -> bool {
    flow.nf & nf::REPLY == 0
}

/// The state of a flow, from its two entries.
pub fn flow_state<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, reply: Option<&Flow<A>>) -> State {
    let reply = reply.map_or_else(Side::default, Flow::side);
    state::state(key.proto, flow.side(), reply)
}

/// Time since the last packet in either direction.
pub fn idle_ns<A>(flow: &Flow<A>, reply: Option<&Flow<A>>, now_ns: u64) -> u64 {
    let reply_ns = reply.map_or(0, |reply| reply.last_seen_ns);
    // The kernel's coarse clock may be ahead of ours by what has passed since we read it.
    now_ns.saturating_sub(flow.last_seen_ns.max(reply_ns))
}

impl FlowRow {
    /// A flow from its two entries, at a CLOCK_MONOTONIC time.
    pub fn new<A: Address>(
        key: &FlowKey<A>,
        flow: &Flow<A>,
        reply: Option<&Flow<A>>,
        now_ns: u64,
        iface: Option<String>,
    ) -> Self {
        let is_nat = flow.nf & nf::XNAT != 0;
        let sums = |of: fn(&Flow<A>) -> u64| Both {
            orig: of(flow),
            reply: reply.map_or(0, of),
        };
        let age_ns = u64::from(flow.age(now_ns)) * CREATED_UNIT_NS;
        Self {
            src: ip(key.saddr),
            sport: port(key.sport),
            dst: ip(key.daddr),
            dport: port(key.dport),
            proto: proto(key.proto),
            family: family(is_v6::<A>()),
            state: state::name(flow_state(key, flow, reply)),
            dir: is_nat.then_some(match flow.nf & nf::INBOUND {
                0 => "egress",
                _ => "ingress",
            }),
            nat: is_nat.then(|| Tuple::new(&flow.translated(key))),
            packets: sums(|flow| flow.packets),
            bytes: sums(|flow| flow.bytes),
            app: None,
            verdict: verdict(flow.nf),
            age_s: age_ns / NS_PER_S,
            idle_s: idle_ns(flow, reply, now_ns) / NS_PER_S,
            iface,
        }
    }
}

impl Tuple {
    fn new<A: Address>(key: &FlowKey<A>) -> Self {
        Self {
            src: ip(key.saddr),
            sport: port(key.sport),
            dst: ip(key.daddr),
            dport: port(key.dport),
        }
    }
}

const fn verdict(bits: u8) -> &'static str {
    if bits & nf::XNAT != 0 {
        "nat"
    } else if bits & nf::RDIR != 0 {
        "redirect"
    } else {
        "pass"
    }
}

impl Row for FlowRow {
    const HEAD: &'static [&'static str] = &[
        "PROTO",
        "STATE",
        "SOURCE",
        "DESTINATION",
        "TO",
        "DIR",
        "VERDICT",
        "PACKETS",
        "BYTES",
        "AGE",
        "IDLE",
        "IFACE",
    ];

    fn cells(&self) -> Vec<String> {
        let to = self.nat.as_ref().map(|nat| endpoint(nat.dst, nat.dport));
        let both = |count: Both| format!("{}/{}", count.orig, count.reply);
        vec![
            self.proto.clone().into_owned(),
            self.state.to_owned(),
            endpoint(self.src, self.sport),
            endpoint(self.dst, self.dport),
            or_dash(to.as_deref()),
            or_dash(self.dir),
            self.verdict.to_owned(),
            both(self.packets),
            both(self.bytes),
            seconds(self.age_s),
            seconds(self.idle_s),
            or_dash(self.iface.as_deref()),
        ]
    }
}

/// A duration in its two largest units.
pub fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86400, s % 86400 / 3600),
    }
}

#[cfg(test)]
pub(in crate::view) mod tests {
    use super::*;
    use serde_json::json;

    pub fn key() -> FlowKey<[u8; 4]> {
        FlowKey {
            saddr: [10, 0, 0, 1],
            daddr: [20, 0, 0, 2],
            sport: 40000u16.to_be_bytes(),
            dport: 80u16.to_be_bytes(),
            proto: 6,
            pad: [0; 3],
        }
    }

    pub fn flow(key: &FlowKey<[u8; 4]>) -> Flow<[u8; 4]> {
        let mut flow = Flow {
            last_seen_ns: 0,
            packets: 0,
            bytes: 0,
            to_saddr: [0; 4],
            to_daddr: [0; 4],
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
        flow.start(key, 1, 10 * CREATED_UNIT_NS);
        flow
    }

    type Flow4 = Flow<[u8; 4]>;

    /// A steered connection: the original's key and entry, and the answer's entry.
    pub fn steered() -> (FlowKey<[u8; 4]>, Flow4, Flow4) {
        let key = key();
        let mut orig = flow(&key);
        let to = FlowKey {
            daddr: [192, 168, 0, 1],
            dport: 15001u16.to_be_bytes(),
            ..key
        };
        orig.set_translation(&key, &to);
        orig.nf |= nf::XNAT;
        (orig.packets, orig.bytes, orig.tcp) = (5, 500, 0x12);
        let mut reply = flow(&to.reversed());
        reply.set_translation(&to.reversed(), &key.reversed());
        reply.nf |= nf::XNAT | nf::REPLY;
        (reply.packets, reply.bytes, reply.tcp) = (3, 300, 0x12);
        reply.last_seen_ns = 12 * CREATED_UNIT_NS;
        (key, orig, reply)
    }

    #[test]
    fn a_steered_flow_has_every_field() {
        let (key, orig, reply) = steered();
        let now_ns = 15 * CREATED_UNIT_NS;
        let row = FlowRow::new(&key, &orig, Some(&reply), now_ns, Some("veth1".into()));
        let expected = json!({
            "src": "10.0.0.1", "sport": 40000, "dst": "20.0.0.2", "dport": 80, "proto": "tcp",
            "family": "ipv4", "state": "ESTABLISHED", "dir": "egress",
            "nat": {"src": "10.0.0.1", "sport": 40000, "dst": "192.168.0.1", "dport": 15001},
            "packets": {"orig": 5, "reply": 3}, "bytes": {"orig": 500, "reply": 300}, "app": null,
            "verdict": "nat", "age_s": 5, "idle_s": 3, "iface": "veth1",
        });
        assert_eq!(serde_json::to_value(&row).unwrap(), expected);
        assert_eq!(row.cells().len(), FlowRow::HEAD.len());
    }

    #[test]
    fn the_answer_is_found_by_the_pair_key() {
        let (key, orig, reply) = steered();
        let pair = orig.pair_key(&key);
        assert_eq!(reply.pair_key(&pair), key);
        assert!(is_original(&orig) && !is_original(&reply));
    }

    #[test]
    fn a_redirected_flow_is_not_translated() {
        let key = key();
        let mut flow = flow(&key);
        flow.set_redirect(7, [2, 0, 0, 0, 0, 1]);
        let row = FlowRow::new(&key, &flow, None, 0, None);
        assert_eq!((row.verdict, row.nat, row.dir), ("redirect", None, None));
        assert_eq!(row.packets, Both { orig: 0, reply: 0 });
        assert_eq!(
            (row.age_s, row.idle_s),
            (0, 0),
            "the clock cannot run backwards"
        );
    }

    #[test]
    fn an_inbound_flow_says_ingress() {
        let (key, mut orig, _) = steered();
        orig.nf |= nf::INBOUND;
        assert_eq!(
            FlowRow::new(&key, &orig, None, 0, None).dir,
            Some("ingress")
        );
    }

    #[test]
    fn durations_are_short() {
        let texts = [5, 65, 3700, 90000].map(seconds);
        assert_eq!(texts, ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
