//! Two entries a flow, and what the gateway will ask for.

use super::{
    count,
    judge::Next,
    maps::{FSM_XOPT, FSM_XOPT_HALF, Tables},
};
use crate::{
    checksum, flags,
    flow::{Address, Flow, FlowKey, nf, opt},
    maps::{Origin, OriginKey, Xcfg, sys},
    nat,
    reason::Reason,
    scratch::Scratch,
    wire::l3::IpProto,
};

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;
/// `-EEXIST`.
const EEXIST: i32 = -17;
/// Source ports tried for a flow whose answer would meet another's.
const PORT_TRIES: u32 = 16;
/// What became of the answering entry: the table is full, it was there before, it was made, another flow has
/// it.
const NO_ROOM: u8 = 0;
const THERE: u8 = 1;
const MADE: u8 = 2;
const OTHERS: u8 = 3;

/// Stores both directions of the flow in `scratch` in the small table, the answer first: a flow without its
/// answer would send packets out that nobody translates back. [`super::half`] moves them on.
#[inline(always)]
pub fn store<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, Reason> {
    let is_nat = scratch.flow.nf & nf::XNAT;
    let reply = store_reply::<F>(key, scratch, is_nat)?;
    if reply == OTHERS {
        // Against the direction of a translated flow, whose answers come from elsewhere: nothing to remember.
        return Ok(Next::Pass);
    }
    if reply != NO_ROOM {
        if F::half_insert(key, &scratch.flow, 0).is_ok() {
            let is_balanced = scratch.flow.opt() & opt::BALANCED != 0;
            if is_nat != 0 && !is_balanced && key.proto == IpProto::UDP.0 {
                scratch.reply_key.set_reversed(&scratch.forward);
                origin::<F>(cfg, key, scratch, Keep::Half);
            }
            count::reason(Reason::FlowNew);
            return Ok(Next::Flow);
        }
        if reply == MADE {
            F::half_remove(&scratch.reply_key);
        }
    }
    no_room(cfg)
}

/// What the configuration says where a table is full.
#[inline(always)]
pub fn no_room(cfg: &Xcfg) -> Result<Next, Reason> {
    if cfg.fail_open == 0 {
        return Err(Reason::TableFull);
    }
    count::reason(Reason::TableFullOpen);
    Ok(Next::Pass)
}

/// Inserts the answering direction; a translated flow whose answer would meet another's gets a source
/// port of its own.
#[inline(always)]
fn store_reply<F: Tables>(
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    is_nat: u8,
) -> Result<u8, Reason> {
    let hash = nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport);
    if is_nat == 0 {
        scratch.forward = *key;
    }
    for attempt in 0..PORT_TRIES {
        if attempt > 0 {
            scratch.forward.sport = nat::own_port(hash.wrapping_add(attempt.wrapping_mul(7919)));
            scratch.flow.set_translation(key, &scratch.forward);
        }
        scratch.reply_key.set_reversed(&scratch.forward);
        if let Some(entry) = F::flow(&scratch.reply_key) {
            if !is_own::<F>(entry, key) {
                if is_nat == 0 {
                    return Ok(OTHERS);
                }
                continue;
            }
            // The answer to a flow whose own entry is gone: it would hide the one made now.
            F::remove(&scratch.reply_key);
        }
        scratch.answer(key);
        let mut inserted = F::half_insert(&scratch.reply_key, &scratch.reply, NOEXIST);
        if inserted == Err(EEXIST) && is_nat != 0 && is_stray::<F>(&scratch.reply_key) {
            inserted = F::half_insert(&scratch.reply_key, &scratch.reply, 0);
        }
        match inserted {
            Ok(()) => {
                if attempt > 0 {
                    count::reason(Reason::NatPortMoved);
                }
                return Ok(MADE);
            }
            Err(EEXIST) => match F::half(&scratch.reply_key) {
                Some(entry) if !is_own::<F>(entry, key) => {
                    if is_nat == 0 {
                        return Ok(OTHERS);
                    }
                }
                _ => return Ok(THERE),
            },
            Err(_) => return Ok(NO_ROOM),
        }
    }
    Err(Reason::NatNoPort)
}

