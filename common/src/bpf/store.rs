//! Two entries a flow, and what the gateway will ask for.

use super::{
    count,
    judge::Next,
    maps::{FSM_XOPT, Tables},
};
use crate::{
    checksum, flags,
    flow::{Address, FlowKey, nf, opt},
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
/// What became of the answering entry: the table is full, it was there before, it was made.
const NO_ROOM: u8 = 0;
const THERE: u8 = 1;
const MADE: u8 = 2;

/// Stores both directions of the flow in `scratch`, the answer first: a flow without its answer would
/// send packets out that nobody translates back.
#[inline(always)]
pub fn store<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    is_nat: u8,
) -> Result<Next, Reason> {
    let reply = store_reply::<F>(key, scratch, is_nat)?;
    if reply != NO_ROOM {
        if F::insert(key, &scratch.flow, 0).is_ok() {
            if is_nat != 0 && scratch.flow.opt & opt::BALANCED == 0 {
                record_origin::<F>(cfg, key, scratch);
            }
            count::reason(Reason::FlowNew);
            return Ok(Next::Flow);
        }
        if reply == MADE {
            F::remove(&scratch.reply_key);
        }
    }
    if cfg.fail_open == 0 {
        return Err(Reason::TableFull);
    }
    count::reason(Reason::TableFullOpen);
    Ok(Next::Pass)
}

/// Inserts the answering direction; a translated flow whose answer would meet another's gets a source
/// port of its own. `false` where the table is full.
#[inline(always)]
fn store_reply<F: Tables>(
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    is_nat: u8,
) -> Result<u8, Reason> {
    let hash = nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport);
    if scratch.flow.nf & nf::XNAT == 0 {
        scratch.forward = *key;
    }
    for attempt in 0..PORT_TRIES {
        if attempt > 0 {
            scratch.forward.sport = nat::own_port(hash.wrapping_add(attempt.wrapping_mul(7919)));
            scratch.flow.set_translation(key, &scratch.forward);
        }
        scratch.reply_key.set_reversed(&scratch.forward);
        let reply = &mut scratch.reply;
        reply.start(
            &scratch.reply_key,
            scratch.flow.generation,
            scratch.flow.last_seen_ns,
        );
        if scratch.flow.nf & nf::TRUST != 0 {
            // Judged at its own device by its first packet, for a redirect of its own.
            reply.generation = reply.generation.wrapping_sub(1);
        }
        (reply.to_saddr, reply.to_daddr) = (key.daddr, key.saddr);
        (reply.to_sport, reply.to_dport) = (key.dport, key.sport);
        reply.addr_delta = checksum::opposite(scratch.flow.addr_delta);
        reply.port_delta = checksum::opposite(scratch.flow.port_delta);
        reply.opt = scratch.flow.opt;
        reply.nf = scratch.flow.nf & !(nf::RDIR | nf::PROVISIONAL) | nf::REPLY;
        match F::insert(&scratch.reply_key, &scratch.reply, NOEXIST) {
            Ok(()) => {
                if attempt > 0 {
                    count::reason(Reason::NatPortMoved);
                }
                return Ok(MADE);
            }
            Err(EEXIST) if is_nat == 0 || is_own::<F>(&scratch.reply_key, key) => return Ok(THERE),
            Err(EEXIST) => {}
            Err(_) => return Ok(NO_ROOM),
        }
    }
    Err(Reason::NatNoPort)
}

/// Whether the answering entry already there belongs to this very flow.
#[inline(always)]
fn is_own<F: Tables>(reply_key: &FlowKey<F::Addr>, key: &FlowKey<F::Addr>) -> bool {
    F::flow(reply_key).is_some_and(|entry| {
        // SAFETY: map value, readable until the program ends.
        let entry = unsafe { &*entry };
        entry.to_saddr.same(&key.daddr)
            && entry.to_daddr.same(&key.saddr)
            && entry.to_sport == key.dport
            && entry.to_dport == key.sport
    })
}

/// Tells programs on this node what the gateway will be asked for.
#[inline(always)]
fn record_origin<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, scratch: &mut Scratch<F::Addr>) {
    let flags = F::flags(cfg);
    let (on, with_addr, with_port) = if key.proto == IpProto::UDP.0 {
        (flags::UDP_OPT, flags::UDP_OPT_LADDR, flags::UDP_OPT_LPORT)
    } else {
        (flags::TCP_OPT, flags::TCP_OPT_LADDR, flags::TCP_OPT_LPORT)
    };
    if flags & on == 0 {
        return;
    }
    let seen = &scratch.flow;
    let (origin_key, origin) = &mut scratch.origin;
    *origin_key = OriginKey {
        laddr: if flags & with_addr != 0 {
            seen.to_daddr.widen()
        } else {
            [0; 16]
        },
        raddr: seen.to_saddr.widen(),
        lport: if flags & with_port != 0 {
            seen.to_dport
        } else {
            [0; 2]
        },
        rport: seen.to_sport,
        proto: key.proto,
        v6: F::V6 as u8,
        sys: sys::MESH,
        pad: 0,
    };
    *origin = Origin {
        daddr: key.daddr.widen(),
        saddr: key.saddr.widen(),
        dport: key.dport,
        sport: key.sport,
        proto: key.proto,
        v6: F::V6 as u8,
        pad: [0; 2],
    };
    let _ = FSM_XOPT.insert(&*origin_key, &*origin, 0);
}
