//! MQTT 3.1, 3.1.1 and 5: the client's CONNECT, and the topic of what it publishes or subscribes to next. What answers is
//! not read; nor is a password.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Kinds of packets, in the upper half of the first byte.
const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x80;
/// Flags of a CONNECT: a name, a last will.
const HAS_USER: u8 = 0x80;
const HAS_WILL: u8 = 0x04;

/// MQTT.
pub struct Mqtt;

impl Parser for Mqtt {
    fn app(&self) -> &'static str {
        "mqtt"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server || head.bytes.first() != Some(&CONNECT) {
            return Probe::No;
        }
        let mut rest = Reader(&head.bytes[1..]);
        let len = match length(&mut rest) {
            Length::Is(len) => len,
            Length::More => return head.more(),
            Length::Not => return Probe::No,
        };
        let forms: [(&[u8], &[u8]); 2] = [(b"\0\x04MQTT", b"\x04\x05"), (b"\0\x06MQIsdp", b"\x03")];
        for (name, levels) in forms {
            let shown = rest.0.len().min(name.len());
            if rest.0[..shown] != name[..shown] {
                continue;
            }
            let Some([level, flags, ..]) = rest.0.get(name.len()..) else {
                return head.more();
            };
            // The top bit marks a bridge; the last flag is reserved.
            let is_right =
                levels.contains(&(level & 0x7f)) && flags & 1 == 0 && flags >> 3 & 3 != 3;
            return match is_right && len >= name.len() + 4 {
                true => Probe::Yes,
                false => Probe::No,
            };
        }
        Probe::No
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            return Step::Done;
        }
        let mut rest = Reader(head.bytes);
        let (Some(first), Some(second)) = (packet(&mut rest), packet(&mut rest)) else {
            if head.is_last {
                connect(Reader(head.bytes.get(2..).unwrap_or_default()), info);
            }
            return head.more_to_read();
        };
        let level = connect(Reader(first.1), info);
        topic(second.0, Reader(second.1), level.unwrap_or_default(), info);
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

enum Length {
    Is(usize),
    More,
    Not,
}

/// Seven bits a byte, the lowest first, in at most four bytes.
fn length(rest: &mut Reader<'_>) -> Length {
    let mut sum = 0usize;
    for at in 0..4 {
        let Some(byte) = rest.u8() else {
            return Length::More;
        };
        sum |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Length::Is(sum);
        }
    }
    Length::Not
}

fn packet<'a>(rest: &mut Reader<'a>) -> Option<(u8, &'a [u8])> {
    let kind = rest.u8()?;
    match length(rest) {
        Length::Is(len) => Some((kind, rest.take(len)?)),
        _ => None,
    }
}

fn skip_properties(rest: &mut Reader<'_>, level: u8) -> Option<()> {
    if level == 5 {
        let Length::Is(len) = length(rest) else {
            return None;
        };
        rest.take(len)?;
    }
    Some(())
}

/// The protocol's level.
fn connect(mut rest: Reader<'_>, info: &mut Info) -> Option<u8> {
    rest.with_u16_len()?;
    let (level, flags) = (rest.u8()? & 0x7f, rest.u8()?);
    rest.u16()?;
    let version = match level {
        3 => "3.1",
        4 => "3.1.1",
        _ => "5.0",
    };
    info.add_word("version", version.to_owned());
    skip_properties(&mut rest, level)?;
    info.add("client_id", rest.with_u16_len()?.0);
    if flags & HAS_WILL != 0 {
        skip_properties(&mut rest, level)?;
        rest.with_u16_len()?;
        rest.with_u16_len()?;
    }
    if flags & HAS_USER != 0 {
        info.add("user", rest.with_u16_len()?.0);
    }
    Some(level)
}

fn topic(kind: u8, mut rest: Reader<'_>, level: u8, info: &mut Info) -> Option<()> {
    let command = match kind & 0xf0 {
        PUBLISH => "publish",
        SUBSCRIBE => {
            rest.u16()?;
            skip_properties(&mut rest, level)?;
            "subscribe"
        }
        _ => return None,
    };
    info.add_word("command", command.to_owned());
    info.add("topic", rest.with_u16_len()?.0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "mqtt",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"\x10\x15\0\x06MQIsdp\x03\x82\0\x3c\0\x01c\0\x01u\0\x01p",
            ),
            (Side::Server, b"\x20\x02\0\0"),
            (Side::Client, b"\x30\x06\0\x03a/bx"),
        ],
        info: "version=3.1 client_id=c user=u command=publish topic=a/b",
    }];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\x10\x0c\0\x04MQTT\x06\x02\0\x3c\0\0"[..],
            b"\x10\x0c\0\x04MQTT\x04\x03\0\x3c\0\0",
            b"\x10\x0c\0\x04MQTS",
            b"\x11\x0c\0\x04MQTT",
        ] {
            assert_eq!(probe_all(&Mqtt, bytes, Side::Client), Probe::No);
        }
    }
}
