//! The ACL: what an entry says, and in which order entries are asked.
//!
//! Entries say two things: what holds from a version of the policy on, and what held before ([`is_before`]). So a
//! new list is written beside the old one while packets are judged by the old, one byte of `fsm_xcfg` puts the
//! new one in force as a whole, and what is dead then is removed without a change to what lives.
//!
//! Order for a peer: exact (address, port, protocol), then (address, any port, protocol), then the longest
//! CIDR. User space compiles CIDRs so that the longest one carries the rules of those around it: the
//! kernel looks once.

use crate::{flow::Address, shared, wire::l3::IpProto};

/// What an entry says, the seed's numbers; from [`acl::SILENT`] on ours.
pub mod acl {
    /// Drop.
    pub const DENY: u8 = 0;
    /// Steer and inspect; also what no entry means.
    pub const AUDIT: u8 = 1;
    /// Forward without NAT or DPI.
    pub const TRUSTED: u8 = 2;
    /// No entry speaks of the peer. A number, because the verifier refuses the undefined half of an `Option`
    /// that LLVM reads ahead.
    pub const SILENT: u8 = 3;
    /// In a [`super::CidrRule`] of a [`super::CidrValue`]: the rules are in `fsm_cidr_set`.
    pub const SET: u8 = 4;
}

/// Protocol number for whatever is not TCP, UDP or ICMP (RFC 5237's reserved 255).
pub const PROTO_OTHER: u8 = 255;

/// Place of a protocol in an [`AclValue`], which speaks of all four.
pub mod class {
    /// TCP
    pub const TCP: u32 = 0;
    /// UDP
    pub const UDP: u32 = 1;
    /// ICMP for IPv4, ICMPv6 for IPv6.
    pub const ICMP: u32 = 2;
    /// Everything else.
    pub const OTHER: u32 = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// Rules that one CIDR can hold, those of the CIDRs around it included.
pub const CIDR_RULES: usize = 15;

/// Which kinds of entry exist, so that the kernel leaves out look-ups that cannot hit.
pub mod kind {
    /// (address, port), IPv4.
    pub const EXACT4: u32 = 1;
    /// (address), IPv4.
    pub const ADDR4: u32 = 2;
    /// CIDR, IPv4.
    pub const CIDR4: u32 = 4;
    /// The same three for IPv6.
    pub const V6_SHIFT: u32 = 3;
}

shared! {
    /// Key of `fsm_xacl`: an IPv4 peer.
    pub struct Acl4Key {
        /// Address.
        pub addr: [u8; 4],
        /// Port, network byte order; zero for any.
        pub port: [u8; 2],
        /// Always zero: the value speaks of every protocol.
        pub proto: u8,
        /// [`crate::maps::sys`].
        pub sys: u8,
    }

    /// Key of `fsm_xacl6`: an IPv6 peer.
    pub struct Acl6Key {
        /// Address.
        pub addr: [u8; 16],
        /// Port, network byte order; zero for any.
        pub port: [u8; 2],
        /// Always zero: the value speaks of every protocol.
        pub proto: u8,
        /// [`crate::maps::sys`].
        pub sys: u8,
        /// Always zero.
        pub pad: [u8; 4],
    }

    /// Value of the ACL maps: a verdict a protocol, with two bits for each [`class`]. The first eight bytes are
    /// read at once, as an [`AclWord`].
    pub struct AclValue {
        /// Version of the policy ([`crate::maps::Xcfg::policy`]) from which on `now` holds.
        pub from: u32,
        /// What holds.
        pub now: u8,
        /// What held before.
        pub was: u8,
        /// [`Tagged::tag`] of the key.
        pub tag: u16,
        /// Owner tags, a class each.
        pub ids: [u16; class::COUNT],
    }

    /// One rule of a CIDR.
    pub struct CidrRule {
        /// First port, host order; 0 to 65535 for any.
        pub port_lo: u16,
        /// Last port, host order.
        pub port_hi: u16,
        /// IP protocol, [`PROTO_OTHER`], or 0 for any.
        pub proto: u8,
        /// One of [`acl`].
        pub acl: u8,
        /// Owner tag.
        pub id: u16,
    }

    /// Value of the CIDR tries: the one rule of the prefix, or the number of its rules in `fsm_cidr_set`.
    pub struct CidrValue {
        /// What holds.
        pub now: CidrRule,
        /// What held before: what the prefix itself said, or the one around it.
        pub was: CidrRule,
        /// Version of the policy from which on `now` holds.
        pub from: u32,
        /// Always zero.
        pub pad: u32,
    }

    /// Value of `fsm_cidr_set`: the first rule that matches decides. Never changed, only made and removed.
    pub struct CidrRules {
        /// Rules in use.
        pub len: u32,
        /// Always zero.
        pub pad: u32,
        /// Most exact prefix first, within it narrower port ranges first.
        pub rules: [CidrRule; CIDR_RULES],
    }

    /// Key of `fsm_cidr4`.
    pub struct Cidr4Key {
        /// Bits that count.
        pub prefix_len: u32,
        /// Network address.
        pub addr: [u8; 4],
    }

    /// Key of `fsm_cidr6`.
    pub struct Cidr6Key {
        /// Bits that count.
        pub prefix_len: u32,
        /// Network address.
        pub addr: [u8; 16],
        /// Always zero.
        pub pad: [u8; 4],
    }
}

/// Whether a packet under this version of the policy is judged by what held before `from`. Versions wrap
/// around, so user space writes every entry anew each 2^30 versions (`model::plan`), long before an old one
/// would look new.
#[inline(always)]
pub const fn is_before(policy: u32, from: u32) -> bool {
    (policy.wrapping_sub(from) as i32) < 0
}

/// A key whose value is marked with it: the kernel may hand a removed entry's memory to another key while a
/// program still reads it.
pub trait Tagged {
    /// A hash of the key.
    fn tag(&self) -> u16;
}

/// [`Tagged::tag`] from a key in whole words.
#[inline(always)]
pub const fn tag_of(word: u64) -> u16 {
    // Folded first: what stands high in a factor does not reach far in the product.
    ((word ^ word >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

/// [`tag_of`] for three words.
#[inline(always)]
pub const fn tag_of6([a, b, c]: [u64; 3]) -> u16 {
    tag_of(a.rotate_left(23) ^ b.rotate_left(7) ^ c)
}

impl Acl4Key {
    /// The key in a word, as it lies in memory.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        let (a, p) = (self.addr, self.port);
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], p[0], p[1], self.proto, self.sys])
    }
}

