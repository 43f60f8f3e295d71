//! Kafka: `ApiVersions` (versions 0 to 4) and `Metadata` by their whole form; other requests when the answer has their
//! number.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a request that a broker takes (`socket.request.max.bytes`).
const MAX_BYTES: u32 = 100 << 20;
/// Bytes of a client's name.
const MAX_CLIENT_BYTES: u16 = 255;
/// Requests by number, the last version of each that is known, and the first in the flexible form.
const REQUESTS: &[(&str, u16, u16)] = &[
    ("Produce", 13, 9),
    ("Fetch", 18, 12),
    ("ListOffsets", 11, 6),
    ("Metadata", 13, 9),
    ("LeaderAndIsr", 7, 4),
    ("StopReplica", 4, 2),
    ("UpdateMetadata", 8, 6),
    ("ControlledShutdown", 3, 3),
    ("OffsetCommit", 10, 8),
    ("OffsetFetch", 10, 6),
    ("FindCoordinator", 6, 3),
    ("JoinGroup", 9, 6),
    ("Heartbeat", 4, 4),
    ("LeaveGroup", 5, 4),
    ("SyncGroup", 5, 4),
    ("DescribeGroups", 6, 5),
    ("ListGroups", 5, 3),
    ("SaslHandshake", 1, u16::MAX),
    ("ApiVersions", 4, 3),
    ("CreateTopics", 7, 5),
    ("DeleteTopics", 6, 4),
    ("DeleteRecords", 2, 2),
    ("InitProducerId", 6, 2),
];
const METADATA: u16 = 3;
const API_VERSIONS: u16 = 18;

/// Kafka's protocol.
pub struct Kafka;

struct Request<'a> {
    key: u16,
    version: u16,
    is_flexible: bool,
    number: u32,
    client: &'a [u8],
    /// What follows the header, as much as there is.
    body: &'a [u8],
    is_whole: bool,
}

/// A request's header; the outer `None`: it is none, the inner: it is not there yet.
fn request(bytes: &[u8]) -> Option<Option<Request<'_>>> {
    let mut rest = Reader(bytes);
    let Some(len) = rest.u32() else {
        return (bytes.first().is_none_or(|b| *b < 8)).then_some(None);
    };
    if !(10..=MAX_BYTES).contains(&len) {
        return None;
    }
    let is_whole = rest.0.len() >= len as usize;
    let mut rest = Reader(&rest.0[..rest.0.len().min(len as usize)]);
    let Some(key) = rest.u16() else {
        return rest.0.first().is_none_or(|b| *b == 0).then_some(None);
    };
    let (_, last, flexible) = REQUESTS.get(usize::from(key))?;
    let Some(version) = rest.u16() else {
        return rest.0.first().is_none_or(|b| *b == 0).then_some(None);
    };
    if version > *last {
        return None;
    }
    let (Some(number), Some(name)) = (rest.u32(), rest.u16()) else {
        return (!is_whole).then_some(None);
    };
    // A null has the length -1.
    let name = if name == u16::MAX { 0 } else { name };
    if name > MAX_CLIENT_BYTES {
        return None;
    }
    let shown = &rest.0[..rest.0.len().min(name.into())];
    if !shown.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let is_flexible = version >= *flexible;
    let (Some(client), tags) = (
        rest.take(name.into()),
        if is_flexible { rest.u8() } else { Some(0) },
    ) else {
        return (!is_whole).then_some(None);
    };
    match tags {
        Some(0) => Some(Some(Request {
            key,
            version,
            is_flexible,
            number,
            client,
            body: rest.0,
            is_whole,
        })),
        None if !is_whole => Some(None),
        _ => None,
    }
}

