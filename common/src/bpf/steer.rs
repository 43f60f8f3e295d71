//! NAT to this node's listeners: exclusions, the entry, the endpoint.

use super::{
    count,
    judge::Next,
    maps::{Nat, Tables, skip_port},
};
use crate::{
    flags,
    flow::{Address, FlowKey, nf, opt},
    maps::{Xcfg, feature, skip, sys},
    nat::{self, MAGLEV_SLOTS, NatKey, NatValue, option, select},
    parse::{Parsed, has_ports},
    reason::Reason,
    scratch::Scratch,
    wire::{l3::IpProto, l4::tcp_flag},
};

/// NAT to this node's listeners: `None` where the packet is none of NAT's business.
#[inline(always)]
pub fn steer<F: Tables>(
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    dir: u8,
) -> Result<Option<Next>, Reason> {
    let key = &packet.key;
    let Some(entry) = taker::<F>(cfg, key, &mut scratch.nat, dir)? else {
        return Ok(None);
    };
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &mut *entry };
    if entry.usable == 0 {
        return unusable(cfg);
    }
    to_endpoint(entry, key, takes_turns(packet), &mut scratch.forward);
    let inbound = if dir == nat::dir::INGRESS {
        nf::INBOUND
    } else {
        0
    };
    scratch.flow.nf |= nf::XNAT | inbound;
    scratch.flow.nf &= !nf::PROVISIONAL;
    if entry.options & option::RESET != 0 {
        scratch.flow.add_opt(opt::RESET);
    }
    scratch.flow.set_translation(key, &scratch.forward);
    Ok(Some(Next::Flow))
}

/// Every kind that an entry can be of.
pub(super) const ALL_KINDS: u32 = 0xf;

/// The entry of a system for a packet, of these kinds, as far as that system's own kinds and flags let it be
/// looked up.
#[inline(always)]
pub(super) fn find<F: Tables>(
    cfg: &Xcfg,
    sys: u8,
    dir: u8,
    kinds: u32,
    key: &FlowKey<F::Addr>,
    nat_key: &mut NatKey,
) -> Option<*mut NatValue> {
    let is_udp = key.proto == IpProto::UDP.0;
    let there = if sys == sys::E4LB {
        cfg.balance_kinds
    } else {
        cfg.nat_kinds
    };
    let there = there >> nat::kind::shift(dir, is_udp, F::V6);
    let kinds = there & enabled(F::flags(cfg), is_udp) & kinds;
    *nat_key = NatKey {
        proto: key.proto,
        dir,
        v6: F::V6 as u8,
        sys,
        bank: cfg.nat_bank as u8,
        ..NatKey::ZERO
    };
    nat::lookup(&Nat, kinds, nat_key, key.daddr, key.dport)
}

/// What `node.fail` says of a flow whose entry has no active endpoint.
#[inline(always)]
pub(super) fn unusable(cfg: &Xcfg) -> Result<Option<Next>, Reason> {
    if cfg.fail_open == 0 {
        return Err(Reason::NatNoEndpoint);
    }
    count::reason(Reason::NatNoEndpointOpen);
    Ok(None)
}

/// The mesh's entry that takes a packet; `None` where none is asked, or the packet may go without. `nat` is work
/// space.
#[inline(always)]
pub(super) fn taker<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    nat: &mut NatKey,
    dir: u8,
) -> Result<Option<*mut NatValue>, Reason> {
    let is_udp = key.proto == IpProto::UDP.0;
    let kinds = cfg.nat_kinds >> nat::kind::shift(dir, is_udp, F::V6) & 0xf;
    if kinds == 0 || !has_ports(key.proto) || is_excluded::<F>(cfg, key, dir) {
        return Ok(None);
    }
    if let Some(entry) = find::<F>(cfg, sys::MESH, dir, ALL_KINDS, key, nat) {
        return Ok(Some(entry));
    }
    let escape = if is_udp {
        flags::UDP_ESCAPE
    } else {
        flags::TCP_ESCAPE
    };
    if F::flags(cfg) & escape != 0 {
        Ok(None)
    } else {
        Err(Reason::NatMiss)
    }
}

/// Whether a packet takes a turn of a round-robin entry: one that begins a connection. For one that comes
/// without, as after a SYN cookie or a lost table, the endpoint is chosen by the tuple.
#[inline(always)]
pub(super) fn takes_turns<A: Address>(packet: &Parsed<A>) -> bool {
    !packet.is_tcp() || packet.tcp_flags & tcp_flag::SYN != 0
}

/// Makes `to` the tuple of `key` at the endpoint that is chosen for it.
#[inline(always)]
pub(super) fn to_endpoint<A: Address>(
    entry: &mut NatValue,
    key: &FlowKey<A>,
    takes_turns: bool,
    to: &mut FlowKey<A>,
) {
    *to = *key;
    let endpoint = &entry.endpoints[choose(entry, key, takes_turns) & (nat::MAX_ENDPOINTS - 1)];
    if endpoint.addr != [0; 16] {
        to.daddr = A::narrow(endpoint.addr);
    }
    if endpoint.port != [0; 2] {
        to.dport = endpoint.port;
    }
}

/// The kinds of NAT entry that the flags leave on.
#[inline(always)]
fn enabled(flags: u64, is_udp: bool) -> u32 {
    let on = |flag: u64, kind: u32| if flags & flag != 0 { kind } else { 0 };
    let not = |flag: u64, kind: u32| if flags & flag == 0 { kind } else { 0 };
    use nat::kind::{ADDR, ADDR_PORT, ANY, PORT};
    if is_udp {
        on(flags::UDP_BY_IP_PORT, ADDR_PORT)
            | on(flags::UDP_BY_IP, ADDR)
            | on(flags::UDP_BY_PORT, PORT)
            | not(flags::UDP_ANY_OFF, ANY)
    } else {
        on(flags::TCP_BY_IP_PORT, ADDR_PORT)
            | on(flags::TCP_BY_IP, ADDR)
            | PORT
            | not(flags::TCP_ANY_OFF, ANY)
    }
}

/// `exclude_*` of the configuration: wins over every NAT entry.
#[inline(always)]
fn is_excluded<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, dir: u8) -> bool {
    let bit = if dir == nat::dir::INGRESS {
        skip::INBOUND
    } else {
        skip::OUTBOUND
    };
    if cfg.features & feature::SKIP_PORT != 0
        && skip_port(cfg.policy, u16::from_be_bytes(key.dport)) & bit != 0
    {
        return true;
    }
    let cidrs = if F::V6 {
        feature::SKIP_CIDR6
    } else {
        feature::SKIP_CIDR4
    };
    cfg.features & cidrs != 0 && F::skip(cfg.policy, &key.daddr) & bit != 0
}

/// Index of the endpoint for a new flow.
#[inline(always)]
fn choose<A: Address>(entry: &mut NatValue, key: &FlowKey<A>, takes_turns: bool) -> usize {
    if entry.ep_cnt <= 1 {
        return 0;
    }
    let at = if takes_turns && entry.select == select::ROUND_ROBIN {
        // Two CPUs may take the same turn; the shares stay even.
        let turn = if entry.ep_sel >= MAGLEV_SLOTS {
            0
        } else {
            entry.ep_sel
        };
        entry.ep_sel = turn + 1;
        turn
    } else {
        nat::slot(nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport))
    };
    usize::from(entry.table[at as usize])
}
