//! Flows under inspection: which they are, what was said of them, and which worker gets their packets.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use super::{
    judge::Place,
    maps::{FSM_WORKER, Tables},
};
use crate::{
    escalate::{Escalated, STALE_NS, TAKEN, flow_hash, owner, taken},
    flow::{Flow, FlowKey, nf, opt},
    maps::{Xcfg, feature},
    parse::Parsed,
    stats::Hook,
    wire::l4::tcp_flag,
};

/// Puts a flow under inspection, or takes it out, as the settings have it. `trusted` is 0 or 1. A load balancer's flow
/// is inspected where its endpoint is. In arithmetic: the verifier walks through all that follows once for each way
/// through a condition.
#[inline(always)]
pub(super) fn decide<A>(cfg: &Xcfg, flow: &mut Flow<A>, trusted: u32) {
    let bit = |word: u32, mask: u32| word >> mask.trailing_zeros() & 1;
    let opts = u32::from(flow.opt());
    let (is_on, is_all) = (
        bit(cfg.features, feature::INSPECT),
        bit(cfg.features, feature::INSPECT_ALL),
    );
    let not_apps = trusted | bit(opts, opt::HOST.into());
    let is_wanted = is_on & (is_all | not_apps ^ 1) & (bit(opts, opt::BALANCED.into()) ^ 1);
    let place = u32::from(nf::INSPECT).trailing_zeros();
    flow.nf = flow.nf & !nf::INSPECT | (is_wanted << place) as u8;
}

/// Forgets what was said of an earlier flow of this tuple, where the packet begins one.
#[inline(always)]
pub fn forget_earlier<F: Tables>(packet: &Parsed<F::Addr>, view: &FlowKey<F::Addr>) {
    if packet.is_tcp() && packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN {
        F::verdict_remove(view);
        F::verdict_remove(&view.reversed());
    }
}

/// The tuple that the flow's two ends see.
#[inline(always)]
pub fn view<F: Tables>(
    place: Place,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
) -> FlowKey<F::Addr> {
    if place.is_egress() {
        flow.translated(key)
    } else {
        *key
    }
}

/// What a worker has said of the flow: one of [`crate::escalate::verdict`], or 0.
#[inline(always)]
pub fn said<F: Tables>(cfg: &Xcfg, view: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> u8 {
    match F::verdict(view) {
        Some(said) if said.policy == cfg.dpi_policy && said.born == flow.made() => said.verdict,
        _ => 0,
    }
}

/// Ends the inspection of a flow of the main table: the kernel's alone from now on.
#[inline(always)]
pub fn fold<A>(flow: &mut Flow<A>) {
    flow.nf &= !nf::INSPECT;
}

/// What goes in front of a packet; `None` where no worker lives to get it.
#[inline(always)]
pub fn label<F: Tables>(
    cfg: &Xcfg,
    view: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    hook: Hook,
    ifindex: u32,
) -> Option<Escalated> {
    let hash = flow_hash(view);
    let word = FSM_WORKER.get(owner(hash, u32::from(cfg.workers)))?;
    // SAFETY: takes no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: map value, written by the worker as one word.
    let alive_ns = unsafe { (&raw const word.alive_ns).read_volatile() };
    // Signed: a worker may have written later than this CPU has asked.
    if alive_ns == 0
        || now_ns.wrapping_sub(alive_ns) as i64 > STALE_NS as i64
        || cfg.dpi_ifindex == 0
    {
        return None;
    }
    let is_reply = flow.nf & nf::REPLY != 0;
    let is_copy = cfg.features & feature::INSPECT_COPY != 0;
    Some(Escalated {
        magic: TAKEN,
        ifindex,
        at_ns: now_ns,
        policy: cfg.dpi_policy,
        hash,
        born: flow.made(),
        vlan: 0,
        hook: hook as u8,
        flags: if is_reply { taken::REPLY } else { 0 } | if is_copy { taken::COPY } else { 0 },
    })
}
