//! The RSTs that end a TCP connection from the middle: one to each end, as the other end would send it.
//!
//! An end takes an RST only if its sequence number is exactly what it waits for (RFC 5961 §3.2), or, before its SYN
//! was answered, if it acknowledges that SYN (RFC 9293 §3.10.7.3). Both follow from the segment that was withheld:
//! its receiver waits for its sequence number, its sender for its acknowledgement number.

use fsm_common::{
    checksum::{fold, sum},
    flow::Address,
    parse::{Fragment, Packet, Parsed, parse},
    wire::{
        l2::ETH_LEN,
        l3::{IPV4_LEN, IPV6_LEN, IpProto},
        l4::{TCP_LEN, tcp_flag},
    },
};

/// Ethernet with two tags, IPv6 and TCP without options.
const MOST: usize = ETH_LEN + 8 + IPV6_LEN + TCP_LEN;
/// Hop limit and TTL.
const HOPS: u8 = 64;

/// One RST, Ethernet header first.
#[derive(Debug, Clone, Copy)]
pub struct Rst {
    bytes: [u8; MOST],
    len: usize,
}

impl Rst {
    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What both ends of a withheld segment are told.
#[derive(Debug, Clone, Copy)]
pub struct Resets {
    /// To whom it was sent; none for a SYN, of which its receiver knows nothing yet.
    pub receiver: Option<Rst>,
    /// To whoever sent it.
    pub sender: Rst,
}

/// RSTs for this segment; `None` for anything else, and for an RST.
pub fn resets(frame: &[u8]) -> Option<Resets> {
    match parse(frame).ok()? {
        Packet::V4(parsed) => of(frame, &parsed),
        Packet::V6(parsed) => of(frame, &parsed),
        Packet::Other(_) => None,
    }
}

fn of<A: Address>(frame: &[u8], parsed: &Parsed<A>) -> Option<Resets> {
    if !parsed.is_tcp() || parsed.fragment == Fragment::Later {
        return None;
    }
    let flags = parsed.tcp_flags;
    if flags & tcp_flag::RST != 0 {
        return None;
    }
    let has_ack = flags & tcp_flag::ACK != 0;
    let controls = [tcp_flag::SYN, tcp_flag::FIN].map(|flag| u32::from(flags & flag != 0));
    let end = parsed
        .seq
        .wrapping_add(parsed.payload)
        .wrapping_add(controls[0] + controls[1]);
    let link = frame.get(..parsed.l3_at())?;
    let forth = || build(link, false, &parsed.key, parsed.seq, parsed.ack);
    // Without an acknowledgement, zero (RFC 9293 §3.10.7.1).
    let seq = if has_ack { parsed.ack } else { 0 };
    Some(Resets {
        receiver: if has_ack { forth() } else { None },
        sender: build(link, true, &parsed.key.reversed(), seq, end)?,
    })
}

/// An RST with this tuple and these numbers behind a link header like `link`, turned round for its sender.
fn build<A: Address>(
    link: &[u8],
    turned: bool,
    key: &fsm_common::flow::FlowKey<A>,
    seq: u32,
    ack: u32,
) -> Option<Rst> {
    let is_v4 = size_of::<A>() == 4;
    let l4 = link.len() + if is_v4 { IPV4_LEN } else { IPV6_LEN };
    let len = l4 + TCP_LEN;
    let mut bytes = [0u8; MOST];
    bytes.get_mut(..link.len())?.copy_from_slice(link);
    if turned {
        bytes.get_mut(..6)?.copy_from_slice(link.get(6..12)?);
        bytes.get_mut(6..12)?.copy_from_slice(link.get(..6)?);
    }
    let (source, target) = (key.saddr.widen(), key.daddr.widen());
    let ip = bytes.get_mut(link.len()..l4)?;
    if is_v4 {
        let total = ((IPV4_LEN + TCP_LEN) as u16).to_be_bytes();
        ip[..4].copy_from_slice(&[0x45, 0, total[0], total[1]]);
        // Not to be fragmented, so that no identification is needed (RFC 6864).
        ip[6..10].copy_from_slice(&[0x40, 0, HOPS, IpProto::TCP.0]);
        ip[12..16].copy_from_slice(&source[..4]);
        ip[16..20].copy_from_slice(&target[..4]);
        let check = !fold(sum(&*ip, 0, IPV4_LEN)?);
        ip[10..12].copy_from_slice(&check.to_ne_bytes());
    } else {
        let payload = (TCP_LEN as u16).to_be_bytes();
        ip[..8].copy_from_slice(&[0x60, 0, 0, 0, payload[0], payload[1], IpProto::TCP.0, HOPS]);
        ip[8..24].copy_from_slice(&source);
        ip[24..40].copy_from_slice(&target);
    }
    let tcp = bytes.get_mut(l4..len)?;
    tcp[..2].copy_from_slice(&key.sport);
    tcp[2..4].copy_from_slice(&key.dport);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12..14].copy_from_slice(&[(TCP_LEN as u8 / 4) << 4, tcp_flag::RST | tcp_flag::ACK]);
    // RFC 9293 §3.1: addresses, protocol and length count too.
    let pseudo = key.saddr.sum()
        + key.daddr.sum()
        + u32::from(u16::from_ne_bytes([0, IpProto::TCP.0]))
        + u32::from(u16::from_ne_bytes((TCP_LEN as u16).to_be_bytes()));
    let check = !fold(u32::from(fold(pseudo)) + sum(&*tcp, 0, TCP_LEN)?);
    tcp[16..18].copy_from_slice(&check.to_ne_bytes());
    Some(Rst { bytes, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{ACK, Frame, RST, SYN, check_sums, tcp, udp};

    const V4: [&str; 2] = ["10.0.0.1:1000", "10.0.0.2:80"];
    const V6: [&str; 2] = ["[fd00::1]:1000", "[fd00::2]:80"];

    fn segment([from, to]: [&str; 2], flags: u8) -> Frame {
        tcp(from, to, flags).at(1000, 5000)
    }

    /// (source port, seq, ack, flags) of an RST whose checksums hold.
    fn read(rst: &Rst) -> (u16, u32, u32, u8) {
        let mut bare = rst.frame().to_vec();
        if bare[12..14] == [0x81, 0] {
            bare.drain(12..16);
        }
        check_sums(&bare).unwrap();
        let (port, parsed) = match parse(rst.frame()).unwrap() {
            Packet::V4(p) => (p.key.sport, (p.seq, p.ack, p.tcp_flags)),
            Packet::V6(p) => (p.key.sport, (p.seq, p.ack, p.tcp_flags)),
            Packet::Other(_) => panic!("not IP"),
        };
        (u16::from_be_bytes(port), parsed.0, parsed.1, parsed.2)
    }

    #[test]
    fn both_ends_get_the_numbers_that_they_wait_for() {
        for ends in [V4, V6] {
            let frame = segment(ends, ACK).payload(&[7; 100]).bytes();
            let rsts = resets(&frame).unwrap();
            assert_eq!(read(&rsts.receiver.unwrap()), (1000, 1000, 5000, RST | ACK));
            assert_eq!(read(&rsts.sender), (80, 5000, 1100, RST | ACK));
            assert_eq!(rsts.sender.frame()[..6], frame[6..12]);
            assert_eq!(rsts.sender.frame()[6..12], frame[..6]);
            assert_eq!(rsts.receiver.unwrap().frame()[..12], frame[..12]);
        }
    }

    #[test]
    fn syn_and_fin_count_and_a_syn_is_refused_to_its_sender_only() {
        let rsts = resets(&segment(V4, SYN).bytes()).unwrap();
        assert!(rsts.receiver.is_none());
        assert_eq!(read(&rsts.sender), (80, 0, 1001, RST | ACK));
        let rsts = resets(&segment(V6, SYN | ACK).bytes()).unwrap();
        assert_eq!(read(&rsts.sender), (80, 5000, 1001, RST | ACK));
        assert_eq!(read(&rsts.receiver.unwrap()), (1000, 1000, 5000, RST | ACK));
        let rsts = resets(&segment(V4, ACK | 1).payload(&[1; 3]).bytes()).unwrap();
        assert_eq!(read(&rsts.sender), (80, 5000, 1004, RST | ACK));
    }

    #[test]
    fn tags_stay_and_what_is_no_segment_gets_nothing() {
        let tagged = segment(V4, ACK).tag(0x8100, 7).bytes();
        let rsts = resets(&tagged).unwrap();
        assert_eq!(rsts.sender.frame()[12..18], tagged[12..18]);
        read(&rsts.sender);
        assert!(resets(&segment(V4, RST | ACK).bytes()).is_none());
        assert!(resets(&udp(V4[0], V4[1]).bytes()).is_none());
        assert!(resets(&[0; 20]).is_none());
    }
}
