//! DNS (RFC 1035) over UDP and TCP, and multicast DNS (RFC 6762): the first query and the first answer. A message is
//! only taken for one when every name and record in it is sound and nothing is left over.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a header.
const HEADER_BYTES: usize = 12;
/// The shortest message: a header and a question for the root.
const MIN_BYTES: usize = HEADER_BYTES + 5;
/// Bytes of a name (RFC 1035 §3.1).
const MAX_NAME_BYTES: usize = 255;
/// Compression pointers in one name.
const MAX_POINTERS: usize = 32;
/// Port of multicast DNS.
const MDNS_PORT: u16 = 5353;

/// DNS.
pub struct Dns;
/// Multicast DNS: the same format, told apart by its port.
pub struct Mdns;

impl Parser for Dns {
    fn app(&self) -> &'static str {
        "dns"
    }

    fn is_over(&self, _: Transport) -> bool {
        true
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_asked = |message: &Message| message.questions == 1 && message.is_plain(head.side);
        match head.transport {
            Transport::Udp => match message(head.bytes, false) {
                Some(message) if is_asked(&message) => Probe::Yes,
                _ => Probe::No,
            },
            Transport::Tcp => match framed(head) {
                Framed::More(header)
                    if header.is_none_or(|header| header_may_be(header, head.side)) =>
                {
                    Probe::More
                }
                Framed::Whole(bytes) | Framed::Cut(bytes) => {
                    let is_cut = matches!(framed(head), Framed::Cut(_));
                    match message(bytes, is_cut) {
                        Some(message) if is_asked(&message) => Probe::Yes,
                        _ => Probe::No,
                    }
                }
                _ => Probe::No,
            },
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let found = match (head.transport, framed(head)) {
            (Transport::Udp, _) => message(head.bytes, false),
            (_, Framed::More(_)) => return Step::More,
            (_, Framed::Whole(bytes)) => message(bytes, false),
            (_, Framed::Cut(bytes)) => message(bytes, true),
            (_, Framed::Broken) => None,
        };
        if let Some(message) = found {
            message.tell(info);
        }
        Step::Done
    }
}

impl Parser for Mdns {
    fn app(&self) -> &'static str {
        "mdns"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_port = head.ports.contains(&MDNS_PORT);
        match is_port.then(|| message(head.bytes, false)).flatten() {
            Some(message) if message.questions + message.records > 0 && message.opcode == 0 => {
                Probe::Yes
            }
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if let Some(message) = message(head.bytes, false) {
            message.tell(info);
        }
        Step::Done
    }
}

/// A message in a stream, its length before it (RFC 1035 §4.2.2).
enum Framed<'a> {
    /// It goes on; the bytes of its header, where they are there.
    More(Option<&'a [u8]>),
    Whole(&'a [u8]),
    /// Longer than what is kept.
    Cut(&'a [u8]),
    Broken,
}

fn framed<'a>(head: &Head<'a>) -> Framed<'a> {
    let mut rest = Reader(head.bytes);
    let Some(len) = rest.u16().map(usize::from) else {
        return if head.is_last {
            Framed::Broken
        } else {
            Framed::More(None)
        };
    };
    if len < MIN_BYTES {
        return Framed::Broken;
    }
    match rest.0.get(..len) {
        Some(message) => Framed::Whole(message),
        None if head.is_last => Framed::Cut(rest.0),
        None => Framed::More(rest.0.get(..HEADER_BYTES)),
    }
}

/// What can be told of a stream by the first header, long before its message is whole.
fn header_may_be(header: &[u8], side: Side) -> bool {
    match header {
        [_, _, flags, more, 0, 1, ..] => {
            flags >> 7 == side as u8 && flags >> 3 & 15 <= 5 && more & 0x40 == 0
        }
        _ => false,
    }
}

struct Message {
    is_response: bool,
    opcode: u8,
    rcode: u8,
    questions: usize,
    answers: u16,
    /// Of all three sections.
    records: usize,
    /// The first question's name, dotted.
    name: Vec<u8>,
    kind: u16,
    class: u16,
}

