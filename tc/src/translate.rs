//! Applies a flow's translation to an skb.
//!
//! L4 checksums go through the kernel's helpers, which know whether the checksum is finished
//! (`inet_proto_csum_replace_by_diff`, net/core/utils.c); one call for the addresses, which are in the
//! pseudo header, one for the ports, which are not. Helpers come last: they end direct access.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_l4_csum_replace,
};
use fsm_common::{
    bpf::Tables,
    checksum,
    flow::{Flow, V4, V6},
    maps::Xcfg,
    parse::Parsed,
    reason::Reason,
    view::PacketView as _,
    wire::l3::IpProto,
};

use crate::ctx::Skb;

/// Writing a family's addresses.
pub trait Apply: Tables {
    /// Puts the translated addresses into the IP header, and mends its checksum.
    fn write_addresses(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()>;
    /// Flags for the pseudo-header call.
    fn pseudo_flags(cfg: &Xcfg) -> u64;
}

impl Apply for V4 {
    #[inline(always)]
    fn write_addresses(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()> {
        let check = checksum::adjust(skb.read::<2>(l3 + 10)?, flow.addr_delta);
        let (s, d) = (flow.to_saddr, flow.to_daddr);
        skb.write(
            l3 + 10,
            [
                check[0], check[1], s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3],
            ],
        )
    }

    #[inline(always)]
    fn pseudo_flags(_: &Xcfg) -> u64 {
        u64::from(BPF_F_PSEUDO_HDR)
    }
}

impl Apply for V6 {
    #[inline(always)]
    fn write_addresses(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()> {
        skb.write(l3 + 8, flow.to_saddr)?;
        skb.write(l3 + 24, flow.to_daddr)
    }

    #[inline(always)]
    fn pseudo_flags(cfg: &Xcfg) -> u64 {
        u64::from(BPF_F_PSEUDO_HDR | cfg.csum_ipv6_flag)
    }
}

/// Turns the packet's tuple into the flow's `to_*`.
///
/// # Errors
/// [`Reason::Truncated`] where the packet is not what its parse said; nothing is sent then.
#[inline(always)]
pub fn translate<F: Apply>(
    skb: &Skb,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<(), Reason> {
    let (l3, l4) = (packet.l3_at(), packet.l4_at());
    F::write_addresses(skb, l3, flow).ok_or(Reason::Truncated)?;
    if !packet.has_ports() {
        return Ok(());
    }
    let (s, d) = (flow.to_sport, flow.to_dport);
    skb.write(l4, [s[0], s[1], d[0], d[1]])
        .ok_or(Reason::Truncated)?;
    let (at, mangled) = if packet.key.proto == IpProto::UDP.0 {
        (l4 + 6, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (l4 + 16, 0)
    };
    let (was, is_udp) = (skb.read::<2>(at), mangled != 0);
    if flow.addr_delta == 0 {
        replace(skb, at, flow.port_delta, mangled);
        return Ok(());
    }
    replace(skb, at, flow.addr_delta, mangled | F::pseudo_flags(cfg));
    if flow.port_delta == 0 {
        return Ok(());
    }
    // The ports are in a finished checksum, and not in an unfinished one, where only the pseudo header is
    // summed. Which one it is shows in what the helper has just made of it: a finished one went down by the
    // difference, an unfinished one up. So the second call, a third of a translation's time, is spared.
    let (Some(was), Some(now)) = (was, skb.read::<2>(at)) else {
        replace(skb, at, flow.port_delta, mangled);
        return Ok(());
    };
    if now == finished(was, flow.addr_delta, is_udp) {
        let check = finished(now, flow.port_delta, is_udp);
        skb.write(at, check).ok_or(Reason::Truncated)?;
    }
    Ok(())
}

/// `bpf_l4_csum_replace` by a difference; nothing for none.
#[inline(always)]
fn replace(skb: &Skb, at: usize, delta: u16, flags: u64) {
    if delta != 0 {
        // SAFETY: the context is valid; the helper checks the offset.
        unsafe { bpf_l4_csum_replace(skb.helper_ctx(), at as u32, 0, u64::from(delta), flags) };
    }
}

/// A finished checksum after a difference; a UDP one is never 0, which would say that there is none.
#[inline(always)]
fn finished(check: [u8; 2], delta: u16, is_udp: bool) -> [u8; 2] {
    match checksum::adjust(check, delta) {
        [0, 0] if is_udp => [0xff, 0xff],
        check => check,
    }
}