/// Whether the half-open flow under an answer's key was begun by that answer itself, after its entry was
/// evicted: the way back of a translated flow, which nobody translates any more.
#[inline(always)]
fn is_stray<F: Tables>(key: &FlowKey<F::Addr>) -> bool {
    match F::half(key) {
        // SAFETY: map value, readable until the program ends.
        Some(entry) => (unsafe { (*entry).nf }) & (nf::XNAT | nf::REPLY) == 0,
        None => false,
    }
}

/// Whether an answering entry belongs to the flow with this key.
#[inline(always)]
fn is_own<F: Tables>(entry: *mut Flow<F::Addr>, key: &FlowKey<F::Addr>) -> bool {
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &*entry };
    entry.to_saddr.same(&key.daddr)
        && entry.to_daddr.same(&key.saddr)
        && entry.to_sport == key.dport
        && entry.to_dport == key.sport
}

impl<A: Address> Scratch<A> {
    /// Makes `reply`, under `reply_key`, the answer to `flow` with this key.
    #[inline(always)]
    fn answer(&mut self, key: &FlowKey<A>) {
        let (flow, reply) = (&self.flow, &mut self.reply);
        reply.start(&self.reply_key, flow.generation, flow.last_seen_ns);
        if flow.nf & nf::TRUST != 0 {
            // Judged at its own device by its first packet, for a redirect of its own.
            reply.generation = reply.generation.wrapping_sub(1);
        }
        (reply.to_saddr, reply.to_daddr) = (key.daddr, key.saddr);
        (reply.to_sport, reply.to_dport) = (key.dport, key.sport);
        reply.addr_delta = checksum::opposite(flow.addr_delta);
        reply.port_delta = checksum::opposite(flow.port_delta);
        reply.add_opt(flow.opt());
        reply.nf = flow.nf & !(nf::RDIR | nf::PROVISIONAL) | nf::REPLY;
    }
}

/// What becomes of an origin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Kept while the flow is in the small table.
    Half,
    /// Kept for as long as the flow.
    Full,
    /// Removed from both.
    Gone,
}

/// Tells programs on this node what the gateway will be asked for, or forgets it. `key` is the flow's own;
/// `scratch.reply_key` that of its answer, which has what the gateway sees.
#[inline(always)]
pub fn origin<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    keep: Keep,
) {
    let flags = F::flags(cfg);
    let (on, with_addr, with_port) = if key.proto == IpProto::UDP.0 {
        (flags::UDP_OPT, flags::UDP_OPT_LADDR, flags::UDP_OPT_LPORT)
    } else {
        (flags::TCP_OPT, flags::TCP_OPT_LADDR, flags::TCP_OPT_LPORT)
    };
    if flags & on == 0 {
        return;
    }
    let seen = &scratch.reply_key;
    let (origin_key, origin) = &mut scratch.origin;
    *origin_key = OriginKey {
        laddr: if flags & with_addr != 0 {
            seen.saddr.widen()
        } else {
            [0; 16]
        },
        raddr: seen.daddr.widen(),
        lport: if flags & with_port != 0 {
            seen.sport
        } else {
            [0; 2]
        },
        rport: seen.dport,
        proto: key.proto,
        v6: F::V6 as u8,
        sys: sys::MESH,
        pad: 0,
    };
    if keep as u8 != Keep::Half as u8 && key.proto == IpProto::UDP.0 {
        let _ = FSM_XOPT_HALF.remove(&*origin_key);
    }
    if keep as u8 == Keep::Gone as u8 {
        let _ = FSM_XOPT.remove(&*origin_key);
        return;
    }
    *origin = Origin {
        daddr: key.daddr.widen(),
        saddr: key.saddr.widen(),
        dport: key.dport,
        sport: key.sport,
        proto: key.proto,
        v6: F::V6 as u8,
        pad: [0; 2],
    };
    let _ = if keep as u8 == Keep::Half as u8 {
        FSM_XOPT_HALF.insert(&*origin_key, &*origin, 0)
    } else {
        FSM_XOPT.insert(&*origin_key, &*origin, 0)
    };
}
