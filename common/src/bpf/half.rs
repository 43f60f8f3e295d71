//! Half-open and one-way flows: in a small LRU table of their own, so that a flood of them evicts only its
//! like. A flow moves to the main table once [`is_settled`] says so.
//!
//! An entry here may be evicted at any moment, and its memory become another flow's while a program still
//! holds the pointer. So the entry is copied out and looked up once more: if it is still the one under its
//! key, the copy is whole. The packet is treated by the copy; only numbers are written back.

use super::{
    again::is_over,
    count,
    fib::Host,
    judge::{Judgement, Next, Place, rejudge},
    maps::Tables,
    store::{Keep, no_room, origin},
};
use crate::{
    flow::{Flow, FlowKey, nf, opt},
    maps::{IfaceEntry, Xcfg},
    parse::Parsed,
    reason::Reason,
    scratch::Scratch,
    track::{Segment, is_settled},
};

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;
/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Leaves the packet's flow in `scratch.flow`; [`Next::New`] where there is none (any more).
#[inline(never)]
pub fn half<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Judgement {
    Judgement::new(match (F::half(&packet.key), F::scratch()) {
        (Some(entry), Some(scratch)) => {
            // SAFETY: this CPU's own work space.
            let scratch = unsafe { &mut *scratch };
            of_flow::<F, H>(host, cfg, iface, place, packet, entry, scratch)
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
    entry: *mut Flow<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, Reason> {
    let key = &packet.key;
    // SAFETY: map value, readable until the program ends; whose it was, is asked afterwards.
    scratch.flow = unsafe { *entry };
    if F::half(key) != Some(entry) {
        return Ok(Next::New);
    }
    let is_reply = scratch.flow.nf & nf::REPLY != 0;
    if place == Place::EndpointOut && scratch.flow.nf & nf::PROVISIONAL != 0 {
        return Ok(Next::New);
    }
    scratch.reply_key = scratch.flow.pair_key(key);
    match F::half(&scratch.reply_key) {
        Some(other) => {
            // SAFETY: as above; used for its numbers only.
            scratch.reply = unsafe { *other };
            // Begun by an answer whose entry was evicted: it belongs to this flow.
            if !is_reply && scratch.flow.nf & !scratch.reply.nf & nf::XNAT != 0 {
                return Ok(Next::New);
            }
        }
        // Made anew with its flow; the answer itself is enough to know the flow by.
        None if !is_reply => return Ok(Next::New),
        None => scratch
            .reply
            .start(&scratch.reply_key, scratch.flow.generation, 0),
    }
    let now_ns = host.now_ns();
    if is_over(now_ns, packet, &scratch.flow, &scratch.reply) {
        F::half_remove(&scratch.reply_key);
        F::half_remove(key);
        return Ok(Next::New);
    }
    let judged = rejudge::<F, H>(
        host,
        cfg,
        iface,
        place,
        packet,
        &mut scratch.flow,
        &mut scratch.fib,
    )?;
    note::<F, H>(iface, packet, now_ns, scratch);
    // SAFETY: map value; at worst these numbers are given to another flow, which has just begun.
    unsafe {
        if (*entry).generation != scratch.flow.generation {
            *entry = scratch.flow;
        }
        (*entry).last_seen_ns = now_ns;
        (*entry).packets = scratch.flow.packets;
        (*entry).bytes = scratch.flow.bytes;
        (*entry).ifindex = scratch.flow.ifindex;
        (*entry).born = scratch.flow.born;
        (*entry).seq_end = scratch.flow.seq_end;
        (*entry).acked = scratch.flow.acked;
        (*entry).window = scratch.flow.window;
        (*entry).tcp = scratch.flow.tcp;
    }
    let (orig, reply) = if is_reply {
        (scratch.reply.side(), scratch.flow.side())
    } else {
        (scratch.flow.side(), scratch.reply.side())
    };
    let age = scratch.flow.age(now_ns);
    if is_settled(key.proto, orig, reply, age) {
        return settle::<F>(cfg, key, scratch);
    }
    Ok(judged)
}

/// Counts and tracks the packet, where this hook does.
#[inline(always)]
fn note<F: Tables, H: Host>(
    iface: &IfaceEntry,
    packet: &Parsed<F::Addr>,
    now_ns: u64,
    scratch: &mut Scratch<F::Addr>,
) {
    let [segments, bytes, scale] = scratch.size;
    let flow = &mut scratch.flow;
    let is_mine = if H::COUNTS {
        count::flow(flow, iface.ifindex, now_ns, segments, bytes)
    } else {
        flow.nf & nf::RDIR != 0
    };
    if is_mine && packet.is_tcp() {
        let segment = Segment {
            scale: scale as u8,
            ..packet.segment()
        };
        if !flow.event(&scratch.reply, &segment) && packet.is_tcp_event() {
            count::reason(Reason::TcpOutOfWindow);
        }
    }
}

/// Moves both directions to the main table, the answer first. Where that is full, the flow stays here, or
/// its packet is dropped, as configured.
#[inline(always)]
fn settle<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, Reason> {
    let Some(other) = F::half(&scratch.reply_key) else {
        return Ok(Next::Flow);
    };
    // SAFETY: map value; looked up again, as above.
    scratch.reply = unsafe { *other };
    if F::half(&scratch.reply_key) != Some(other) {
        return Ok(Next::Flow);
    }
    let is_reply = scratch.flow.nf & nf::REPLY != 0;
    let (mine, others) = ((key, &scratch.flow), (&scratch.reply_key, &scratch.reply));
    let (forward, answer) = if is_reply {
        (others, mine)
    } else {
        (mine, others)
    };
    let mut fits = insert::<F>(answer.0, answer.1);
    if fits && !insert::<F>(forward.0, forward.1) {
        F::remove(answer.0);
        fits = false;
    }
    if !fits {
        no_room(cfg)?;
        return Ok(Next::Flow);
    }
    F::half_remove(key);
    F::half_remove(&scratch.reply_key);
    if scratch.flow.nf & nf::XNAT != 0 && scratch.flow.opt() & opt::BALANCED == 0 {
        scratch.forward = *key;
        if is_reply {
            (scratch.forward, scratch.reply_key) = (scratch.reply_key, *key);
        }
        let forward = scratch.forward;
        origin::<F>(cfg, &forward, scratch, Keep::Full);
    }
    Ok(Next::Flow)
}

/// True where the entry is there afterwards.
#[inline(always)]
fn insert<F: Tables>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    matches!(F::insert(key, flow, NOEXIST), Ok(()) | Err(EEXIST))
}
