//! Frames for test runs.

use fsm_common::{flow::FlowKey, wire::l4::tcp_flag};

use crate::asm::{HEADER_AT, Header};

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// TTL and hop limit of every frame.
const HOPS: u8 = 64;
/// Transport header and payload; with Ethernet and IPv4, 98 bytes.
const PAYLOAD: usize = 64;

/// An IPv4 tuple.
pub fn key4(proto: u8, saddr: [u8; 4], sport: u16, daddr: [u8; 4], dport: u16) -> FlowKey<[u8; 4]> {
    let (sport, dport) = (sport.to_be_bytes(), dport.to_be_bytes());
    FlowKey {
        saddr,
        daddr,
        sport,
        dport,
        proto,
        pad: [0; 3],
    }
}

/// An IPv6 tuple of addresses `fd00::/16` with these last four bytes.
pub fn key6(
    proto: u8,
    saddr: [u8; 4],
    sport: u16,
    daddr: [u8; 4],
    dport: u16,
) -> FlowKey<[u8; 16]> {
    let wide = |tail: [u8; 4]| {
        let mut addr = [0; 16];
        addr[0] = 0xfd;
        addr[12..].copy_from_slice(&tail);
        addr
    };
    let key = key4(proto, saddr, sport, daddr, dport);
    let (saddr, daddr) = (wide(saddr), wide(daddr));
    FlowKey {
        saddr,
        daddr,
        sport: key.sport,
        dport: key.dport,
        proto,
        pad: [0; 3],
    }
}

/// What a TCP segment says; nothing for UDP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Flags byte.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
}

impl Segment {
    /// Bytes of data in each segment made here.
    const DATA: u32 = PAYLOAD as u32 - 20;
    /// An opener's SYN, its answer, and the opener's ACK.
    pub const HANDSHAKE: [Self; 3] = [
        Self::new(tcp_flag::SYN, 1_000, 0),
        Self::new(tcp_flag::SYN | tcp_flag::ACK, 5_000, 1_001 + Self::DATA),
        Self::new(tcp_flag::ACK, 1_001 + Self::DATA, 5_001 + Self::DATA),
    ];

    const fn new(flags: u8, seq: u32, ack: u32) -> Self {
        Self { flags, seq, ack }
    }
}

impl From<u8> for Segment {
    fn from(flags: u8) -> Self {
        Self::new(flags, 0, 0)
    }
}

/// What a wrapper needs for this tuple; it calls its target of that number.
pub fn header4(key: &FlowKey<[u8; 4]>, segment: Segment, target: u64) -> Header {
    let bytes = frame4(key, segment)[HEADER_AT..]
        .first_chunk()
        .copied()
        .unwrap_or_default();
    Header { bytes, target }
}

/// An IPv4 frame with complete checksums.
pub fn frame4(key: &FlowKey<[u8; 4]>, segment: impl Into<Segment>) -> Vec<u8> {
    let segment = segment.into();
    let mut frame = ethernet(0x0800);
    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((20 + PAYLOAD) as u16).to_be_bytes());
    ip[6] = 0x40;
    (ip[8], ip[9]) = (HOPS, key.proto);
    ip[12..16].copy_from_slice(&key.saddr);
    ip[16..20].copy_from_slice(&key.daddr);
    let check = !sum(0, &ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend(ip);
    let pseudo = sum(
        sum(u16::from(key.proto), &ip[12..20]),
        &(PAYLOAD as u16).to_be_bytes(),
    );
    frame.extend(transport(key.proto, key.sport, key.dport, segment, pseudo));
    frame
}

/// An IPv6 frame with complete checksums.
pub fn frame6(key: &FlowKey<[u8; 16]>, segment: impl Into<Segment>) -> Vec<u8> {
    let segment = segment.into();
    let mut frame = ethernet(0x86dd);
    let mut ip = [0u8; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(PAYLOAD as u16).to_be_bytes());
    (ip[6], ip[7]) = (key.proto, HOPS);
    ip[8..24].copy_from_slice(&key.saddr);
    ip[24..40].copy_from_slice(&key.daddr);
    frame.extend(ip);
    let pseudo = sum(
        sum(u16::from(key.proto), &ip[8..40]),
        &(PAYLOAD as u16).to_be_bytes(),
    );
    frame.extend(transport(key.proto, key.sport, key.dport, segment, pseudo));
    frame
}

/// Whether the checksums of a frame made here, or made of one, are right; true for what is not IP.
pub fn is_sound(frame: &[u8]) -> bool {
    let (proto, pseudo, l4) = match &frame[12..14] {
        [0x08, 0x00] if sum(0, &frame[14..34]) != 0xffff => return false,
        [0x08, 0x00] => (frame[23], &frame[26..34], &frame[34..]),
        [0x86, 0xdd] => (frame[20], &frame[22..54], &frame[54..]),
        _ => return true,
    };
    let start = sum(u16::from(proto), &(l4.len() as u16).to_be_bytes());
    sum(sum(start, pseudo), l4) == 0xffff
}

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn transport(
    proto: u8,
    sport: [u8; 2],
    dport: [u8; 2],
    segment: Segment,
    pseudo: u16,
) -> [u8; PAYLOAD] {
    let mut bytes = [0u8; PAYLOAD];
    bytes[..2].copy_from_slice(&sport);
    bytes[2..4].copy_from_slice(&dport);
    let at = if proto == TCP {
        bytes[4..8].copy_from_slice(&segment.seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&segment.ack.to_be_bytes());
        (bytes[12], bytes[13]) = (5 << 4, segment.flags);
        16
    } else {
        bytes[4..6].copy_from_slice(&(PAYLOAD as u16).to_be_bytes());
        6
    };
    let check = match !sum(pseudo, &bytes) {
        0 if proto == UDP => 0xffff,
        check => check,
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// One's complement sum of big-endian words (RFC 1071) on top of `start`.
pub fn sum(start: u16, bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
    let total = words.fold(u32::from(start), |total, word| total + word);
    let total = (total & 0xffff) + (total >> 16);
    ((total & 0xffff) + (total >> 16)) as u16
}
