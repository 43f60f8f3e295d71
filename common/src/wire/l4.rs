//! TCP (RFC 9293), UDP (RFC 768) and ICMP facts.

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP_LEN: usize = 8;

/// Bits of the TCP flags byte.
pub mod tcp_flag {
    /// Sender is done.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
    /// Urgent pointer is valid.
    pub const URG: u8 = 0x20;
}

/// One bit for each combination of URG ACK PSH RST SYN FIN that a TCP may send, as netfilter has it
/// (`nf_conntrack_proto_tcp.c`, `tcp_valid_flags`): PSH never matters by itself.
const VALID: u64 = {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN, URG};
    let plain = [
        SYN,
        SYN | URG,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN | ACK,
        FIN | ACK | URG,
        ACK,
        ACK | URG,
    ];
    let mut bits = 0u64;
    let mut i = 0;
    while i < plain.len() {
        bits |= 1 << plain[i] | 1 << (plain[i] | PSH);
        i += 1;
    }
    bits
};

/// Whether a TCP may send these flags; ECE and CWR are left out of account.
#[inline(always)]
pub const fn tcp_flags_valid(flags: u8) -> bool {
    VALID >> (flags & 0x3f) & 1 == 1
}

/// Whether an ICMP message quotes the packet that it is about: destination unreachable, source quench,
/// redirect, time exceeded, parameter problem (RFC 792).
#[inline(always)]
pub const fn icmp_is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
}

/// The same for ICMPv6 (RFC 4443 §2.1): unreachable, packet too big, time exceeded, parameter problem.
#[inline(always)]
pub const fn icmpv6_is_error(icmp_type: u8) -> bool {
    icmp_type >= 1 && icmp_type <= 4
}

/// Whether an ICMP message is an echo or its reply (RFC 792).
#[inline(always)]
pub const fn icmp_is_echo(icmp_type: u8) -> bool {
    icmp_type == 8 || icmp_type == 0
}

/// The same for ICMPv6 (RFC 4443 §4).
#[inline(always)]
pub const fn icmpv6_is_echo(icmp_type: u8) -> bool {
    icmp_type == 128 || icmp_type == 129
}
