//! A load balancer on the uplink (`sys::E4LB`): a flow to a virtual address goes to one of its endpoints.
//!
//! An endpoint behind another device gets the client's own address, and its answers come back through this
//! node. One behind the device that the packet came from would answer the client past this node: there the
//! source becomes the virtual address with a port of its own (full NAT).

use super::{
    fib::{self, Host},
    judge::Next,
    maps::Tables,
    steer::{ALL_KINDS, find, takes_turns, to_endpoint, unusable},
};
use crate::{
    flow::{Address, Flow, FlowKey, nf, opt},
    maps::{IfaceEntry, Xcfg, sys},
    nat::{self, MAX_ENDPOINTS, NatKey, NatValue, dir, kind, option},
    parse::Parsed,
    reason::Reason,
    scratch::Scratch,
};

/// The virtual address's entry, if the packet is for one.
#[inline(always)]
fn entry<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    nat_key: &mut NatKey,
) -> Option<*mut NatValue> {
    let kinds = kind::ADDR_PORT | kind::ADDR;
    find::<F>(cfg, sys::E4LB, dir::INGRESS, kinds, key, nat_key)
}

/// Whether the packet is for a virtual address; asked where `feature::E4LB` is on. Subprograms, this and the next,
/// so that the verifier sees one answer of all the ways to it.
#[inline(never)]
pub fn is_virtual<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>) -> bool {
    F::scratch().is_some_and(|scratch| {
        // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends.
        entry::<F>(cfg, key, unsafe { &mut (*scratch).nat }).is_some()
    })
}

/// Chooses the endpoint of a flow to be stored: `None` where the packet is for no virtual address.
#[inline(always)]
pub fn balance<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    packet: &Parsed<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Option<Next>, Reason> {
    let key = &packet.key;
    let Some(entry) = entry::<F>(cfg, key, &mut scratch.nat) else {
        return Ok(None);
    };
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &mut *entry };
    if entry.usable == 0 {
        return unusable(cfg);
    }
    to_endpoint(entry, key, takes_turns(packet), &mut scratch.forward);
    scratch.flow.nf |= nf::XNAT | nf::INBOUND;
    scratch.flow.add_opt(opt::BALANCED);
    if entry.options & option::RESET != 0 {
        scratch.flow.add_opt(opt::RESET);
    }
    let to = &mut scratch.forward;
    let device = fib::device::<F, H>(
        host,
        iface.ifindex,
        (key.saddr, to.daddr),
        key.proto,
        &mut scratch.fib,
    );
    let goes_back = device == iface.ifindex && entry.options & option::SOURCE_CLIENT == 0;
    if device != 0 && (goes_back || entry.options & option::SOURCE_VIP != 0) {
        scratch.flow.add_opt(opt::FULL_NAT);
        to.saddr = key.daddr;
        let hash = nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport);
        to.sport = nat::own_port(hash);
    }
    scratch.flow.set_translation(key, &scratch.forward);
    Ok(Some(Next::Flow))
}

/// Whether the entry for the flow's destination, or the whole entry, no longer has the flow's endpoint.
#[inline(never)]
pub fn is_target_gone<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    let Some(scratch) = F::scratch() else {
        return false;
    };
    // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends.
    let nat_key = unsafe { &mut (*scratch).nat };
    let is_reply = flow.nf & nf::REPLY != 0;
    let (addr, port) = if is_reply {
        (key.saddr, key.sport)
    } else {
        (flow.to_daddr, flow.to_dport)
    };
    let original = if is_reply { flow.pair_key(key) } else { *key };
    let found = if flow.opt() & opt::BALANCED != 0 {
        entry::<F>(cfg, &original, nat_key)
    } else {
        let dir = if flow.nf & nf::INBOUND != 0 {
            dir::INGRESS
        } else {
            dir::EGRESS
        };
        find::<F>(cfg, sys::MESH, dir, ALL_KINDS, &original, nat_key)
    };
    let Some(entry) = found else { return true };
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &*entry };
    let (addr, count) = (addr.widen(), usize::from(entry.ep_cnt));
    let mut i = 0;
    while i < MAX_ENDPOINTS && i < count {
        let endpoint = &entry.endpoints[i];
        if endpoint.addr.same(&addr) && endpoint.port == port {
            return false;
        }
        i += 1;
    }
    true
}
