//! Where the kernel's own routing would send a packet (`bpf_fib_lookup`).

use super::maps;
use crate::{
    flow::{Address, Family, FlowKey},
    maps::{IfaceEntry, role},
    parse::Parsed,
    scratch::FibLookup,
};

/// BPF_FIB_LKUP_RET_SUCCESS
const SUCCESS: i64 = 0;
/// BPF_FIB_LKUP_RET_NOT_FWDED: for this host, broadcast or multicast.
const NOT_FORWARDED: i64 = 4;
/// BPF_FIB_LKUP_RET_NO_NEIGH: routed, MAC unknown.
const NO_NEIGH: i64 = 7;

/// Where a packet goes.
pub enum Route {
    /// To this host itself.
    Local,
    /// To an app of this node; the MAC is known where the neighbour is resolved.
    App {
        /// The app's device.
        iface: &'static IfaceEntry,
        /// The app's MAC.
        dmac: Option<[u8; 6]>,
    },
    /// Elsewhere, or nowhere.
    Away,
}

/// What only a hook can do: call the helper with its context.
pub trait Host {
    /// `bpf_fib_lookup(ctx, params, size, 0)`.
    fn fib_lookup(&self, params: *mut FibLookup, size: u32) -> i64;
    /// The device the packet came from, or 0 where this host made it.
    fn arrived_on(&self) -> u32;
    /// Whether this host has a TCP connection of its own with this tuple, as the packet arrived; a listening
    /// socket is none. Only asked where the hook sees the stack's packets.
    fn has_connection<F: Family>(&self, key: &FlowKey<F::Addr>) -> bool;
    /// CLOCK_MONOTONIC, coarse.
    fn now_ns(&self) -> u64;
    /// Whether the hook counts and tracks every packet of a flow; else it is left to a later hook, and only
    /// what is redirected is counted.
    const COUNTS: bool;
}

#[inline(always)]
fn ask<F: Family, H: Host>(
    host: &H,
    ifindex: u32,
    (src, dst): (F::Addr, F::Addr),
    proto: u8,
    params: &mut FibLookup,
) -> i64 {
    *params = FibLookup {
        family: F::AF,
        l4_protocol: proto,
        sport: [0; 2],
        dport: [0; 2],
        tot_len: 0,
        ifindex,
        tos: 0,
        src: src.widen(),
        dst: dst.widen(),
        vlan: 0,
        smac: [0; 6],
        dmac: [0; 6],
    };
    host.fib_lookup(&raw mut *params, size_of::<FibLookup>() as u32)
}

/// The device that leads from `addrs.0` to `addrs.1`; 0 where that is this host itself, or nowhere. The answer's
/// MACs are then in `params`, see [`FibLookup::macs`].
#[inline(always)]
pub fn device<F: Family, H: Host>(
    host: &H,
    ifindex: u32,
    addrs: (F::Addr, F::Addr),
    proto: u8,
    params: &mut FibLookup,
) -> u32 {
    match ask::<F, H>(host, ifindex, addrs, proto, params) {
        SUCCESS | NO_NEIGH => params.ifindex,
        _ => 0,
    }
}

/// Asks the kernel for the way of a packet that arrived on `ifindex`.
#[inline(always)]
pub fn route<F: Family, H: Host>(
    host: &H,
    ifindex: u32,
    packet: &Parsed<F::Addr>,
    params: &mut FibLookup,
) -> Route {
    route_of::<F, H>(host, ifindex, &packet.key, params)
}

/// The same for a tuple.
#[inline(always)]
pub fn route_of<F: Family, H: Host>(
    host: &H,
    ifindex: u32,
    key: &FlowKey<F::Addr>,
    params: &mut FibLookup,
) -> Route {
    let result = ask::<F, H>(host, ifindex, (key.saddr, key.daddr), key.proto, params);
    if result == NOT_FORWARDED {
        return Route::Local;
    }
    if result != SUCCESS && result != NO_NEIGH {
        return Route::Away;
    }
    match maps::iface(params.ifindex) {
        Some((_, iface)) if iface.role == role::ENDPOINT => Route::App {
            iface,
            dmac: if result == SUCCESS {
                Some(params.dmac)
            } else {
                None
            },
        },
        _ => Route::Away,
    }
}