impl Parser for Kafka {
    fn app(&self) -> &'static str {
        "kafka"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server {
            return probe_answer(head);
        }
        match request(head.bytes) {
            None => Probe::No,
            Some(None) => head.more(),
            Some(Some(request)) => match (request.key, request.is_whole) {
                (API_VERSIONS | METADATA, false) => head.more(),
                (API_VERSIONS, true) => is(api_versions(&request).is_some()),
                (METADATA, true) => is(!request.client.is_empty() && topics(&request).is_some()),
                // The answer must have its number.
                _ if request.client.is_empty() => Probe::No,
                _ => head.more(),
            },
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            return Step::Done;
        }
        let Some(Some(request)) = request(head.bytes) else {
            return head.more_to_read();
        };
        if !request.is_whole && matches!(request.key, API_VERSIONS | METADATA) && !head.is_last {
            return Step::More;
        }
        if let Some((name, ..)) = REQUESTS.get(usize::from(request.key)) {
            info.add("command", name.as_bytes());
        }
        info.add_word("version", request.version.to_string());
        info.add("client_id", request.client);
        if request.key == METADATA {
            info.add("topic", topics(&request).flatten().unwrap_or_default());
        }
        if let (API_VERSIONS, Some(Some((software, version)))) =
            (request.key, api_versions(&request))
        {
            info.add("client_software", software);
            info.add("client_version", version);
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn is(is_it: bool) -> Probe {
    match is_it {
        true => Probe::Yes,
        false => Probe::No,
    }
}

fn probe_answer(head: &Head<'_>) -> Probe {
    let Some(Some(request)) = request(head.other) else {
        return Probe::No;
    };
    if request.client.is_empty() {
        return Probe::No;
    }
    let mut rest = Reader(head.bytes);
    match (rest.u32(), rest.u32()) {
        (Some(len), Some(number)) => is((6..=MAX_BYTES).contains(&len) && number == request.number),
        (Some(len), None) if !(6..=MAX_BYTES).contains(&len) => Probe::No,
        _ => head.more(),
    }
}

/// Text with one more than its length before it, in one byte.
fn compact<'a>(rest: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = rest.u8().filter(|len| (1..0x80).contains(len))?;
    rest.take(usize::from(len) - 1)
}

/// The client's software and its version, where they are said; `None` where the body is not of this form.
fn api_versions<'a>(request: &Request<'a>) -> Option<Option<(&'a [u8], &'a [u8])>> {
    let mut rest = Reader(request.body);
    if !request.is_flexible {
        return rest.0.is_empty().then_some(None);
    }
    let software = (compact(&mut rest)?, compact(&mut rest)?);
    let is_text = software
        .0
        .iter()
        .chain(software.1)
        .all(u8::is_ascii_graphic);
    (is_text && rest.u8()? == 0 && rest.0.is_empty()).then_some(Some(software))
}

/// The first topic, if one is named; `None` where the body is not of this form.
fn topics<'a>(request: &Request<'a>) -> Option<Option<&'a [u8]>> {
    let mut rest = Reader(request.body);
    let flags = match request.version {
        0..=3 => 0,
        4..=7 => 1,
        8..=10 => 3,
        _ => 2,
    };
    let is_name = |name: &[u8]| {
        name.iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && name.len() < 250
    };
    let count = match request.is_flexible {
        false => rest.u32()?.wrapping_add(1),
        true => rest.u8().filter(|count| *count < 0x80)?.into(),
    };
    let mut first = None;
    for _ in 1..count.min(1024) {
        let name = if request.is_flexible {
            if request.version >= 10 {
                rest.take(16)?;
            }
            let name = compact(&mut rest)?;
            if rest.u8()? != 0 {
                return None;
            }
            name
        } else {
            rest.with_u16_len()?.0
        };
        if !is_name(name) {
            return None;
        }
        first = first.or(Some(name));
    }
    let flags = rest.take(flags)?;
    let is_end = flags.iter().all(|flag| *flag <= 1) && (!request.is_flexible || rest.u8()? == 0);
    (is_end && rest.0.is_empty()).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "kafka",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"\0\0\0\x2c\0\x12\0\x03\0\0\0\x01\0\x08producer\0\x12apache-kafka-java\x063.6.0\0",
                ),
                (Side::Server, b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0"),
            ],
            info: "command=ApiVersions version=3 client_id=producer client_software=apache-kafka-java client_version=3.6.0",
        },
        Sample {
            app: "kafka",
            transport: Transport::Tcp,
            says: &[(Side::Client, b"\0\0\0\x17\0\x03\0\x01\0\0\0\x02\0\x01c\0\0\0\x01\0\x06orders")],
            info: "command=Metadata version=1 client_id=c topic=orders",
        },
        Sample {
            app: "kafka",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"\0\0\0\x11\0\x0a\0\x01\0\0\0\x07\0\x01c\0\x01g\0"),
                (Side::Server, b"\0\0\0\x0a\0\0\0\x07\0\0\0\0\0\0"),
            ],
            info: "command=FindCoordinator version=1 client_id=c",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\0\0\0\x2d\0\x63\0\x03\0\0\0\x01"[..],
            b"\0\0\0\x0b\0\x12\0\x00\0\0\0\x01\0\x00x",
            b"\0\0\0\x17\0\x03\0\x01\0\0\0\x02\0\x01c\0\0\0\x01\0\x06or/ers",
        ] {
            assert_eq!(probe_all(&Kafka, bytes, Side::Client), Probe::No);
        }
    }
}
