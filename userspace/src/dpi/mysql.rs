//! MySQL and MariaDB: the server's greeting (protocol 10) and the client's login. Only the names in the login are read.

use super::{
    lines::is_text,
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// The longest greeting, refusal or login that is taken for one.
const MAX_PACKET_BYTES: usize = 4096;
/// The longest version of a server.
const MAX_VERSION_BYTES: usize = 100;
/// What a client can do (`CLIENT_*`): a database in the login.
const CAN_DATABASE: u32 = 1 << 3;
/// The login has the form of MySQL 4.1 and later.
const CAN_41: u32 = 1 << 9;
/// What follows is TLS, when it says no more.
const CAN_TLS: u32 = 1 << 11;
/// The length of what answers the challenge stands before it: in one byte, or encoded.
const CAN_AUTH_LENGTH: u32 = 1 << 15 | 1 << 21;
/// Bytes of a login before the user; all of it, when TLS follows.
const LOGIN_FRONT_BYTES: usize = 32;

/// MySQL's protocol.
pub struct MySql;

impl Parser for MySql {
    fn app(&self) -> &'static str {
        "mysql"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let Some(packet) = packet(head.bytes) else {
            return Probe::No;
        };
        match (head.side, packet.number) {
            (_, None) => head.more(),
            (Side::Server, Some(0)) => probe_greeting(head, packet),
            (Side::Client, Some(1)) => probe_login(head, packet),
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some(Packet { number, body, len }) = packet(head.bytes) else {
            return Step::Done;
        };
        if body.len() < len || number.is_none() {
            return head.more_to_read();
        }
        // One that breaks off has told what it has.
        let _ = match head.side {
            Side::Server => greeting(body, info),
            Side::Client => login(body, info),
        };
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// The first packet.
#[derive(Clone, Copy)]
struct Packet<'a> {
    /// Its number; `None` where that is not there yet.
    number: Option<u8>,
    /// What there is of it.
    body: &'a [u8],
    /// Bytes of all of it.
    len: usize,
}

/// Its length stands in three bytes before it, the lowest first, then its number; `None` where it is too long or too short.
fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    let [low, mid, high, number, body @ ..] = bytes else {
        let is_short = bytes.get(2).is_none_or(|high| *high == 0);
        return is_short.then_some(Packet {
            number: None,
            body: &[],
            len: 0,
        });
    };
    let len = usize::from(*low) | usize::from(*mid) << 8 | usize::from(*high) << 16;
    (9..=MAX_PACKET_BYTES).contains(&len).then_some(Packet {
        number: Some(*number),
        body: &body[..body.len().min(len)],
        len,
    })
}

fn probe_greeting(head: &Head<'_>, Packet { body, len, .. }: Packet<'_>) -> Probe {
    match body {
        [] => head.more(),
        [10, rest @ ..] => {
            let digits = rest
                .iter()
                .take(MAX_VERSION_BYTES)
                .take_while(|b| b.is_ascii_graphic())
                .count();
            match rest.get(digits) {
                _ if rest.first().is_some_and(|b| !b.is_ascii_digit()) => Probe::No,
                None if digits < MAX_VERSION_BYTES => head.more(),
                // Thread, eight bytes of the challenge, a zero, and abilities must follow.
                Some(0) if digits > 2 && len >= 1 + digits + 1 + 15 => {
                    match rest.get(digits + 13) {
                        Some(0) => Probe::Yes,
                        Some(_) => Probe::No,
                        None => head.more(),
                    }
                }
                _ => Probe::No,
            }
        }
        // A refusal: an error from 1040 to 1203 or 1927, and its text.
        [0xff, rest @ ..] => match rest {
            [low, high, text @ ..]
                if matches!(u16::from_le_bytes([*low, *high]), 1040..=1203 | 1927) =>
            {
                if !is_text(text) {
                    return Probe::No;
                }
                if body.len() < len {
                    head.more()
                } else {
                    Probe::Yes
                }
            }
            [] | [_] => head.more(),
            _ => Probe::No,
        },
        _ => Probe::No,
    }
}

fn probe_login(head: &Head<'_>, Packet { body, len, .. }: Packet<'_>) -> Probe {
    if len < LOGIN_FRONT_BYTES {
        return Probe::No;
    }
    let Some(front) = body.get(..LOGIN_FRONT_BYTES) else {
        return head.more();
    };
    let abilities = u32::from_le_bytes([front[0], front[1], front[2], front[3]]);
    // MariaDB has its own abilities in the last four of the 23 bytes that MySQL leaves zero.
    let is_form = abilities & CAN_41 != 0 && front[9..28].iter().all(|b| *b == 0);
    let is_length = len > LOGIN_FRONT_BYTES || abilities & CAN_TLS != 0;
    match is_form && is_length {
        true => Probe::Yes,
        false => Probe::No,
    }
}

fn greeting(body: &[u8], info: &mut Info) -> Option<()> {
    let mut rest = Reader(body);
    match rest.u8()? {
        10 => {
            // MariaDB says this first, for clients that believed no version above 5.
            let version = rest.until_nul()?;
            info.add(
                "version",
                version.strip_prefix(b"5.5.5-").unwrap_or(version),
            );
        }
        0xff => info.add_word("error", rest.u16_le()?.to_string()),
        _ => {}
    }
    Some(())
}

fn login(body: &[u8], info: &mut Info) -> Option<()> {
    let mut rest = Reader(body);
    let abilities = rest.u32_le()?;
    rest.take(LOGIN_FRONT_BYTES - 4)?;
    if rest.0.is_empty() {
        info.add("starttls", b"yes");
        return None;
    }
    info.add("user", rest.until_nul()?);
    if abilities & CAN_AUTH_LENGTH != 0 {
        rest.with_u8_len()?;
    } else {
        rest.until_nul()?;
    }
    if abilities & CAN_DATABASE != 0 {
        info.add("database", rest.until_nul()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "mysql",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Server,
                    b"\x4a\0\0\0\x0a8.0.36\0\x0b\0\0\0\x3d\x41\x0f\x7a\x11\x22\x33\x44\0\xff\xff\xff\x02\0\xff\xdf\x15\
                    \0\0\0\0\0\0\0\0\0\0\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\0caching_sha2_password\0",
                ),
                (
                    Side::Client,
                    b"\x34\0\0\x01\x8d\xa2\x0a\0\0\0\0\x01\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
                    shop\0\x04\x01\x02\x03\x04orders\0\0\0\0",
                ),
            ],
            info: "version=8.0.36 user=shop database=orders",
        },
        Sample {
            app: "mysql",
            transport: Transport::Tcp,
            says: &[(
                Side::Server,
                b"\x17\0\0\0\xff\x10\x04Too many connections",
            )],
            info: "error=1040",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\x4a\0\0\0\x098.0.36\0\x0b\0\0\0"[..],
            b"\x4a\0\0\0\x0a8.0.36\0\x0b\0\0\0\x3d\x41\x0f\x7a\x11\x22\x33\x44\x01\xff",
            b"\x4a\0\0\0\x0aeight\0",
            b"\x17\0\0\0\xff\x10\x00Too many connections",
            b"\x17\0\0\x01\x0a8.0.36\0",
        ] {
            assert_eq!(
                probe_all(&MySql, bytes, Side::Server),
                Probe::No,
                "{}",
                bytes.escape_ascii()
            );
        }
        let login = b"\x20\0\0\x01\x8d\xa2\x0a\0\0\0\0\x01\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(probe_all(&MySql, login, Side::Client), Probe::No);
    }
}