impl Tagged for Acl4Key {
    #[inline(always)]
    fn tag(&self) -> u16 {
        tag_of(self.word())
    }
}

impl Acl6Key {
    /// The key in words, as it lies in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 3] {
        let (a, p) = (self.addr, self.port);
        [
            u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
            u64::from_ne_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
            u64::from_ne_bytes([p[0], p[1], self.proto, self.sys, 0, 0, 0, 0]),
        ]
    }
}

impl Tagged for Acl6Key {
    #[inline(always)]
    fn tag(&self) -> u16 {
        tag_of6(self.words())
    }
}

/// The front of an [`AclValue`], as one load gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclWord(pub u64);

impl AclWord {
    /// [`Tagged::tag`] of the entry's key.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// What the entry says of a [`class`] under this version of the policy: one of [`acl`].
    #[inline(always)]
    pub const fn verdict(self, policy: u32, class: u32) -> u8 {
        let shift = if is_before(policy, self.0 as u32) {
            40
        } else {
            32
        };
        (self.0 >> shift >> ((class & 3) * 2)) as u8 & 3
    }
}

impl AclValue {
    /// In `now` and `was`: nothing is said of any protocol.
    pub const NOTHING: u8 = 0xff;

    /// The front, as the kernel reads it.
    pub const fn word(&self) -> AclWord {
        AclWord(
            self.from as u64
                | (self.now as u64) << 32
                | (self.was as u64) << 40
                | (self.tag as u64) << 48,
        )
    }

    /// `now` or `was` with the verdict of one [`class`] replaced.
    pub const fn with(said: u8, class: u32, acl: u8) -> u8 {
        let shift = (class & 3) * 2;
        said & !(3 << shift) | (acl & 3) << shift
    }
}

impl CidrRule {
    /// Nothing.
    pub const SILENT: Self = Self {
        acl: acl::SILENT,
        ..Self::ZERO
    };