impl Message {
    /// What a resolver and a server say to each other: in the right direction, of a class that exists.
    fn is_plain(&self, side: Side) -> bool {
        let is_query = !self.is_response;
        let is_ours = is_query == (side == Side::Client);
        // Queries carry no answers; EDNS, TSIG and IXFR's SOA go in the other sections. Updates carry records.
        let is_bare =
            self.opcode == 5 || (self.answers == 0 && self.rcode == 0 && self.records <= 3);
        let is_class = matches!(self.class, 1 | 3 | 4 | 254 | 255);
        is_ours && is_class && self.kind != 0 && (self.is_response || is_bare)
    }

    fn tell(self, info: &mut Info) {
        if self.questions > 0 {
            info.add("query", &self.name);
            info.add("type", type_name(self.kind).as_bytes());
        }
        if self.is_response {
            info.add("answers", self.answers.to_string().as_bytes());
            info.add("rcode", rcode_name(self.rcode).as_bytes());
        }
    }
}

/// Takes a message apart to its last byte; `is_cut` forgives an early end behind the questions.
fn message(bytes: &[u8], is_cut: bool) -> Option<Message> {
    let mut header = Reader(bytes);
    header.take(2)?;
    let flags = header.u16()?;
    let counts = [header.u16()?, header.u16()?, header.u16()?, header.u16()?];
    let mut message = Message {
        is_response: flags >> 15 == 1,
        opcode: (flags >> 11 & 15) as u8,
        rcode: (flags & 15) as u8,
        questions: counts[0].into(),
        answers: counts[1],
        records: counts[1..].iter().map(|count| usize::from(*count)).sum(),
        name: Vec::new(),
        kind: 0,
        class: 0,
    };
    // Bit 6 is reserved; AD and CD (RFC 4035) beside it are not.
    if flags & 0x40 != 0 || !matches!(message.opcode, 0 | 2 | 4 | 5) {
        return None;
    }
    let mut at = HEADER_BYTES;
    for question in 0..message.questions {
        let mut dotted = (question == 0).then_some(&mut message.name);
        at = name(bytes, at, dotted.as_deref_mut())?;
        let mut rest = Reader(bytes.get(at..)?);
        let (kind, class) = (rest.u16()?, rest.u16()?);
        at += 4;
        if question == 0 {
            (message.kind, message.class) = (kind, class);
        }
    }
    for _ in 0..message.records {
        match record(bytes, at) {
            Some(end) => at = end,
            None if is_cut => return Some(message),
            None => return None,
        }
    }
    (at == bytes.len()).then_some(message)
}

/// Offset behind a resource record.
fn record(bytes: &[u8], at: usize) -> Option<usize> {
    let at = name(bytes, at, None)?;
    let mut rest = Reader(bytes.get(at..)?);
    rest.take(8)?;
    rest.with_u16_len()?;
    Some(bytes.len() - rest.0.len())
}

/// Offset behind a name; the name itself, dotted, into `dotted`. Pointers only go backwards, so none can loop.
fn name(bytes: &[u8], start: usize, mut dotted: Option<&mut Vec<u8>>) -> Option<usize> {
    let (mut at, mut floor) = (start, start);
    let mut end = None;
    let (mut len, mut pointers) = (0, 0);
    loop {
        let size = *bytes.get(at)?;
        match size >> 6 {
            0 if size == 0 => break,
            0 => {
                let label = bytes.get(at + 1..at + 1 + usize::from(size))?;
                len += label.len() + 1;
                if len > MAX_NAME_BYTES {
                    return None;
                }
                if let Some(dotted) = dotted.as_deref_mut() {
                    if !dotted.is_empty() {
                        dotted.push(b'.');
                    }
                    dotted.extend(label.iter().map(u8::to_ascii_lowercase));
                }
                at += 1 + label.len();
            }
            3 => {
                let to = usize::from(size & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                pointers += 1;
                if to < HEADER_BYTES || to >= floor || pointers > MAX_POINTERS {
                    return None;
                }
                end.get_or_insert(at + 2);
                (at, floor) = (to, to);
            }
            _ => return None,
        }
    }
    if let Some(dotted) = dotted
        && dotted.is_empty()
    {
        dotted.push(b'.');
    }
    Some(end.unwrap_or(at + 1))
}

/// IANA "Resource Record (RR) TYPEs", those that are met.
fn type_name(kind: u16) -> String {
    let name = match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        10 => "NULL",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        43 => "DS",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        other => return format!("TYPE{other}"),
    };
    name.to_owned()
}

