//! A packet of a flow in the main table for which the entry of its direction alone does not do: policy has
//! changed, the flow was idle for long enough to be over, or the packet opens, closes or resets.

use super::{
    count,
    fib::Host,
    judge::{Judgement, Next, Place, rejudge},
    maps::{Tables, timeout_ns},
    store::{Keep, origin},
};
use crate::{
    flow::{Flow, FlowKey, nf},
    maps::{IfaceEntry, Xcfg},
    parse::Parsed,
    reason::Reason,
    scratch::Scratch,
    track::{Segment, State, state},
    wire::l4::tcp_flag::{ACK, SYN},
};

/// Says what the packet is to its flow; [`Next::New`] where that is over.
#[inline(never)]
pub fn again<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Judgement {
    Judgement::new(match (F::flow(&packet.key), F::scratch()) {
        (Some(flow), Some(scratch)) => {
            // SAFETY: map values; the flow's fields have one writer, the work space is this CPU's own.
            let (flow, scratch) = unsafe { (&mut *flow, &mut *scratch) };
            of_flow::<F, H>(host, cfg, iface, place, packet, flow, scratch)
        }
        _ => Ok(Next::New),
    })
}

#[inline(always)]
fn of_flow<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, Reason> {
    // A packet that only passes here is tracked by the hook that counts it.
    if H::COUNTS || flow.nf & nf::RDIR != 0 {
        let key = &packet.key;
        scratch.reply_key = flow.pair_key(key);
        match F::flow(&scratch.reply_key) {
            // SAFETY: map value, readable until the program ends.
            Some(other) => scratch.reply = unsafe { *other },
            None => scratch.reply.start(key, 0, 0),
        }
        let other = &scratch.reply;
        if is_over(host.now_ns(), packet, flow, other) {
            forget::<F>(cfg, key, flow.nf, scratch);
            return Ok(Next::New);
        }
        if packet.is_tcp() && (flow.ifindex == iface.ifindex || flow.ifindex == 0) {
            let segment = Segment {
                scale: scratch.size[2] as u8,
                ..packet.segment()
            };
            // Others too, which come here after a change of policy or a pause.
            if !flow.event(other, &segment) && packet.is_tcp_event() {
                count::reason(Reason::TcpOutOfWindow);
            }
        }
    }
    rejudge::<F, H>(host, cfg, iface, place, packet, flow, &mut scratch.fib)
}

/// Whether the flow has been idle for longer than its state allows, or the packet is a SYN after its end.
#[inline(always)]
pub fn is_over<A: crate::flow::Address>(
    now_ns: u64,
    packet: &Parsed<A>,
    flow: &Flow<A>,
    other: &Flow<A>,
) -> bool {
    let (orig, reply) = if flow.nf & nf::REPLY == 0 {
        (flow.side(), other.side())
    } else {
        (other.side(), flow.side())
    };
    let state: State = state(packet.key.proto, orig, reply);
    if packet.is_tcp() && packet.tcp_flags & (SYN | ACK) == SYN && state.is_over() {
        return true;
    }
    let last_ns = if other.last_seen_ns > flow.last_seen_ns {
        other.last_seen_ns
    } else {
        flow.last_seen_ns
    };
    // The coarse clock of another CPU may be ahead.
    now_ns > last_ns && now_ns - last_ns > timeout_ns(state)
}

/// Removes both directions and the origin. `scratch.reply_key` is the key of the other direction.
#[inline(always)]
pub fn forget<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    bits: u8,
    scratch: &mut Scratch<F::Addr>,
) {
    F::remove(&scratch.reply_key);
    F::remove(key);
    if bits & nf::XNAT == 0 {
        return;
    }
    if bits & nf::REPLY == 0 {
        origin::<F>(cfg, key, scratch, Keep::Gone);
    } else {
        (scratch.forward, scratch.reply_key) = (scratch.reply_key, *key);
        let forward = scratch.forward;
        origin::<F>(cfg, &forward, scratch, Keep::Gone);
    }
}
