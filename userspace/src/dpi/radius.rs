//! RADIUS (RFC 2865, 2866, 5176). Names are read, secrets are not.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes before the attributes.
const FRONT_BYTES: usize = 20;
/// Bytes of a packet (RFC 2865 §3).
const MAX_BYTES: usize = 4096;
/// Attributes: name of the user, the asking server's address and name, proof of the message.
const USER: u8 = 1;
const NAS_ADDRESS: u8 = 4;
const NAS: u8 = 32;
const STATUS: u8 = 40;
const SESSION: u8 = 44;
const PROOF: u8 = 80;

/// RADIUS.
pub struct Radius;

impl Parser for Radius {
    fn app(&self) -> &'static str {
        "radius"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let Some(code) = head.bytes.first().and_then(|code| name(*code, head.side)) else {
            return Probe::No;
        };
        let Some(mut attributes) = attributes(head.bytes) else {
            return Probe::No;
        };
        // A request says who asks; so does what ends a session.
        let is_told = |(kind, value): (u8, &[u8])| match kind {
            USER | NAS | SESSION => !value.is_empty(),
            NAS_ADDRESS | STATUS => value.len() == 4,
            PROOF => value.len() == 16,
            _ => false,
        };
        let is_right = match head.side {
            Side::Client => attributes.any(is_told),
            Side::Server => head.bytes.len() > FRONT_BYTES || code != "Access-Challenge",
        };
        match is_right {
            true => Probe::Yes,
            false => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let field = match head.side {
            Side::Client => "command",
            Side::Server => "answer",
        };
        if let Some(code) = head.bytes.first().and_then(|code| name(*code, head.side)) {
            info.add_word(field, code.to_owned());
        }
        for (kind, value) in attributes(head.bytes).into_iter().flatten() {
            match kind {
                USER if head.side == Side::Client => info.add("user", value),
                NAS => info.add("nas", value),
                _ => {}
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn name(code: u8, side: Side) -> Option<&'static str> {
    Some(match (side, code) {
        (Side::Client, 1) => "Access-Request",
        (Side::Client, 4) => "Accounting-Request",
        (Side::Client, 12) => "Status-Server",
        (Side::Client, 40) => "Disconnect-Request",
        (Side::Client, 43) => "CoA-Request",
        (Side::Server, 2) => "Access-Accept",
        (Side::Server, 3) => "Access-Reject",
        (Side::Server, 5) => "Accounting-Response",
        (Side::Server, 11) => "Access-Challenge",
        (Side::Server, 41) => "Disconnect-ACK",
        (Side::Server, 42) => "Disconnect-NAK",
        (Side::Server, 44) => "CoA-ACK",
        (Side::Server, 45) => "CoA-NAK",
        _ => return None,
    })
}

/// Kind and value of each; `None` where they do not fill the packet.
fn attributes(bytes: &[u8]) -> Option<impl Iterator<Item = (u8, &[u8])>> {
    let mut front = Reader(bytes);
    front.u16()?;
    let len = usize::from(front.u16()?);
    if len != bytes.len()
        || !(FRONT_BYTES..=MAX_BYTES).contains(&len)
        || bytes.get(4..FRONT_BYTES)? == [0; 16]
    {
        return None;
    }
    let mut rest = Reader(bytes.get(FRONT_BYTES..)?);
    while !rest.0.is_empty() {
        attribute(&mut rest)?;
    }
    let mut rest = Reader(bytes.get(FRONT_BYTES..)?);
    Some(std::iter::from_fn(move || attribute(&mut rest)))
}

/// Its length counts kind and length too.
fn attribute<'a>(rest: &mut Reader<'a>) -> Option<(u8, &'a [u8])> {
    let kind = rest.u8()?;
    let len = usize::from(rest.u8()?).checked_sub(2)?;
    Some((kind, rest.take(len)?))
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    const ASK: &[u8] =
        b"\x01\x07\0\x32abcdefghijklmnop\x01\x06shop\x02\x12................\x20\x06node";

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "radius",
        transport: Transport::Udp,
        says: &[
            (Side::Client, ASK),
            (Side::Server, b"\x02\x07\0\x14ponmlkjihgfedcba"),
        ],
        info: "command=Access-Request user=shop nas=node answer=Access-Accept",
    }];

    #[test]
    fn one_byte_more_or_less_is_no_packet() {
        for bytes in [&ASK[..ASK.len() - 1], &[ASK, b"\0"].concat()] {
            assert_eq!(
                Radius.probe(&head(bytes, Side::Client, Transport::Udp)),
                Probe::No
            );
        }
    }
}
