//! PostgreSQL (protocol 3): the client's startup message, also behind a request for TLS or GSSAPI that the server refuses,
//! and the server's version among what it reports.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a startup message that the server takes (`MAX_STARTUP_PACKET_LENGTH`).
const MAX_STARTUP_BYTES: u32 = 10_000;
/// In place of a version: a request to cancel another connection's query, for TLS, for GSSAPI.
const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSSAPI: u32 = 80_877_104;
/// Messages of the server that are looked through for its version.
const MAX_MESSAGES: usize = 64;

/// PostgreSQL's protocol.
pub struct PostgreSql;

enum First<'a> {
    More,
    /// One of the requests above, and what follows it.
    Request(u32, &'a [u8]),
    /// What there is of the pairs, and whether that is all.
    Startup(&'a [u8], bool),
}

impl Parser for PostgreSql {
    fn app(&self) -> &'static str {
        "postgresql"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server {
            return Probe::No;
        }
        match first(head.bytes) {
            None => Probe::No,
            Some(First::More) => head.more(),
            Some(First::Request(..)) => Probe::Yes,
            Some(First::Startup(pairs, is_all)) => {
                // The names of pairs are lower case; `user` must be one.
                let is_right = |b: &u8| matches!(b, b'a'..=b'z' | b'_');
                let name = pairs.iter().take_while(|b| is_right(b)).count();
                match pairs.get(name) {
                    Some(0) if name > 0 && !is_all => head.more(),
                    Some(0) if name > 0 && user(pairs).is_some() => Probe::Yes,
                    None if !is_all => head.more(),
                    _ => Probe::No,
                }
            }
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        match head.side {
            Side::Client => read_client(head, info),
            Side::Server => read_server(head, info),
        }
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// `None` where it is not it.
fn first(bytes: &[u8]) -> Option<First<'_>> {
    let mut rest = Reader(bytes);
    let Some(len) = rest.u32() else {
        let is_short =
            bytes.first().is_none_or(|b| *b == 0) && bytes.get(1).is_none_or(|b| *b == 0);
        return is_short.then_some(First::More);
    };
    if !(8..=MAX_STARTUP_BYTES).contains(&len) {
        return None;
    }
    match (rest.u32(), len) {
        (None, _) => Some(First::More),
        (Some(code @ (TLS | GSSAPI)), 8) => Some(First::Request(code, rest.0)),
        (Some(CANCEL), 16) => Some(First::Request(CANCEL, rest.0)),
        // 3.0, and 3.2 since version 18.
        (Some(0x0003_0000..=0x0003_0002), 17..) => {
            let body = len as usize - 8;
            let is_all = rest.0.len() >= body;
            Some(First::Startup(&rest.0[..rest.0.len().min(body)], is_all))
        }
        _ => None,
    }
}

/// Pairs of name and value; an empty name ends them.
fn pairs(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = Reader(bytes);
    std::iter::from_fn(move || {
        let name = rest.until_nul().filter(|name| !name.is_empty())?;
        Some((name, rest.until_nul()?))
    })
}

fn user(bytes: &[u8]) -> Option<&[u8]> {
    pairs(bytes)
        .find(|(name, _)| *name == b"user")
        .map(|(_, user)| user)
}

fn read_client(head: &Head<'_>, info: &mut Info) -> Step {
    let mut bytes = head.bytes;
    // TLS after GSSAPI was refused, and a startup after both.
    for _ in 0..3 {
        match first(bytes) {
            Some(First::Request(CANCEL, _)) => {
                info.add("command", b"cancel");
                return Step::Done;
            }
            Some(First::Request(_, rest)) => bytes = rest,
            Some(First::Startup(all, true)) => {
                for (name, value) in pairs(all) {
                    match name {
                        b"user" => info.add("user", value),
                        b"database" => info.add("database", value),
                        b"application_name" => info.add("user_agent", value),
                        _ => {}
                    }
                }
                return Step::Done;
            }
            Some(First::More | First::Startup(..)) => return head.more_to_read(),
            // TLS, most likely.
            None => return Step::Done,
        }
    }
    Step::Done
}

fn read_server(head: &Head<'_>, info: &mut Info) -> Step {
    let mut rest = Reader(head.bytes);
    for _ in 0..MAX_MESSAGES {
        let Some(kind) = rest.u8() else {
            return head.more_to_read();
        };
        match kind {
            // The one-byte answer to a request for TLS or GSSAPI.
            b'N' => continue,
            b'R' | b'S' | b'v' | b'K' => {}
            _ => return Step::Done,
        }
        let Some(len) = rest.u32() else {
            return match (kind, rest.0) {
                // TLS begins.
                (b'S', [0x16, ..]) => Step::Done,
                _ => head.more_to_read(),
            };
        };
        if !(4..0x1_0000).contains(&len) {
            return Step::Done;
        }
        let Some(body) = rest.take(len as usize - 4) else {
            return head.more_to_read();
        };
        if kind == b'S'
            && let Some((b"server_version", version)) = pairs(body).next()
        {
            info.add("version", version);
            return Step::Done;
        }
    }
    Step::Done
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "postgresql",
        transport: Transport::Tcp,
        says: &[
            (Side::Client, b"\0\0\0\x08\x04\xd2\x16\x2f"),
            (Side::Server, b"N"),
            (Side::Client, b"\0\0\0\x23\0\x03\0\0user\0shop\0database\0orders\0\0"),
            (
                Side::Server,
                b"R\0\0\0\x08\0\0\0\0S\0\0\0\x15is_superuser\0off\0S\0\0\0\x18server_version\x0015.1\0",
            ),
        ],
        info: "user=shop database=orders version=15.1",
    }];

    #[test]
    fn requests_alone() {
        for bytes in [
            &b"\0\0\0\x08\x04\xd2\x16\x30"[..],
            b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02",
        ] {
            assert_eq!(probe_all(&PostgreSql, bytes, Side::Client), Probe::Yes);
        }
        for bytes in [
            &b"\0\0\0\x09\x04\xd2\x16\x30"[..],
            b"\0\0\0\x13\0\x03\0\0User\0shop\0\0",
            b"\0\0\0\x13\0\x03\0\0name\0shop\0\0",
            b"\0\0\0\x16\0\x02\0\0user\0shop\0\0\0\0",
        ] {
            assert_eq!(probe_all(&PostgreSql, bytes, Side::Client), Probe::No);
        }
    }
}