    /// Stands for the rules of this number in `fsm_cidr_set`.
    pub const fn set(number: u32) -> Self {
        Self {
            port_lo: number as u16,
            port_hi: (number >> 16) as u16,
            acl: acl::SET,
            ..Self::ZERO
        }
    }

    /// The number behind [`Self::set`].
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        self.port_lo as u32 | (self.port_hi as u32) << 16
    }

    /// Whether it speaks of `proto` and `port` (host order).
    #[inline(always)]
    pub const fn matches(&self, proto: u8, port: u16) -> bool {
        (self.proto == 0 || self.proto == proto) && self.port_lo <= port && port <= self.port_hi
    }

    /// What it says of them: one of [`acl`].
    #[inline(always)]
    pub const fn verdict(&self, proto: u8, port: u16) -> u8 {
        if self.matches(proto, port) {
            self.acl
        } else {
            acl::SILENT
        }
    }
}

impl CidrValue {
    /// What holds under this version of the policy.
    #[inline(always)]
    pub const fn at(&self, policy: u32) -> &CidrRule {
        if is_before(policy, self.from) {
            &self.was
        } else {
            &self.now
        }
    }
}

impl CidrRules {
    /// The first rule for `proto` and `port` (host order).
    pub fn find(&self, proto: u8, port: u16) -> Option<&CidrRule> {
        self.in_use().iter().find(|rule| rule.matches(proto, port))
    }

    /// The rules that count.
    pub fn in_use(&self) -> &[CidrRule] {
        &self.rules[..(self.len as usize).min(CIDR_RULES)]
    }

    /// What [`Self::find`]'s rule says: one of [`acl`].
    #[inline(always)]
    pub fn verdict(&self, proto: u8, port: u16) -> u8 {
        for i in 0..CIDR_RULES {
            if i as u32 >= self.len {
                break;
            }
            let rule = &self.rules[i];
            if rule.matches(proto, port) {
                return rule.acl;
            }
        }
        acl::SILENT
    }
}

/// The [`class`] of a packet's protocol.
#[inline(always)]
pub const fn class(proto: u8) -> u32 {
    match IpProto(proto) {
        IpProto::TCP => class::TCP,
        IpProto::UDP => class::UDP,
        IpProto::ICMP | IpProto::ICMPV6 => class::ICMP,
        _ => class::OTHER,
    }
}

/// The protocol number that CIDR rules use for a packet's protocol.
#[inline(always)]
pub const fn acl_proto(proto: u8) -> u8 {
    match IpProto(proto) {
        IpProto::TCP | IpProto::UDP | IpProto::ICMP | IpProto::ICMPV6 => proto,
        _ => PROTO_OTHER,
    }
}

/// Where ACL entries are found, all under one version of the policy: the kernel's maps, or a test's tables.
pub trait AclTables<A: Address> {
    /// What the entry for exactly this address and port (network order, zero for any) says of a [`class`].
    fn exact(&self, addr: &A, port: [u8; 2], class: u32) -> u8;
    /// What the rules of the longest CIDR around the address say of this protocol and port.
    fn cidr(&self, addr: &A, proto: u8, port: u16) -> u8;
    /// Bits of [`kind`] for this family, shifted to the IPv4 positions.
    fn kinds(&self) -> u32;
}

/// What the ACL says of a peer: one of [`acl`], `SILENT` where no entry speaks of it.
#[inline(always)]
pub fn decide<A: Address, T: AclTables<A>>(tables: &T, addr: &A, port: [u8; 2], proto: u8) -> u8 {
    let (kinds, class) = (tables.kinds(), class(proto));
    if kinds & kind::EXACT4 != 0 && port != [0, 0] {
        let verdict = tables.exact(addr, port, class);
        if verdict != acl::SILENT {
            return verdict;
        }
    }
    if kinds & kind::ADDR4 != 0 {
        let verdict = tables.exact(addr, [0, 0], class);
        if verdict != acl::SILENT {
            return verdict;
        }
    }
    if kinds & kind::CIDR4 != 0 {
        return tables.cidr(addr, acl_proto(proto), u16::from_be_bytes(port));
    }
    acl::SILENT
}
