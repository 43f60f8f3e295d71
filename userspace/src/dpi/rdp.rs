//! RDP: the request for a connection (X.224 in TPKT) with what Microsoft adds to it, and its answer.

use super::{
    lines::line,
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// TPKT's version, and a reserved byte.
const TPKT: [u8; 2] = [3, 0];
/// Bytes of a first packet.
const MAX_BYTES: u16 = 1024;
/// X.224's request and confirmation.
const REQUEST: u8 = 0xe0;
const CONFIRM: u8 = 0xd0;
/// Bytes before what Microsoft adds.
const FRONT_BYTES: usize = 11;
/// What a client says of who comes, and where to.
const COOKIE: &[u8] = b"Cookie: msts";
const USER: &[u8] = b"Cookie: mstshash=";
/// Negotiation: its kinds, and its length.
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const FAILURE: u8 = 3;
const NEGOTIATION_BYTES: usize = 8;
/// What may be asked for and is answered.
const PROTOCOLS: [(u32, &str); 5] = [
    (0, "rdp"),
    (1, "tls"),
    (2, "credssp"),
    (4, "rdstls"),
    (8, "credssp-early"),
];

/// RDP.
pub struct Rdp;

impl Parser for Rdp {
    fn app(&self) -> &'static str {
        "rdp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let kind = match head.side {
            Side::Client => REQUEST,
            Side::Server => CONFIRM,
        };
        let is_right = |(at, b): (usize, &u8)| match at {
            0 | 1 => *b == TPKT[at],
            5 => *b == kind,
            // The client names no connection of the server's, and class 0.
            6 | 7 => *b == 0 || head.side == Side::Server,
            10 => *b == 0,
            _ => true,
        };
        if !head
            .bytes
            .iter()
            .take(FRONT_BYTES)
            .enumerate()
            .all(is_right)
        {
            return Probe::No;
        }
        let len = match head.bytes {
            [_, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => return head.more(),
        };
        // The X.224 part says its own length.
        let is_length = head
            .bytes
            .get(4)
            .is_none_or(|inner| u16::from(*inner) + 5 == len);
        if !is_length || !(FRONT_BYTES as u16 + 8..=MAX_BYTES).contains(&len) {
            return Probe::No;
        }
        let Some(added) = head.bytes.get(FRONT_BYTES..usize::from(len)) else {
            return head.more();
        };
        let is_rdp = match head.side {
            Side::Client => added.starts_with(COOKIE) || negotiation(added, &[ASK]).is_some(),
            Side::Server => negotiation(added, &[ANSWER, FAILURE]).is_some(),
        };
        match is_rdp {
            true => Probe::Yes,
            false => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let len = match head.bytes {
            [3, 0, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            [3, ..] if !head.is_last => return Step::More,
            _ => return Step::Done,
        };
        let Some(packet) = head.bytes.get(..len) else {
            return head.more_to_read();
        };
        let added = packet.get(FRONT_BYTES..).unwrap_or_default();
        if head.side == Side::Client {
            if let Some((cookie, _)) = line(added) {
                info.add("user", cookie.strip_prefix(USER).unwrap_or_default());
            }
        } else if let Some((ANSWER, number)) = negotiation(added, &[ANSWER])
            && let Some((_, name)) = PROTOCOLS.iter().find(|(other, _)| *other == number)
        {
            info.add_word("security", (*name).to_owned());
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Kind and value.
fn negotiation(bytes: &[u8], kinds: &[u8]) -> Option<(u8, u32)> {
    let mut rest = Reader(bytes);
    let (kind, flags, len, value) = (rest.u8()?, rest.u8()?, rest.u16_le()?, rest.u32_le()?);
    let is_right = kinds.contains(&kind)
        && flags < 0x20
        && usize::from(len) == NEGOTIATION_BYTES
        && value < 0x20;
    is_right.then_some((kind, value))
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "rdp",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"\x03\0\0\x29\x24\xe0\0\0\0\0\0Cookie: mstshash=bob\r\n\x01\0\x08\0\x0b\0\0\0",
            ),
            (
                Side::Server,
                b"\x03\0\0\x13\x0e\xd0\0\0\x12\x34\0\x02\x1f\x08\0\x02\0\0\0",
            ),
        ],
        info: "user=bob security=credssp",
    }];

    #[test]
    fn other_things_in_tpkt_are_not_it() {
        // Siemens S7, and H.225.
        for bytes in [
            &b"\x03\0\0\x16\x11\xe0\0\0\0\x01\0\xc1\x02\x01\0\xc2\x02\x01\x02\xc0\x01\x0a"[..],
            b"\x03\0\0\x20\x08\x02\0\x01\x05",
        ] {
            assert_eq!(probe_all(&Rdp, bytes, Side::Client), Probe::No);
        }
    }
}
