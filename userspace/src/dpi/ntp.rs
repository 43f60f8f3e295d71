//! NTP 1 to 4 (RFC 5905), and its control messages.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a message without extensions.
const BYTES: usize = 48;
/// Bytes of a control message's header.
const CONTROL_BYTES: usize = 12;
/// Modes.
const SYMMETRIC: u8 = 1;
const PASSIVE: u8 = 2;
const CLIENT: u8 = 3;
const SERVER: u8 = 4;
const BROADCAST: u8 = 5;
const CONTROL: u8 = 6;
/// Delay and dispersion to the reference clock, in units of 2^-16 seconds, stay below 16 s.
const MAX_DELAY: u32 = 16 << 16;

/// NTP.
pub struct Ntp;

impl Parser for Ntp {
    fn app(&self) -> &'static str {
        "ntp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match is_message(head) {
            Some(true) => Probe::Yes,
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let [first, stratum, ..] = head.bytes else {
            return Step::Done;
        };
        info.add_word("version", (first >> 3 & 7).to_string());
        if head.side == Side::Server && first & 7 != CONTROL {
            info.add_word("stratum", stratum.to_string());
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn is_message(head: &Head<'_>) -> Option<bool> {
    let mut rest = Reader(head.bytes);
    let first = rest.u8()?;
    let (version, mode) = (first >> 3 & 7, first & 7);
    if !matches!(version, 1..=4) {
        return Some(false);
    }
    if mode == CONTROL {
        return is_control(head, rest);
    }
    let is_side = match head.side {
        Side::Client => matches!(mode, SYMMETRIC | PASSIVE | CLIENT | BROADCAST),
        Side::Server => matches!(mode, SYMMETRIC | PASSIVE | SERVER),
    };
    let (stratum, poll, precision) = (rest.u8()?, rest.u8()? as i8, rest.u8()? as i8);
    let (delay, dispersion) = (rest.u32()?, rest.u32()?);
    // Some clients say 32 where a precision is wanted.
    let is_numbers = stratum <= 16
        && (-6..=17).contains(&poll)
        && (matches!(precision, -32..=0) || precision == 32);
    let is_near = (delay < MAX_DELAY || delay >> 24 == 0xff) && dispersion < MAX_DELAY;
    let extra = head.bytes.len().checked_sub(BYTES)?;
    // A key and a digest of 16, 20 or 32 bytes, or extensions of at least 16.
    let is_length =
        extra == 0 || matches!(extra, 4 | 20 | 24 | 36) || (extra >= 16 && extra % 4 == 0);
    let transmit = head.bytes.get(40..48)?;
    Some(is_side && is_numbers && is_near && is_length && (mode == CLIENT || transmit != [0; 8]))
}

fn is_control(head: &Head<'_>, mut rest: Reader<'_>) -> Option<bool> {
    let operation = rest.u8()?;
    let (_, status, _, offset, count) = (
        rest.u16()?,
        rest.u16()?,
        rest.u16()?,
        rest.u16()?,
        rest.u16()?,
    );
    let is_answer = operation & 0x80 != 0;
    let is_right = matches!(operation & 0x1f, 1..=12) && (head.side == Side::Server) == is_answer;
    let body = usize::from(count).next_multiple_of(4);
    let is_length = head.bytes.len() == CONTROL_BYTES + body
        || head.bytes.len() == CONTROL_BYTES + usize::from(count);
    let is_question = is_answer || (status == 0 && offset == 0 && operation & 0x60 == 0);
    // One without data is twelve bytes, most of them zero.
    Some(is_right && is_length && is_question && head.bytes[0] >> 6 == 0)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "ntp",
            transport: Transport::Udp,
            says: &[(
                Side::Client,
                b"\x1b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            )],
            info: "version=3",
        },
        Sample {
            app: "ntp",
            transport: Transport::Udp,
            says: &[
                (Side::Client, b"\x16\x02\0\x01\0\0\0\0\0\0\0\0"),
                (Side::Server, b"\x16\x82\0\x01\x06\x18\0\0\0\0\0\x04ver1"),
            ],
            info: "version=2",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &[0x23; 48][..],
            &[0; 48],
            b"\x16\x02\0\x01\0\0\0\0\0\0\0\x01",
        ] {
            let head = head(bytes, Side::Client, Transport::Udp);
            assert_eq!(Ntp.probe(&head), Probe::No);
        }
    }
}
