//! Memcached: the text protocol, over UDP too, with its meta commands, and the binary one. A command that other protocols
//! have as well must be answered as memcached answers.

use super::{
    couchbase::{self, HEADER_BYTES},
    lines::{line, number},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Bytes of a key.
const MAX_KEY_BYTES: usize = 250;
/// Bytes of a line: a hundred keys.
const MAX_LINE_BYTES: usize = 2048;
/// Bytes before a datagram's text: number of the request and of the datagram, how many there are, zero.
const UDP_BYTES: usize = 8;
/// Commands that store: key, flags, time, bytes.
const STORES: &[&[u8]] = &[b"set", b"add", b"replace", b"append", b"prepend", b"cas"];
/// The others.
const OTHERS: &[&[u8]] = &[
    b"get",
    b"gets",
    b"gat",
    b"gats",
    b"incr",
    b"decr",
    b"delete",
    b"touch",
    b"stats",
    b"version",
    b"verbosity",
    b"flush_all",
    b"mg",
    b"ms",
    b"md",
    b"ma",
    b"mn",
    b"me",
    b"quit",
];
/// The last binary command of those that memcached itself has.
const MAX_OPCODE: u8 = 0x26;

/// Memcached's protocols.
pub struct Memcached;

impl Parser for Memcached {
    fn app(&self) -> &'static str {
        "memcached"
    }

    fn is_over(&self, _: Transport) -> bool {
        true
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.transport == Transport::Udp {
            return match datagram(head) {
                Some(_) => Probe::Yes,
                None => Probe::No,
            };
        }
        match (head.side, head.bytes) {
            (Side::Client, [0x80, ..]) | (Side::Server, [0x81, ..]) => binary(head),
            (Side::Client, bytes) => match command(bytes) {
                Some(Some(command)) if command.is_sure => Probe::Yes,
                Some(_) => head.more(),
                None => Probe::No,
            },
            (Side::Server, bytes) => match command(head.other) {
                Some(Some(command)) => match is_answer(command.name, bytes) {
                    Some(true) => Probe::Yes,
                    Some(false) => Probe::No,
                    None => head.more(),
                },
                _ => Probe::No,
            },
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let text = match (head.transport, head.bytes) {
            (Transport::Udp, _) => datagram(head).unwrap_or_default(),
            (_, [0x80, ..]) => {
                let opcode = match head.bytes.get(1) {
                    Some(opcode) => *opcode,
                    None => return head.more_to_read(),
                };
                info.add_word("command", opcode_name(opcode));
                return Step::Done;
            }
            (_, [0x81, ..]) => return Step::Done,
            (_, bytes) => bytes,
        };
        let Some((first, _)) = line(text) else {
            return match text.len() {
                MAX_LINE_BYTES.. => Step::Done,
                _ => head.more_to_read(),
            };
        };
        let (word, rest) = word(first);
        match head.side {
            Side::Client => info.add("command", word),
            Side::Server if word == b"VERSION" => info.add("version", rest),
            Side::Server => {}
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// The first word of a line and what follows it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    (&line[..end], line.get(end + 1..).unwrap_or_default())
}

struct Command<'a> {
    name: &'a [u8],
    /// Nothing else is written so.
    is_sure: bool,
}

/// A whole command line; the outer `None`: it is none, the inner: it has not ended yet.
fn command(bytes: &[u8]) -> Option<Option<Command<'_>>> {
    let is_letter = |b: &u8| b.is_ascii_lowercase() || *b == b'_';
    let len = bytes.iter().take(12).take_while(|b| is_letter(b)).count();
    let name = &bytes[..len];
    let mut all = STORES.iter().chain(OTHERS);
    let Some(next) = bytes.get(len) else {
        return all.any(|other| other.starts_with(name)).then_some(None);
    };
    if !matches!(next, b' ' | b'\r' | b'\n') || !all.any(|other| *other == name) {
        return None;
    }
    let Some((text, _)) = line(bytes) else {
        let is_right = |b: &u8| *b >= b' ' || *b == b'\r';
        return (bytes.len() < MAX_LINE_BYTES && bytes.iter().all(is_right)).then_some(None);
    };
    if text.iter().any(|b| *b < b' ') {
        return None;
    }
    let words: Vec<_> = text
        .split(|b| *b == b' ')
        .filter(|word| !word.is_empty())
        .take(8)
        .collect();
    let is_key = |at: usize| words.get(at).is_some_and(|key| key.len() <= MAX_KEY_BYTES);
    let is_number = |at: usize| words.get(at).is_some_and(|digits| number(digits).is_some());
    let is_sure = STORES.contains(&name);
    let is_right = match name {
        b"get" | b"gets" | b"gat" | b"gats" | b"delete" | b"touch" | b"mg" | b"ms" | b"md"
        | b"ma" | b"me" => is_key(1),
        b"incr" | b"decr" => is_key(1) && is_number(2),
        // The time may be below zero.
        _ if is_sure => {
            let time = words
                .get(3)
                .map(|time| time.strip_prefix(b"-").unwrap_or(time));
            let last = if name == b"cas" { 6 } else { 5 };
            let is_count =
                words.len() == last || (words.len() == last + 1 && words[last] == b"noreply");
            is_key(1)
                && is_number(2)
                && time.is_some_and(|time| number(time).is_some())
                && is_number(4)
                && is_count
        }
        _ => words.len() <= 3,
    };
    is_right.then_some(Some(Command { name, is_sure }))
}

/// Whether the first line answers the command `name`; `None` where it is not there yet.
fn is_answer(name: &[u8], bytes: &[u8]) -> Option<bool> {
    let answers: &[&[u8]] = match name {
        b"get" | b"gets" | b"gat" | b"gats" => &[b"VALUE", b"END"],
        b"delete" => &[b"DELETED", b"NOT_FOUND"],
        b"touch" => &[b"TOUCHED", b"NOT_FOUND"],
        b"incr" | b"decr" => &[b"NOT_FOUND"],
        b"stats" => &[b"STAT", b"END", b"RESET"],
        b"version" => &[b"VERSION"],
        b"flush_all" | b"verbosity" => &[b"OK"],
        [b'm', _] => &[b"HD", b"VA", b"EN", b"NS", b"NF", b"MN", b"EX"],
        _ if STORES.contains(&name) => &[b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND"],
        _ => &[],
    };
    let is_counter = matches!(name, b"incr" | b"decr");
    let errors: [&[u8]; 2] = [b"CLIENT_ERROR", b"SERVER_ERROR"];
    let mut all = answers.iter().chain(&errors);
    match bytes.iter().position(|b| matches!(b, b' ' | b'\r' | b'\n')) {
        Some(end) => {
            let word = &bytes[..end];
            let is_number =
                is_counter && word.iter().all(u8::is_ascii_digit) && (1..=20).contains(&end);
            Some(is_number || all.any(|answer| *answer == word))
        }
        None => {
            let is_number = is_counter && bytes.len() <= 20 && bytes.iter().all(u8::is_ascii_digit);
            let is_start = is_number || all.any(|answer| answer.starts_with(bytes));
            (!is_start).then_some(false)
        }
    }
}

/// The text of a datagram that is the only one of its message.
fn datagram<'a>(head: &Head<'a>) -> Option<&'a [u8]> {
    let (front, text) = head.bytes.split_at_checked(UDP_BYTES)?;
    if front[2..] != [0, 0, 0, 1, 0, 0] || !text.ends_with(b"\r\n") {
        return None;
    }
    let is_right = match head.side {
        Side::Client => command(text)?.is_some(),
        Side::Server => ["get", "stats", "version"]
            .iter()
            .any(|name| is_answer(name.as_bytes(), text) == Some(true)),
    };
    is_right.then_some(text)
}