fn rcode_name(rcode: u8) -> String {
    const NAMES: [&str; 6] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED",
    ];
    match NAMES.get(usize::from(rcode)) {
        Some(name) => (*name).to_owned(),
        None => rcode.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::check::*;
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07Example\x03org\0\0\x1c\0\x01\
        \0\0\x29\x04\xd0\0\0\0\0\0\0";
    const RESPONSE: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\0\x07example\x03org\0\0\x01\0\x01\
        \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x02\xc0\x0c\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01";

    fn udp(bytes: &[u8], side: Side) -> (Probe, Vec<(&'static str, String)>) {
        let head = head(bytes, side, Transport::Udp);
        let mut info = Info::default();
        assert_eq!(Dns.read(&head, &mut info), Step::Done);
        (Dns.probe(&head), info.0)
    }

    fn pairs<const N: usize>(list: [(&'static str, &str); N]) -> Vec<(&'static str, String)> {
        list.map(|(name, value)| (name, value.to_owned())).to_vec()
    }

    #[test]
    fn a_query_and_its_response() {
        let want = pairs([("query", "example.org"), ("type", "AAAA")]);
        assert_eq!(udp(QUERY, Side::Client), (Probe::Yes, want));
        let want = [
            ("query", "example.org"),
            ("type", "A"),
            ("answers", "2"),
            ("rcode", "NOERROR"),
        ];
        assert_eq!(udp(RESPONSE, Side::Server), (Probe::Yes, pairs(want)));
        for (bytes, side) in [(QUERY, Side::Client), (RESPONSE, Side::Server)] {
            let stream = [&(bytes.len() as u16).to_be_bytes(), bytes, b"\0\x30more"].concat();
            assert_eq!(probe_all(&Dns, &stream, side), Probe::Yes);
            assert_eq!(read_all(&Dns, &stream, side).unwrap().0, udp(bytes, side).1);
        }
    }

    #[test]
    fn one_byte_more_or_less_is_no_message() {
        for (bytes, side) in [(QUERY, Side::Client), (RESPONSE, Side::Server)] {
            for len in 0..bytes.len() {
                assert_eq!(udp(&bytes[..len], side).0, Probe::No, "{len}");
            }
            assert_eq!(udp(&[bytes, b"\0"].concat(), side).0, Probe::No);
        }
        assert_eq!(udp(QUERY, Side::Server).0, Probe::No);
        assert_eq!(udp(RESPONSE, Side::Client).0, Probe::No);
    }

    #[test]
    fn pointers_do_not_loop_or_go_forward() {
        for pointer in [b"\xc0\x0c", b"\xc0\x20", b"\xc0\x00"] {
            let bytes = [
                &b"\0\x01\x01\0\0\x01\0\0\0\0\0\0"[..],
                pointer,
                b"\0\x01\0\x01",
            ]
            .concat();
            assert_eq!(udp(&bytes, Side::Client).0, Probe::No);
        }
    }

    #[test]
    fn a_long_answer_is_known_by_its_front() {
        let mut stream = [&5000u16.to_be_bytes(), RESPONSE].concat();
        stream[2 + 7] = 200;
        let mut head = head(&stream, Side::Server, Transport::Tcp);
        assert_eq!(Dns.probe(&head), Probe::More);
        head.is_last = true;
        assert_eq!(Dns.probe(&head), Probe::Yes);
    }

    #[test]
    fn multicast_by_its_port() {
        let mut head = head(RESPONSE, Side::Client, Transport::Udp);
        assert_eq!(Mdns.probe(&head), Probe::No);
        head.ports = [5353, 5353];
        assert_eq!(Mdns.probe(&head), Probe::Yes);
    }

    #[test]
    fn random_bytes_are_not_taken_for_it() {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for round in 0..200_000 {
            let bytes: Vec<u8> = (0..17 + round % 60).map(|_| next()).collect();
            assert_eq!(
                udp(&bytes, Side::Client).0,
                Probe::No,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
