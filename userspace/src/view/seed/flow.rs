//! Entries of the flow tables in the predecessor's shape.

use fsm_common::flow::{Address, Flow, FlowKey, nf};
use fsm_common::maps::sys;
use fsm_common::wire::l3::IpProto;
use serde_json::{Value, json};

use super::{entry, mac, proto_name, sys_name};
use crate::view::flow::flow_state;
use crate::view::state::State;
use crate::view::{ip, is_v6, port};

/// Entry of `fsm_xflow` (either family) with the flow's other direction, at a CLOCK_MONOTONIC time.
pub fn flow<A: Address>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    pair: Option<&Flow<A>>,
    now_ns: u64,
) -> Value {
    let is_reply = flow.nf & nf::REPLY != 0;
    let state = match (is_reply, pair) {
        (true, Some(orig)) => flow_state(key, orig, Some(flow)),
        (true, None) => flow_state(key, flow, Some(flow)),
        (false, reply) => flow_state(key, flow, reply),
    };
    let idle_ns = now_ns.saturating_sub(flow.last_seen_ns);
    entry(
        json!({
            "sys": sys_name(sys::MESH.into()), "daddr": ip(key.daddr), "saddr": ip(key.saddr),
            "dport": port(key.dport), "sport": port(key.sport), "proto": proto_name(key.proto),
            "v6": is_v6::<A>(),
        }),
        json!({
            "flow_dir": flow_dir(is_reply), "do_trans": is_changing(state), "fin": is_ending(state),
            "idle_duration": format!("{}.{:09}s", idle_ns / 1_000_000_000, idle_ns % 1_000_000_000),
            "atime": flow.last_seen_ns, "nfs": nfs(flow.nf), "xnat": xnat(key, flow),
            "trans": trans(key, flow, pair, state),
        }),
    )
}

const fn flow_dir(is_reply: bool) -> &'static str {
    match is_reply {
        true => "FLOW_DIR_S2C",
        false => "FLOW_DIR_C2S",
    }
}

/// The seed's `do_trans`: the handshake or the end is under way.
fn is_changing(state: State) -> bool {
    matches!(state, State::SynSent | State::SynRecv) || is_ending(state)
}

fn is_ending(state: State) -> bool {
    use State::{Close, CloseWait, FinWait, LastAck, TimeWait};
    matches!(state, FinWait | CloseWait | LastAck | TimeWait | Close)
}

/// What the packets get at each of the app's hooks. A steered direction only passes one of them.
fn nfs(bits: u8) -> Value {
    let mut names = Vec::new();
    for (bit, name) in [
        (nf::ALLOW, "NF_ALLOW"),
        (nf::XNAT, "NF_XNAT"),
        (nf::RDIR, "NF_RDIR"),
    ] {
        if bits & bit != 0 {
            names.push(name);
        }
    }
    let here = if names.is_empty() {
        "NF_DENY".to_owned()
    } else {
        names.join(" ")
    };
    let to_app = (bits & nf::INBOUND != 0) != (bits & nf::REPLY != 0);
    match (bits & nf::XNAT != 0, to_app) {
        (true, true) => json!({"TC_DIR_IGR": here, "TC_DIR_EGR": "NF_DENY"}),
        (true, false) => json!({"TC_DIR_IGR": "NF_DENY", "TC_DIR_EGR": here}),
        (false, _) => json!({"TC_DIR_IGR": here, "TC_DIR_EGR": here}),
    }
}

/// The tuple after translation: x is its source, r its destination.
fn xnat<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> Value {
    let rmac = if flow.nf & nf::RDIR != 0 {
        flow.redirect().1
    } else {
        [0; 6]
    };
    let to = flow.translated(key);
    json!({
        "xmac": mac([0; 6]), "rmac": mac(rmac), "xaddr": ip(to.saddr), "raddr": ip(to.daddr),
        "xport": port(to.sport), "rport": port(to.dport),
    })
}

fn trans<A: Address>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    pair: Option<&Flow<A>>,
    state: State,
) -> Value {
    if key.proto == IpProto::UDP.0 {
        let both = flow.packets + pair.map_or(0, |pair| pair.packets);
        return json!({"udp": {"conns": {"pkts": both}}});
    }
    let name = match state {
        State::SynSent => "TCP_STATE_SYN_SEND",
        State::SynRecv => "TCP_STATE_SYN_ACK",
        State::Established | State::Unacknowledged => "TCP_STATE_EST",
        State::FinWait | State::CloseWait => "TCP_STATE_FINI",
        State::LastAck => "TCP_STATE_FIN3",
        State::TimeWait => "TCP_STATE_CWT",
        State::Close => "TCP_STATE_ERR",
        State::Unreplied | State::Stream | State::Icmp | State::Generic => "TCP_STATE_CLOSED",
    };
    json!({"tcp": {"fin_dir": flow_dir(state == State::CloseWait), "state": name}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::flow::tests::steered;

    #[test]
    fn both_directions_of_a_flow_agree() {
        let (key, orig, reply) = steered();
        let (there, back) = (
            flow(&key, &orig, Some(&reply), orig.last_seen_ns + 1_500_000_000),
            flow(
                &orig.pair_key(&key),
                &reply,
                Some(&orig),
                reply.last_seen_ns,
            ),
        );
        assert_eq!(there["value"]["flow_dir"], "FLOW_DIR_C2S");
        assert_eq!(there["value"]["idle_duration"], "1.500000000s");
        assert_eq!(there["value"]["nfs"]["TC_DIR_EGR"], "NF_ALLOW NF_XNAT");
        assert_eq!(there["value"]["xnat"]["rport"], 15001);
        assert_eq!(back["value"]["flow_dir"], "FLOW_DIR_S2C");
        assert_eq!(back["value"]["nfs"]["TC_DIR_IGR"], "NF_ALLOW NF_XNAT");
        for entry in [there, back] {
            assert_eq!(entry["value"]["trans"]["tcp"]["state"], "TCP_STATE_EST");
            assert_eq!(
                (&entry["value"]["do_trans"], &entry["value"]["fin"]),
                (&json!(false), &json!(false))
            );
        }
    }
}
