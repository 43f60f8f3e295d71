//! Protected destinations: a packet that begins a flow there is counted, and those over the rate do not pass.

use fsm_common::{
    bpf::{Tables, fib::Host as _, guard::over_rate},
    maps::Xcfg,
    parse::Parsed,
    reason::Reason,
    wire::{l3::IpProto, l4::tcp_flag},
};

use crate::{Outcome, PASS, cookie, ctx::Frame};

/// Flags that tell a SYN that opens a connection from all else.
const OPENING: u8 = tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN;

/// A whole packet that no flow table knows and the ACL lets through: UDP over the rate is dropped, a SYN over
/// it answered with a cookie.
#[inline(always)]
pub fn new_flow<F: Tables>(frame: &Frame, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Outcome {
    let is_udp = packet.key.proto == IpProto::UDP.0;
    let is_syn = packet.key.proto == IpProto::TCP.0 && packet.tcp_flags & OPENING == tcp_flag::SYN;
    if cfg.guard_kinds == 0 || !(is_udp || is_syn) {
        return PASS;
    }
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends. The tuple is
    // read from there by all that follows: a pointer to the one on the stack would keep it in memory.
    let here = unsafe {
        (*scratch).cfg = u64::from(cfg.slot);
        &mut (*scratch).packet
    };
    *here = *packet;
    if over_rate::<F>(cfg, &here.key, frame.now_ns()) == 0 {
        return PASS;
    }
    if is_udp {
        return Err(Reason::FloodUdp.into());
    }
    cookie::call::<F>(frame)
}