fn binary(head: &Head<'_>) -> Probe {
    // Couchbase's HELLO has its own row.
    if head
        .bytes
        .get(1)
        .is_some_and(|opcode| *opcode > MAX_OPCODE || *opcode == 0x1f)
    {
        return Probe::No;
    }
    let Some((header, body)) = couchbase::header(head.bytes) else {
        return head.more();
    };
    let Some(value) = header
        .body
        .checked_sub(u32::from(header.key) + u32::from(header.extras))
    else {
        return Probe::No;
    };
    let is_small =
        usize::from(header.key) <= MAX_KEY_BYTES && header.data_type == 0 && header.body < 1 << 25;
    let is_form = match (head.side, header.opcode) {
        // How it went: 0 to 6, 0x20 to 0x25, 0x81 to 0x86.
        (Side::Server, _) => {
            matches!(header.status, 0..=6 | 0x20..=0x25 | 0x81..=0x86)
                && matches!(header.extras, 0 | 4)
        }
        // get and its kin, delete: a key alone
        (_, 0 | 4 | 9 | 0xc | 0xd | 0x14) => header.extras == 0 && header.key > 0 && value == 0,
        // set, add, replace: flags and time
        (_, 1..=3 | 0x11..=0x13) => header.extras == 8 && header.key > 0,
        // incr, decr
        (_, 5 | 6 | 0x15 | 0x16) => header.extras == 20 && header.key > 0 && value == 0,
        // quit, noop, version, list of SASL's ways
        (_, 7 | 0xa | 0xb | 0x17 | 0x20) => header.body == 0,
        (_, 8 | 0x18) => matches!(header.extras, 0 | 4) && header.body == u32::from(header.extras),
        // append, prepend, SASL
        (_, 0xe | 0xf | 0x19 | 0x1a | 0x21 | 0x22) => header.extras == 0 && header.key > 0,
        // stat
        (_, 0x10) => header.extras == 0 && value == 0,
        (_, 0x1c..=0x1e) => header.extras == 4 && header.key > 0 && value == 0,
        _ => false,
    };
    let is_request = head.side == Side::Client && header.status == 0 && header.cas >> 48 == 0;
    if !is_small || !is_form || !(is_request || head.side == Side::Server) {
        return Probe::No;
    }
    if head.side == Side::Server {
        // An answer is told from other bytes by the request before it.
        let is_asked =
            head.other.first() == Some(&0x80) && head.other.get(1) == Some(&header.opcode);
        return if is_asked { Probe::Yes } else { Probe::No };
    }
    // Keys are text.
    let key = header.extras.into()..usize::from(header.extras) + usize::from(header.key);
    match body.get(key) {
        Some(key) if key.iter().all(|b| *b > b' ') => Probe::Yes,
        Some(_) => Probe::No,
        None => head.more(),
    }
}

fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        0 | 9 | 0xc | 0xd => "get",
        1 | 0x11 => "set",
        2 | 0x12 => "add",
        3 | 0x13 => "replace",
        4 | 0x14 => "delete",
        5 | 0x15 => "incr",
        6 | 0x16 => "decr",
        7 | 0x17 => "quit",
        8 | 0x18 => "flush_all",
        0xa => "noop",
        0xb => "version",
        0xe | 0x19 => "append",
        0xf | 0x1a => "prepend",
        0x10 => "stats",
        0x20..=0x22 => "sasl",
        other => return other.to_string(),
    };
    name.to_owned()
}

const _: () = assert!(HEADER_BYTES == 24, "as couchbase::header reads");

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "memcached",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"set a 0 60 3\r\nabc\r\n"),
                (Side::Server, b"STORED\r\n"),
            ],
            info: "command=set",
        },
        Sample {
            app: "memcached",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"get a\r\n"),
                (Side::Server, b"VALUE a 0 3\r\nabc\r\nEND\r\n"),
            ],
            info: "command=get",
        },
        Sample {
            app: "memcached",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"version\r\n"),
                (Side::Server, b"VERSION 1.6.18\r\n"),
            ],
            info: "command=version version=1.6.18",
        },
        Sample {
            app: "memcached",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"\x80\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0a",
                ),
                (
                    Side::Server,
                    b"\x81\0\0\0\0\0\0\x01\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0Not found",
                ),
            ],
            info: "command=get",
        },
        Sample {
            app: "memcached",
            transport: Transport::Udp,
            says: &[(Side::Client, b"\x12\x34\0\0\0\x01\0\0stats\r\n")],
            info: "command=stats",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"set a b c d\r\n"[..],
            b"set a 0 60 3 4 5\r\n",
            b"settle down\r\n",
            b"\x80\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0a",
            b"\x80\0\0\x01\0\x01\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0a",
        ] {
            assert_eq!(
                probe_all(&Memcached, bytes, Side::Client),
                Probe::No,
                "{}",
                bytes.escape_ascii()
            );
        }
        assert_eq!(
            probe_all(&Memcached, b"get a\r\n", Side::Client),
            Probe::More
        );
    }
}
