//! Ethernet II, IEEE 802.1Q and 802.1ad.

/// An Ethernet type, host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EtherType(pub u16);

impl EtherType {
    /// RFC 894.
    pub const IPV4: Self = Self(0x0800);
    /// RFC 2464.
    pub const IPV6: Self = Self(0x86dd);
    /// 802.1Q.
    pub const VLAN: Self = Self(0x8100);
    /// 802.1ad service tag.
    pub const QINQ: Self = Self(0x88a8);

    /// Whether a four-byte tag follows.
    #[inline(always)]
    pub const fn is_vlan(self) -> bool {
        self.0 == Self::VLAN.0 || self.0 == Self::QINQ.0
    }
}

/// Bytes of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const VLAN_LEN: usize = 4;
/// Tags that are followed; a third is [`crate::Reason::BadVlan`].
pub const MAX_VLANS: usize = 2;
