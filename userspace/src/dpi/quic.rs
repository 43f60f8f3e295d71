//! QUIC (RFC 8999, 9000, 9369): version and connection of the first datagram. What is encrypted is not opened.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// A long header, and the bit that is always set.
const LONG: u8 = 0xc0;
/// Bytes of a datagram with a first packet (RFC 9000 §14.1).
const MIN_BYTES: usize = 1200;
/// Bytes of a connection's number; a client's first guess of the server's has at least eight.
const MAX_ID_BYTES: usize = 20;
const MIN_GUESS_BYTES: usize = 8;
/// Versions.
const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;
const DRAFTS: std::ops::RangeInclusive<u32> = 0xff00_001b..=0xff00_0022;

/// QUIC.
pub struct Quic;

struct Packet<'a> {
    version: u32,
    is_initial: bool,
    to: &'a [u8],
    rest: Reader<'a>,
}

impl Parser for Quic {
    fn app(&self) -> &'static str {
        "quic"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match packet(head.bytes).and_then(|packet| is_first(head, packet)) {
            Some(true) => Probe::Yes,
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if let (Some(packet), Side::Client) = (packet(head.bytes), head.side) {
            let version = match packet.version {
                V1 => "1".to_owned(),
                V2 => "2".to_owned(),
                draft if DRAFTS.contains(&draft) => format!("draft-{}", draft & 0xff),
                other => format!("{other:#x}"),
            };
            info.add_word("version", version);
            let hex: String = packet.to.iter().map(|byte| format!("{byte:02x}")).collect();
            info.add_word("dcid", hex);
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    let mut rest = Reader(bytes);
    let first = rest.u8().filter(|first| *first & 0x80 != 0)?;
    let version = rest.u32()?;
    let to = rest.with_u8_len()?.0;
    let from = rest.with_u8_len()?.0;
    // Version 2 counts from one.
    let kind = (first >> 4 & 3).wrapping_sub(u8::from(version == V2)) & 3;
    let is_known = version == V1 || version == V2 || DRAFTS.contains(&version);
    let is_right = to.len() <= MAX_ID_BYTES && from.len() <= MAX_ID_BYTES;
    let is_long = is_known && first & LONG == LONG;
    (is_right && is_long).then_some(Packet {
        version,
        is_initial: kind == 0,
        to,
        rest,
    })
}

/// A number in one to eight bytes, as its first two bits say.
fn number(rest: &mut Reader<'_>) -> Option<u64> {
    let first = rest.u8()?;
    let mut sum = u64::from(first & 0x3f);
    for _ in 1..1u8 << (first >> 6) {
        sum = sum << 8 | u64::from(rest.u8()?);
    }
    Some(sum)
}

/// Whether a flow begins so. Other packets than the first of each side say too little.
fn is_first(head: &Head<'_>, mut packet: Packet<'_>) -> Option<bool> {
    if !packet.is_initial || head.bytes.len() < MIN_BYTES {
        return Some(false);
    }
    let token = usize::try_from(number(&mut packet.rest)?).ok()?;
    packet.rest.take(token)?;
    let len = usize::try_from(number(&mut packet.rest)?).ok()?;
    // Number and tag at least.
    let is_length = (20..=packet.rest.0.len()).contains(&len);
    Some(match head.side {
        Side::Client => is_length && packet.to.len() >= MIN_GUESS_BYTES,
        Side::Server => is_length && token == 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    /// A client's first datagram, zero where it is encrypted.
    const INITIAL: [u8; 1200] = {
        let mut bytes = [0; 1200];
        // Header, version 1, eight bytes of connection, none of its own, no token, 1182 bytes.
        let head = b"\xc3\0\0\0\x01\x08\x83\x94\xc8\xf0\x3e\x51\x57\x08\0\0\x44\x9e";
        let mut at = 0;
        while at < head.len() {
            bytes[at] = head[at];
            at += 1;
        }
        bytes
    };

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "quic",
        transport: Transport::Udp,
        says: &[(Side::Client, &INITIAL)],
        info: "version=1 dcid=8394c8f03e515708",
    }];

    #[test]
    fn what_only_looks_like_it() {
        let mut other = INITIAL;
        other[4] = 7;
        for bytes in [&INITIAL[..1199], &other] {
            assert_eq!(
                Quic.probe(&head(bytes, Side::Client, Transport::Udp)),
                Probe::No
            );
        }
    }
}
