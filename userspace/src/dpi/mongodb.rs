//! MongoDB: `OP_MSG`, `OP_QUERY`, `OP_COMPRESSED` and their answers. Of a command its name, its collection and its database
//! are told.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a message's header: length, number, number of what it answers, kind; each four, the lowest first.
const HEADER_BYTES: usize = 16;
/// The longest message (`maxMessageSizeBytes`).
const MAX_MESSAGE_BYTES: u32 = 48_000_000;
/// Elements of a document that are looked through.
const MAX_ELEMENTS: usize = 64;
const OP_REPLY: u32 = 1;
const OP_QUERY: u32 = 2004;
const OP_COMPRESSED: u32 = 2012;
const OP_MSG: u32 = 2013;

/// MongoDB's protocol.
pub struct MongoDb;

impl Parser for MongoDb {
    fn app(&self) -> &'static str {
        "mongodb"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match message(head) {
            None => Probe::No,
            Some(None) => head.more(),
            Some(Some(_)) => Probe::Yes,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some(Some(message)) = message(head) else {
            return match message(head) {
                None => Step::Done,
                _ => head.more_to_read(),
            };
        };
        if head.side == Side::Server {
            return Step::Done;
        }
        if head.bytes.len() < message.len && !head.is_last {
            return Step::More;
        }
        if let Some(space) = message.space {
            let dot = space.iter().position(|b| *b == b'.').unwrap_or(space.len());
            info.add("database", &space[..dot]);
        }
        for (at, (kind, name, value)) in elements(message.document).take(MAX_ELEMENTS).enumerate() {
            if at == 0 {
                info.add("command", name);
                if kind == STRING {
                    info.add("collection", value);
                }
            } else if name == b"$db" && kind == STRING {
                info.add("database", value);
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

struct Message<'a> {
    /// Of all, its header too.
    len: usize,
    /// `database.collection`, where it stands outside the document.
    space: Option<&'a [u8]>,
    /// What there is of the first document's elements.
    document: &'a [u8],
}

/// The first message, as soon as its kind and first element are there.
fn message<'a>(head: &Head<'a>) -> Option<Option<Message<'a>>> {
    let mut rest = Reader(head.bytes);
    let Some(len) = rest.u32_le() else {
        return Some(None);
    };
    if !(HEADER_BYTES as u32 + 5..=MAX_MESSAGE_BYTES).contains(&len) {
        return None;
    }
    let (Some(_), Some(answers), Some(kind)) = (rest.u32_le(), rest.u32_le(), rest.u32_le()) else {
        return Some(None);
    };
    let is_answer = head.side == Side::Server;
    if !is_answer && answers != 0 {
        return None;
    }
    let whole = len as usize;
    let len = len - HEADER_BYTES as u32;
    let found = match (kind, is_answer) {
        (OP_MSG, _) => op_msg(rest, len)?,
        (OP_QUERY, false) => op_query(rest, len)?,
        (OP_REPLY, true) => op_reply(rest, len)?,
        (OP_COMPRESSED, _) => op_compressed(rest)?,
        _ => return None,
    };
    Some(found.map(|(space, document)| Message {
        len: whole,
        space,
        document,
    }))
}

/// Space and document; the outer `None`: it is none, the inner: it is not there yet.
type Found<'a> = Option<Option<(Option<&'a [u8]>, &'a [u8])>>;

fn op_msg(mut rest: Reader<'_>, len: u32) -> Found<'_> {
    let (Some(flags), Some(section)) = (rest.u32_le(), rest.u8()) else {
        return Some(None);
    };
    // Checksum, more to come, and whether more may come.
    if flags & !(1 | 2 | 1 << 16) != 0 || section > 1 {
        return None;
    }
    if section == 1 {
        // A sequence of documents before the command: rare, and known by its size and printable name.
        let Some(size) = rest.u32_le() else {
            return Some(None);
        };
        let Some(name) = rest.until_nul() else {
            return (rest.0.len() < 64).then_some(None);
        };
        let is_right = size < len && !name.is_empty() && name.iter().all(u8::is_ascii_alphabetic);
        return is_right.then_some(Some((None, &[])));
    }
    document(rest, len.checked_sub(5)?)
}

fn op_query(mut rest: Reader<'_>, len: u32) -> Found<'_> {
    let Some(flags) = rest.u32_le() else {
        return Some(None);
    };
    if flags & !0xfe != 0 {
        return None;
    }
    let Some(space) = rest.until_nul() else {
        let is_right = rest.0.len() <= 255 && rest.0.iter().all(|b| *b > b' ');
        return is_right.then_some(None);
    };
    let is_space = space.len() <= 255 && space.contains(&b'.') && space.iter().all(|b| *b > b' ');
    if !is_space {
        return None;
    }
    if rest.take(8).is_none() {
        return Some(None);
    }
    let left = len.checked_sub(4 + space.len() as u32 + 1 + 8)?;
    let found = document(rest, left)?;
    Some(found.map(|(_, document)| (Some(space), document)))
}

fn op_reply(mut rest: Reader<'_>, len: u32) -> Found<'_> {
    let (Some(flags), Some(_), Some(_), Some(count)) =
        (rest.u32_le(), rest.u64(), rest.u32_le(), rest.u32_le())
    else {
        return Some(None);
    };
    if flags & !0xf != 0 || count > 1 << 20 || (count == 0 && len != 20) {
        return None;
    }
    if count == 0 {
        return Some(Some((None, &[])));
    }
    document(rest, len.checked_sub(20)?)
}

fn op_compressed(mut rest: Reader<'_>) -> Found<'_> {
    let (Some(kind), Some(size), Some(how)) = (rest.u32_le(), rest.u32_le(), rest.u8()) else {
        return Some(None);
    };
    let is_right = matches!(kind, OP_REPLY | OP_QUERY | OP_MSG)
        && size <= MAX_MESSAGE_BYTES
        && size > 0
        && how <= 3;
    is_right.then_some(Some((None, &[])))
}

/// A document that fits into `most` bytes; known by its first element's type and name.
fn document(mut rest: Reader<'_>, most: u32) -> Found<'_> {
    let Some(len) = rest.u32_le() else {
        return Some(None);
    };
    if len < 5 || len > most {
        return None;
    }
    let elements = &rest.0[..rest.0.len().min(len as usize - 4)];
    let mut first = Reader(elements);
    match first.u8() {
        None => return Some(None),
        Some(0) => return (len == 5).then_some(Some((None, elements))),
        Some(1..=0x13) => {}
        Some(_) => return None,
    }
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.');
    let name = first.0.iter().take(64).take_while(|b| is_name(b)).count();
    match first.0.get(name) {
        Some(0) if name > 0 => Some(Some((None, elements))),
        None => Some(None),
        _ => None,
    }
}

/// BSON's type of a string.
const STRING: u8 = 2;

/// Type, name and value of each element, as far as they are there; a string's value is without its length and end.
fn elements(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    let mut rest = Reader(bytes);
    std::iter::from_fn(move || {
        let kind = rest.u8()?;
        let name = rest.until_nul()?;
        let value = match kind {
            8 => rest.take(1)?,
            0x10 => rest.take(4)?,
            1 | 9 | 0x11 | 0x12 => rest.take(8)?,
            7 => rest.take(12)?,
            0x13 => rest.take(16)?,
            6 | 10 | 0x7f => &[],
            STRING | 13 | 14 => {
                let len = rest.u32_le()? as usize;
                let text = rest.take(len)?;
                text.strip_suffix(b"\0")?
            }
            3 | 4 => {
                let len = rest.u32_le()? as usize;
                rest.take(len.checked_sub(4)?)?
            }
            5 => {
                let len = rest.u32_le()? as usize;
                rest.take(len.checked_add(1)?)?
            }
            _ => return None,
        };
        Some((kind, name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    const FIND: &[u8] = b"\x44\0\0\0\x07\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\
        \x2f\0\0\0\x02find\0\x07\0\0\0orders\0\x10limit\0\x01\0\0\0\x02$db\0\x05\0\0\0shop\0\0";

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "mongodb",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, FIND),
                (Side::Server, b"\x26\0\0\0\x01\0\0\0\x07\0\0\0\xdd\x07\0\0\0\0\0\0\0\x11\0\0\0\x01ok\0\0\0\0\0\0\0\xf0\x3f\0"),
            ],
            info: "command=find collection=orders database=shop",
        },
        Sample {
            app: "mongodb",
            transport: Transport::Tcp,
            says: &[(
                Side::Client,
                b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0\0\0\0\0admin.$cmd\0\0\0\0\0\xff\xff\xff\xff\
                \x13\0\0\0\x10isMaster\0\x01\0\0\0\0",
            )],
            info: "database=admin command=isMaster",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        let mut bad = FIND.to_vec();
        assert_eq!(probe_all(&MongoDb, &bad, Side::Client), Probe::Yes);
        bad[8] = 1;
        assert_eq!(probe_all(&MongoDb, &bad, Side::Client), Probe::No);
        let mut bad = FIND.to_vec();
        bad[21] = 0x40;
        assert_eq!(probe_all(&MongoDb, &bad, Side::Client), Probe::No);
    }
}
