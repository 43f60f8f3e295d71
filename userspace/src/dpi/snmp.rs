//! SNMP 1, 2c and 3. Of a community its length is told, never itself.

use super::{
    ber::{self, INTEGER, OCTETS, OID, SEQUENCE},
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// Kinds of messages by their tag, from 0xa0.
const COMMANDS: [&str; 9] = [
    "get", "getnext", "response", "set", "trap", "getbulk", "inform", "trap2", "report",
];
/// The first kind.
const FIRST: u8 = 0xa0;
/// A trap of version 1, which has another form.
const TRAP1: u8 = 0xa4;

/// SNMP.
pub struct Snmp;

#[derive(Default)]
struct Message<'a> {
    version: &'static str,
    community: Option<usize>,
    user: &'a [u8],
    command: Option<u8>,
    oid: Option<&'a [u8]>,
}

impl Parser for Snmp {
    fn app(&self) -> &'static str {
        "snmp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match message(head.bytes) {
            Some(_) => Probe::Yes,
            None => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some(message) = message(head.bytes) else {
            return Step::Done;
        };
        if head.side == Side::Client {
            info.add_word("version", message.version.to_owned());
            if let Some(command) = message.command {
                info.add_word("command", COMMANDS[usize::from(command - FIRST)].to_owned());
            }
            if let Some(len) = message.community {
                info.add_word("community_length", len.to_string());
            }
            info.add("user", message.user);
            if let Some(oid) = message.oid {
                info.add_word("oid", ber::dotted(oid));
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// A message that fills its datagram.
fn message(bytes: &[u8]) -> Option<Message<'_>> {
    if bytes.first() != Some(&SEQUENCE) {
        return None;
    }
    let mut rest = Reader(bytes);
    let mut body = ber::element(&mut rest, SEQUENCE)?;
    if !rest.0.is_empty() {
        return None;
    }
    match ber::number(&mut body, INTEGER)? {
        version @ (0 | 1) => {
            let community = ber::element(&mut body, OCTETS)?.0.len();
            let (command, oid) = command(&mut body)?;
            body.0.is_empty().then_some(Message {
                version: if version == 0 { "1" } else { "2c" },
                community: Some(community),
                command: Some(command),
                oid,
                ..Message::default()
            })
        }
        3 => message3(body),
        _ => None,
    }
}

/// Kind and first object of a message.
fn command<'a>(body: &mut Reader<'a>) -> Option<(u8, Option<&'a [u8]>)> {
    let tag = *body.0.first()?;
    let kind = tag
        .checked_sub(FIRST)
        .filter(|kind| usize::from(*kind) < COMMANDS.len())?;
    let mut pdu = ber::element(body, tag)?;
    if FIRST + kind == TRAP1 {
        return Some((tag, Some(ber::element(&mut pdu, OID)?.0)));
    }
    // Number of the request (it may be below zero), error and its place or what a bulk asks for.
    ber::element(&mut pdu, INTEGER)?;
    ber::number(&mut pdu, INTEGER)?;
    ber::number(&mut pdu, INTEGER)?;
    let mut objects = ber::element(&mut pdu, SEQUENCE)?;
    if !pdu.0.is_empty() {
        return None;
    }
    let first = ber::element(&mut objects, SEQUENCE);
    let oid = first
        .and_then(|mut first| ber::element(&mut first, OID))
        .map(|oid| oid.0);
    Some((tag, oid))
}

fn message3(mut body: Reader<'_>) -> Option<Message<'_>> {
    let mut global = ber::element(&mut body, SEQUENCE)?;
    ber::number(&mut global, INTEGER)?;
    let most = ber::number(&mut global, INTEGER)?;
    let flags = *ber::element(&mut global, OCTETS)?.0.first()?;
    let model = ber::number(&mut global, INTEGER)?;
    if !global.0.is_empty() || most < 484 || flags > 7 || model == 0 {
        return None;
    }
    let mut security = ber::element(&mut body, OCTETS)?;
    let mut message = Message {
        version: "3",
        ..Message::default()
    };
    // RFC 3414: engine, its boots and time, user.
    if model == 3
        && let Some(mut usm) = ber::element(&mut security, SEQUENCE)
    {
        ber::element(&mut usm, OCTETS)?;
        ber::element(&mut usm, INTEGER)?;
        ber::element(&mut usm, INTEGER)?;
        message.user = ber::element(&mut usm, OCTETS)?.0;
    }
    // Encrypted, or a sequence of context and message.
    if flags & 2 != 0 {
        ber::element(&mut body, OCTETS)?;
    } else {
        let mut scoped = ber::element(&mut body, SEQUENCE)?;
        ber::element(&mut scoped, OCTETS)?;
        ber::element(&mut scoped, OCTETS)?;
        let (kind, oid) = command(&mut scoped)?;
        (message.command, message.oid) = (Some(kind), oid);
    }
    body.0.is_empty().then_some(message)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    const GET: &[u8] =
        b"\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x01\x07\x02\x01\0\x02\x01\0\
        \x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\0\x05\0";

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "snmp",
        transport: Transport::Udp,
        says: &[(Side::Client, GET)],
        info: "version=2c command=get community_length=6 oid=1.3.6.1.2.1.1.1.0",
    }];

    #[test]
    fn one_byte_more_or_less_is_no_message() {
        for bytes in [&GET[..GET.len() - 1], &[GET, b"\0"].concat()] {
            let head = head(bytes, Side::Client, Transport::Udp);
            assert_eq!(Snmp.probe(&head), Probe::No);
        }
    }
}
