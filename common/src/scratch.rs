//! Work space of the programs that judge, too large for the BPF stack; and what the fast program hands to
//! them by it. Pinned like every map: while a daemon is replaced, the fast program of one load may call the
//! judge of the other, so a change here raises [`crate::maps::LAYOUT`].

use crate::{
    cookie::Headers,
    flow::{Flow, FlowKey},
    maps::{Origin, OriginKey},
    nat::NatKey,
    parse::Parsed,
};

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`).
#[repr(C, align(8))]
pub struct FibLookup {
    pub(crate) family: u8,
    pub(crate) l4_protocol: u8,
    pub(crate) sport: [u8; 2],
    pub(crate) dport: [u8; 2],
    pub(crate) tot_len: u16,
    pub(crate) ifindex: u32,
    pub(crate) tos: u32,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    pub(crate) vlan: u32,
    pub(crate) smac: [u8; 6],
    pub(crate) dmac: [u8; 6],
}

const _: () = assert!(size_of::<FibLookup>() == 64);

impl FibLookup {
    /// The answer's MACs, source and destination; the second is zero while the neighbour is not resolved.
    #[inline(always)]
    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (self.smac, self.dmac)
    }
}

/// One CPU's work space for one address family.
#[repr(C, align(8))]
pub struct Scratch<A> {
    /// The packet to judge.
    pub packet: Parsed<A>,
    /// What the ACL says of it ([`crate::policy::acl`]), `bpf::judge::AGAIN` or `HALF`.
    pub verdict: u64,
    /// Place of the settings that it is judged by ([`crate::maps::Xcfg::slot`]): one judgement, one policy.
    pub cfg: u64,
    /// Number of the [`crate::stats::Hook`] that it is at, for programs that serve several.
    pub hook: u64,
    /// Wire segments in it, its bytes, and the window scale of a SYN.
    pub size: [u64; 3],
    /// The packet's tuple after translation.
    pub forward: FlowKey<A>,
    /// Key of the answering direction.
    pub reply_key: FlowKey<A>,
    /// Entry of the packet's direction.
    pub flow: Flow<A>,
    /// Entry of the answering direction.
    pub reply: Flow<A>,
    /// Question to the routing table.
    pub fib: FibLookup,
    /// Key for the NAT look-up.
    pub nat: NatKey,
    /// Key and value for the origin map.
    pub origin: (OriginKey, Origin),
    /// The answer to a SYN.
    pub headers: Headers,
}
