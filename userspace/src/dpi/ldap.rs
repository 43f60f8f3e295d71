//! LDAP 2 and 3, over TCP and UDP: the first request or answer. Names are read, credentials are not.

use super::{
    ber::{self, ENUMERATED, INTEGER, OCTETS, SEQUENCE},
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// Bytes of a first message.
const MAX_BYTES: usize = 64 << 10;
/// Kinds of messages.
const BIND: u8 = 0x60;
const BIND_ANSWER: u8 = 0x61;
const SEARCH: u8 = 0x63;
const ENTRY: u8 = 0x64;
const SEARCH_DONE: u8 = 0x65;
const EXTENDED: u8 = 0x77;
const EXTENDED_ANSWER: u8 = 0x78;
/// Ways of a bind: a password, SASL.
const SIMPLE: u8 = 0x80;
const SASL: u8 = 0xa3;
/// The name of an extended request.
const NAME: u8 = 0x80;

/// LDAP.
pub struct Ldap;

struct Message<'a> {
    command: &'static str,
    version: Option<u32>,
    user: &'a [u8],
    base: &'a [u8],
}

impl Parser for Ldap {
    fn app(&self) -> &'static str {
        "ldap"
    }

    fn is_over(&self, _: Transport) -> bool {
        true
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.bytes.first() != Some(&SEQUENCE) {
            return Probe::No;
        }
        let mut rest = Reader(head.bytes);
        match ber::start(&mut rest) {
            None if head.bytes.len() < 6 => return head.more(),
            Some((_, 5..=MAX_BYTES)) => {}
            _ => return Probe::No,
        }
        // The number of a message is short.
        if rest.0.first().is_some_and(|tag| *tag != INTEGER)
            || rest.0.get(1).is_some_and(|len| *len > 4 || *len == 0)
        {
            return Probe::No;
        }
        match message(head) {
            Some(_) => Probe::Yes,
            None if is_whole(head.bytes) => Probe::No,
            None => head.more(),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if !is_whole(head.bytes) && head.bytes.first() == Some(&SEQUENCE) && !head.is_last {
            return Step::More;
        }
        if let (Some(message), Side::Client) = (message(head), head.side) {
            if let Some(version) = message.version {
                info.add_word("version", version.to_string());
            }
            info.add_word("command", message.command.to_owned());
            info.add("user", message.user);
            info.add("base", message.base);
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    let mut rest = Reader(bytes);
    ber::start(&mut rest).is_some_and(|(_, len)| rest.0.len() >= len)
}

/// A whole message, of a kind that the side says.
fn message<'a>(head: &Head<'a>) -> Option<Message<'a>> {
    let mut rest = Reader(head.bytes);
    let mut body = ber::element(&mut rest, SEQUENCE)?;
    ber::number(&mut body, INTEGER)?;
    let (tag, len) = ber::start(&mut body)?;
    let mut operation = Reader(body.take(len)?);
    let mut message = Message {
        command: "bind",
        version: None,
        user: &[],
        base: &[],
    };
    match (head.side, tag) {
        (Side::Client, BIND) => {
            message.version = Some(ber::number(&mut operation, INTEGER)?)
                .filter(|version| matches!(version, 2 | 3));
            message.version?;
            message.user = ber::element(&mut operation, OCTETS)?.0;
            let (way, len) = ber::start(&mut operation)?;
            let is_right =
                matches!(way, SIMPLE | SASL | 0x8a | 0x89 | 0x8b) && operation.0.len() == len;
            return is_right.then_some(message);
        }
        (Side::Client, SEARCH) => {
            message.command = "search";
            message.base = ber::element(&mut operation, OCTETS)?.0;
            let (scope, aliases) = (
                ber::number(&mut operation, ENUMERATED)?,
                ber::number(&mut operation, ENUMERATED)?,
            );
            return (scope <= 3 && aliases <= 3).then_some(message);
        }
        (Side::Client, EXTENDED) => {
            message.command = "extended";
            let oid = ber::element(&mut operation, NAME)?.0;
            let is_oid = oid.len() > 4 && oid.iter().all(|b| b.is_ascii_digit() || *b == b'.');
            return is_oid.then_some(message);
        }
        (Side::Server, ENTRY) => {
            ber::element(&mut operation, OCTETS)?;
            ber::element(&mut operation, SEQUENCE)?;
        }
        (Side::Server, BIND_ANSWER | SEARCH_DONE | EXTENDED_ANSWER) => {
            let code = ber::number(&mut operation, ENUMERATED)?;
            ber::element(&mut operation, OCTETS)?;
            ber::element(&mut operation, OCTETS)?;
            if code > 123 {
                return None;
            }
        }
        _ => return None,
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "ldap",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0",
                ),
                (
                    Side::Server,
                    b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0",
                ),
            ],
            info: "version=3 command=bind",
        },
        Sample {
            app: "ldap",
            transport: Transport::Tcp,
            says: &[(
                Side::Client,
                b"\x30\x1d\x02\x01\x01\x77\x18\x80\x16\x31.3.6.1.4.1.1466.20037",
            )],
            info: "command=extended",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x05\x04\0\x80\0"[..],
            b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0",
            b"\x30\x05\x02\x01\x01\x42\0",
            b"\x30\x0c\x04\x01\x01\x60\x07",
        ] {
            assert_eq!(probe_all(&Ldap, bytes, Side::Client), Probe::No);
        }
    }
}
