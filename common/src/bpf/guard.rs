//! Protected destinations: the bucket of a packet without a flow, and the listener that would take its SYN.

use super::{
    fib::{Host, Route, route_of},
    maps::{Guard, Tables},
    steer::{taker, to_endpoint},
};
use crate::{flow::FlowKey, guard, maps::Xcfg, nat::dir, scratch::Scratch, wire::l3::IpProto};

/// 1 where a packet that begins a flow is one too many for its destination, else 0. A subprogram of its own,
/// which is only called where something is protected.
#[inline(never)]
pub fn over_rate<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, now_ns: u64) -> u32 {
    let is_udp = key.proto == IpProto::UDP.0;
    let kinds = cfg.guard_kinds >> guard::shift(is_udp, F::V6) & 0xf;
    let buckets = Guard {
        proto: key.proto,
        family: F::ITSELF,
    };
    let Some(bucket) = guard::lookup(&buckets, kinds, key.daddr, key.dport) else {
        return 0;
    };
    // SAFETY: map value, readable until the program ends. Other CPUs write it too; see `guard` for what
    // their races can do.
    let bucket = unsafe { &mut *bucket };
    u32::from(!bucket.admit(now_ns))
}

/// Puts the tuple with which the SYN in `scratch.packet` would reach a listener of this host into
/// `scratch.forward`: that of the endpoint that TC will choose for the client's next packet, or its own where it
/// is for this host itself. `None` where it goes elsewhere: to an app that nobody is in front of, or on a way that
/// only the app's device knows.
#[inline(always)]
pub fn listener<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    ifindex: u32,
    scratch: &mut Scratch<F::Addr>,
) -> Option<()> {
    let key = &scratch.packet.key;
    match route_of::<F, H>(host, ifindex, key, &mut scratch.fib) {
        Route::Local => {
            scratch.forward = *key;
            return Some(());
        }
        Route::Away => return None,
        Route::App { .. } => {}
    }
    let entry = taker::<F>(cfg, key, &mut scratch.nat, dir::INGRESS).ok()??;
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &mut *entry };
    if entry.usable == 0 {
        return None;
    }
    to_endpoint(entry, key, false, &mut scratch.forward);
    match route_of::<F, H>(host, ifindex, &scratch.forward, &mut scratch.fib) {
        Route::Local => Some(()),
        _ => None,
    }
}
