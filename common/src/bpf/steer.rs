//! NAT to this node's listeners: exclusions, the entry, the endpoint.

use super::{
    count,
    judge::Next,
    maps::{Nat, Tables, skip_port},
    store::store,
};
use crate::{
    flags,
    flow::{Address, FlowKey, nf},
    maps::{Xcfg, feature, skip, sys},
    nat::{self, MAGLEV_SLOTS, NatKey, NatValue, select},
    parse::Parsed,
    reason::Reason,
    scratch::Scratch,
    wire::l3::IpProto,
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
    let is_udp = key.proto == IpProto::UDP.0;
    let kinds = cfg.nat_kinds >> nat::kind::shift(dir, is_udp, F::V6) & 0xf;
    if kinds == 0 || is_excluded::<F>(cfg, key, dir) {
        return Ok(None);
    }
    let flags = F::flags(cfg);
    scratch.nat = NatKey {
        proto: key.proto,
        dir,
        v6: F::V6 as u8,
        sys: sys::MESH,
        bank: cfg.nat_bank as u8,
        ..NatKey::ZERO
    };
    let kinds = kinds & enabled(flags, is_udp);
    let Some(entry) = nat::lookup(&Nat, kinds, &mut scratch.nat, key.daddr, key.dport) else {
        let escape = if is_udp {
            flags::UDP_ESCAPE
        } else {
            flags::TCP_ESCAPE
        };
        return if flags & escape != 0 {
            Ok(None)
        } else {
            Err(Reason::NatMiss)
        };
    };
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &mut *entry };
    if entry.usable == 0 {
        return if cfg.fail_open != 0 {
            count::reason(Reason::NatNoEndpointOpen);
            Ok(None)
        } else {
            Err(Reason::NatNoEndpoint)
        };
    }
    let to = &mut scratch.forward;
    *to = *key;
    let endpoint = &entry.endpoints[choose(entry, key) & (nat::MAX_ENDPOINTS - 1)];
    if endpoint.addr != [0; 16] {
        to.daddr = F::Addr::narrow(endpoint.addr);
    }
    if endpoint.port != [0; 2] {
        to.dport = endpoint.port;
    }
    let inbound = if dir == nat::dir::INGRESS {
        nf::INBOUND
    } else {
        0
    };
    scratch.flow.nf |= nf::XNAT | inbound;
    scratch.flow.nf &= !nf::PROVISIONAL;
    scratch.flow.set_translation(key, &scratch.forward);
    let next = store::<F>(cfg, key, scratch, 1)?;
    Ok(Some(next))
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

#[inline(always)]
fn choose<A: Address>(entry: &mut NatValue, key: &FlowKey<A>) -> usize {
    if entry.ep_cnt <= 1 {
        return 0;
    }
    let at = if entry.select == select::ROUND_ROBIN {
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
