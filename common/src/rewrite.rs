//! One translation of a packet: planned once for a flow, applied to each packet, undone by its inverse.
//!
//! TC applies a plan with the kernel's checksum helpers, because a locally sent packet carries an
//! unfinished L4 checksum; [`Rewrite::apply`] is for frames whose checksums are complete (AF_XDP, tests).

use crate::{
    checksum,
    flow::{Address, FlowKey},
    parse::Parsed,
    wire::l3::IpProto,
};

/// The tuple that a packet gets, and what this changes in its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// The tuple afterwards.
    pub to: FlowKey<A>,
    /// Difference in the addresses: IPv4 header checksum and L4 pseudo header.
    pub addr_delta: u16,
    /// Difference in the ports: L4 checksum only.
    pub port_delta: u16,
}

/// The TTL, protocol and checksum of an IPv4 header (bytes 8 to 11) after one hop more, as a router does it
/// (RFC 1812 §5.3.1); `ttl` is above 0.
#[inline(always)]
pub const fn one_hop(head: [u8; 4], ttl: u8) -> [u8; 4] {
    let [old_ttl, proto, c0, c1] = head;
    let old = u16::from_ne_bytes([old_ttl, proto]) as u32;
    let new = u16::from_ne_bytes([ttl - 1, proto]) as u32;
    let check = checksum::adjust([c0, c1], checksum::difference(old, new));
    [ttl - 1, proto, check[0], check[1]]
}

/// The one's complement differences that addresses and ports make when `from` becomes `to`.
#[inline(always)]
pub fn deltas<A: Address>(from: &FlowKey<A>, to: &FlowKey<A>) -> (u16, u16) {
    let ports = |key: &FlowKey<A>| {
        u32::from(u16::from_ne_bytes(key.sport)) + u32::from(u16::from_ne_bytes(key.dport))
    };
    let addrs = |key: &FlowKey<A>| key.saddr.sum() + key.daddr.sum();
    (
        checksum::difference(addrs(from), addrs(to)),
        checksum::difference(ports(from), ports(to)),
    )
}

impl<A: Address> Rewrite<A> {
    /// The plan that turns `from` into `to`.
    #[inline(always)]
    pub fn plan(from: &FlowKey<A>, to: &FlowKey<A>) -> Self {
        let (addr_delta, port_delta) = deltas(from, to);
        Self {
            to: *to,
            addr_delta,
            port_delta,
        }
    }

    /// Applies the plan to a frame with complete checksums; `None` (and nothing changed) where the frame
    /// is not the one that `parsed` describes.
    pub fn apply(&self, frame: &mut [u8], parsed: &Parsed<A>) -> Option<()> {
        let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
        let addr_len = size_of::<A>();
        let addr_at = l3 + if addr_len == 4 { 12 } else { 8 };
        frame.get(addr_at..addr_at + 2 * addr_len)?;
        if parsed.has_ports() {
            frame.get(l4..l4 + 8)?;
            let at = match IpProto(parsed.key.proto) {
                IpProto::TCP => Some(l4 + 16),
                // RFC 768: zero says that there is none
                IpProto::UDP if frame[l4 + 6..l4 + 8] != [0, 0] => Some(l4 + 6),
                _ => None,
            };
            if let Some(at) = at {
                let delta = checksum::fold(u32::from(self.addr_delta) + u32::from(self.port_delta));
                let field = frame.get_mut(at..)?.first_chunk_mut::<2>()?;
                *field = checksum::adjust(*field, delta);
                if parsed.key.proto == IpProto::UDP.0 && *field == [0, 0] {
                    *field = [0xff, 0xff];
                }
            }
            frame[l4..l4 + 2].copy_from_slice(&self.to.sport);
            frame[l4 + 2..l4 + 4].copy_from_slice(&self.to.dport);
        }
        if addr_len == 4 {
            let field = frame[l3 + 10..].first_chunk_mut::<2>()?;
            *field = checksum::adjust(*field, self.addr_delta);
        }
        let (saddr, daddr) = (self.to.saddr.widen(), self.to.daddr.widen());
        frame[addr_at..addr_at + addr_len].copy_from_slice(&saddr[..addr_len]);
        frame[addr_at + addr_len..addr_at + 2 * addr_len].copy_from_slice(&daddr[..addr_len]);
        Some(())
    }

    /// The plan that gives `from` back; `from` is the key that the plan was made for.
    pub fn inverse(&self, from: &FlowKey<A>) -> Self {
        Self::plan(&self.to, from)
    }
}
