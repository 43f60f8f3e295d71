//! Redis and its kin: RESP 2 and 3, and commands as plain lines. A line alone is not enough: the answer must be RESP.

use super::{
    lines::{is_one_of, line, number, starts},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Words of a command.
const MAX_WORDS: u32 = 1 << 20;
/// Bytes of a command's name: `PUNSUBSCRIBE`, and modules' names with a dot.
const MAX_NAME_BYTES: usize = 32;
/// Bytes of a line without RESP.
const MAX_LINE_BYTES: usize = 512;
/// Commands that come as lines: from people, probes and monitors. In capitals; the client need not.
const INLINE: &[&[u8]] = &[
    b"PING",
    b"INFO",
    b"AUTH",
    b"QUIT",
    b"COMMAND",
    b"HELLO",
    b"CONFIG",
    b"DBSIZE",
    b"KEYS",
    b"ECHO",
    b"SELECT",
    b"GET",
    b"SET",
    b"SETEX",
    b"DEL",
    b"EXISTS",
    b"INCR",
    b"DECR",
    b"MGET",
    b"MSET",
    b"HGET",
    b"HSET",
    b"HGETALL",
    b"LPUSH",
    b"RPUSH",
    b"LRANGE",
    b"SADD",
    b"SMEMBERS",
    b"ZADD",
    b"ZRANGE",
    b"EXPIRE",
    b"TTL",
    b"TYPE",
    b"CLIENT",
    b"ROLE",
    b"TIME",
    b"MULTI",
    b"SUBSCRIBE",
    b"PSUBSCRIBE",
    b"PUBLISH",
    b"MONITOR",
    b"SLOWLOG",
    b"FLUSHALL",
    b"FLUSHDB",
    b"CLUSTER",
    b"REPLCONF",
    b"PSYNC",
    b"SYNC",
    b"SCAN",
    b"SENTINEL",
];

/// RESP.
pub struct Redis;

impl Parser for Redis {
    fn app(&self) -> &'static str {
        "redis"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match (head.side, head.bytes) {
            (Side::Client, [b'*', ..]) => match command(head.bytes) {
                Front::Is(_) => Probe::Yes,
                Front::More => head.more(),
                Front::Not => Probe::No,
            },
            (Side::Client, bytes) => match inline(bytes) {
                Front::Is(_) | Front::More => head.more(),
                Front::Not => Probe::No,
            },
            (Side::Server, bytes) => match (inline(head.other), is_answer(bytes)) {
                (Front::Is(_), Some(true)) => Probe::Yes,
                (Front::Is(_), None) => head.more(),
                _ => Probe::No,
            },
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let front = match (head.side, head.bytes) {
            (Side::Server, bytes) => version(bytes),
            (_, [b'*', ..]) => command(head.bytes),
            (_, bytes) => inline(bytes),
        };
        match (front, head.side) {
            (Front::More, _) => return head.more_to_read(),
            (Front::Is(name), Side::Client) => info.add("command", &name.to_ascii_uppercase()),
            (Front::Is(version), Side::Server) => info.add("version", version),
            (Front::Not, _) => {}
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

enum Front<'a> {
    Not,
    More,
    Is(&'a [u8]),
}

/// A line that says a kind and a number, as `*2`; what follows it.
fn counted(bytes: &[u8], kind: u8) -> Option<Option<(u32, &[u8])>> {
    let [first, rest @ ..] = bytes else {
        return Some(None);
    };
    if *first != kind {
        return None;
    }
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    match rest.get(digits..)? {
        [] | [b'\r'] if digits < 10 => Some(None),
        [b'\r', b'\n', after @ ..] => Some(Some((number(&rest[..digits])?, after))),
        _ => None,
    }
}

/// Bytes with their length before them, as `$4 PING`, and what follows them.
fn bulk(bytes: &[u8], most: usize) -> Option<Option<(&[u8], &[u8])>> {
    let Some((len, rest)) = counted(bytes, b'$')? else {
        return Some(None);
    };
    let len = len as usize;
    if len > most {
        return None;
    }
    match rest.get(len..) {
        None | Some([] | [b'\r']) => Some(None),
        Some([b'\r', b'\n', after @ ..]) => Some(Some((&rest[..len], after))),
        Some(_) => None,
    }
}

/// A command's name, of an array of strings.
fn command(bytes: &[u8]) -> Front<'_> {
    let Some(array) = counted(bytes, b'*') else {
        return Front::Not;
    };
    let Some((words, rest)) = array else {
        return Front::More;
    };
    if words == 0 || words > MAX_WORDS {
        return Front::Not;
    }
    match bulk(rest, MAX_NAME_BYTES) {
        None => Front::Not,
        Some(None) => Front::More,
        Some(Some((name, _))) => {
            let is_right = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            match name.first().is_some_and(u8::is_ascii_alphabetic) && name.iter().all(is_right) {
                true => Front::Is(name),
                false => Front::Not,
            }
        }
    }
}

/// A command's name, of a line.
fn inline(bytes: &[u8]) -> Front<'_> {
    let word = bytes.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let name = &bytes[..word];
    if word == bytes.len() {
        return match INLINE.iter().any(|other| starts(other, name)) {
            true => Front::More,
            false => Front::Not,
        };
    }
    if !matches!(bytes[word], b' ' | b'\r' | b'\n') || !is_one_of(name, INLINE) {
        return Front::Not;
    }
    match line(bytes) {
        Some((text, _)) if text.len() > MAX_LINE_BYTES => Front::Not,
        Some(_) => Front::Is(name),
        None if bytes.len() > MAX_LINE_BYTES => Front::Not,
        None => Front::More,
    }
}

/// Whether the first line is what RESP answers; `None` where it is not there yet.
fn is_answer(bytes: &[u8]) -> Option<bool> {
    let Some((text, _)) = line(bytes) else {
        let is_kind = bytes.first().is_none_or(|b| b"+-:$*%~_#,(>=".contains(b));
        return (!is_kind || bytes.len() > MAX_LINE_BYTES).then_some(false);
    };
    let is_number = |digits: &[u8]| number(digits.strip_prefix(b"-").unwrap_or(digits)).is_some();
    Some(match text {
        [b'+', rest @ ..] => {
            matches!(rest, b"OK" | b"PONG" | b"QUEUED") || rest.starts_with(b"FULLRESYNC ")
        }
        // An error's first word is in capitals.
        [b'-', rest @ ..] => rest.iter().take_while(|b| b.is_ascii_uppercase()).count() >= 3,
        [b':' | b'$' | b'*' | b'%' | b'~' | b'>', rest @ ..] => is_number(rest),
        _ => false,
    })
}

/// The server's version, from the answer to `INFO` or `HELLO`.
fn version(bytes: &[u8]) -> Front<'_> {
    const VERSION: &[u8] = b"redis_version:";
    match bytes {
        [] => Front::More,
        // INFO: the version is among the first lines.
        [b'$' | b'=', ..] => {
            let Some((_, rest)) = line(bytes) else {
                return Front::More;
            };
            let mut rest = rest;
            for at in 0..4 {
                let Some((text, after)) = line(rest) else {
                    let is_info = at > 0 || b"# Server".starts_with(&rest[..rest.len().min(8)]);
                    return if is_info { Front::More } else { Front::Not };
                };
                if at == 0 && text != b"# Server" {
                    return Front::Not;
                }
                if let Some(version) = text.strip_prefix(VERSION) {
                    return Front::Is(version);
                }
                rest = after;
            }
            Front::Not
        }
        // HELLO: server, redis, version, 7.0.15.
        [b'%' | b'*', ..] => {
            let Some(Some((pairs, mut rest))) = counted(bytes, bytes[0]) else {
                return if line(bytes).is_none() {
                    Front::More
                } else {
                    Front::Not
                };
            };
            if pairs < 4 {
                return Front::Not;
            }
            let mut last: &[u8] = b"";
            for want in [&b"server"[..], b"", b"version", b""] {
                match bulk(rest, 64) {
                    Some(Some((text, after))) if want.is_empty() || want == text => {
                        (last, rest) = (text, after);
                    }
                    Some(None) => return Front::More,
                    _ => return Front::Not,
                }
            }
            Front::Is(last)
        }
        _ => Front::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "redis",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"*2\r\n$5\r\nhello\r\n$1\r\n3\r\n"),
                (Side::Server, b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n"),
            ],
            info: "command=HELLO version=7.0.15",
        },
        Sample {
            app: "redis",
            transport: Transport::Tcp,
            says: &[(Side::Client, b"PING\r\n"), (Side::Server, b"+PONG\r\n")],
            info: "command=PING",
        },
        Sample {
            app: "redis",
            transport: Transport::Tcp,
            says: &[(Side::Client, b"get a\r\n"), (Side::Server, b"$1\r\nb\r\n")],
            info: "command=GET",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"*x\r\n"[..],
            b"*1\r\n$4\r\n\0\0\0\0\r\n",
            b"*1\r\n:4\r\n",
            b"*1\r\n$99\r\n",
            b"*0\r\n",
            b"greetings\r\n",
            b"GETX a\r\n",
        ] {
            assert_ne!(
                probe_all(&Redis, bytes, Side::Client),
                Probe::Yes,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
