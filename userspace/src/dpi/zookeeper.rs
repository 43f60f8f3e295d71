//! ZooKeeper: the request for a session and its answer, and the four-letter words of administrators.

use super::{
    lines::{line, starts},
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// Bytes of a session's password.
const PASSWORD_BYTES: u32 = 16;
/// The longest timeout that a client asks for, in milliseconds: a day.
const MAX_TIMEOUT_MS: u32 = 86_400_000;
/// Words, and with what their answers begin.
const WORDS: &[(&[u8; 4], &[u8])] = &[
    (b"ruok", b"imok"),
    (b"stat", b"Zookeeper version: "),
    (b"srvr", b"Zookeeper version: "),
    (b"mntr", b"zk_version\t"),
    (b"conf", b"clientPort="),
    (b"envi", b"Environment:"),
];

/// ZooKeeper's protocol.
pub struct ZooKeeper;

impl Parser for ZooKeeper {
    fn app(&self) -> &'static str {
        "zookeeper"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_word = |bytes: &[u8]| {
            WORDS
                .iter()
                .find(|(word, _)| bytes.trim_ascii_end() == *word)
        };
        if head.side == Side::Server
            && let Some((_, answer)) = is_word(head.other)
        {
            return match head.bytes.get(..answer.len()) {
                Some(said) if said == *answer => Probe::Yes,
                None if answer.starts_with(head.bytes) => head.more(),
                _ => Probe::No,
            };
        }
        let is_start = |(word, _): &(&[u8; 4], &[u8])| word.starts_with(head.bytes);
        if head.side == Side::Client
            && (is_word(head.bytes).is_some() || WORDS.iter().any(is_start))
        {
            return head.more();
        }
        session(head).unwrap_or_else(|| head.more())
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Client {
            if head.bytes.first().is_some_and(u8::is_ascii_lowercase) {
                info.add("command", head.bytes.get(..4).unwrap_or_default());
            }
            return Step::Done;
        }
        if starts(head.bytes, b"Z") || starts(head.bytes, b"zk") {
            let Some((text, _)) = line(head.bytes) else {
                return head.more_to_read();
            };
            let version = text
                .splitn(2, |b| matches!(b, b':' | b'\t'))
                .nth(1)
                .unwrap_or_default();
            let end = version
                .iter()
                .position(|b| *b == b',')
                .unwrap_or(version.len());
            info.add("version", version[..end].trim_ascii());
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// The request for a session, or its answer; `None` where more is needed.
fn session(head: &Head<'_>) -> Option<Probe> {
    let mut rest = Reader(head.bytes);
    let is_client = head.side == Side::Client;
    // A byte more says whether it is for reading only.
    let is_len = |len: u32| match is_client {
        true => len == 44 || len == 45,
        false => len == 36 || len == 37,
    };
    let is_zero = |from: usize, to: usize| head.bytes.iter().take(to).skip(from).all(|b| *b == 0);
    if !is_zero(0, 3)
        || !is_zero(4, 8)
        || head.bytes.get(3).is_some_and(|len| !is_len((*len).into()))
    {
        return Some(Probe::No);
    }
    rest.u64()?;
    if is_client {
        rest.u64()?;
    }
    let timeout = rest.u32()?;
    rest.u64()?;
    let is_right =
        rest.u32()? == PASSWORD_BYTES && timeout <= MAX_TIMEOUT_MS && (timeout > 0 || !is_client);
    rest.take(PASSWORD_BYTES as usize)?;
    Some(match is_right {
        true => Probe::Yes,
        false => Probe::No,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    const CONNECT: &[u8] =
        b"\0\0\0\x2d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x75\x30\0\0\0\0\0\0\0\0\0\0\0\x10\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "zookeeper",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, CONNECT),
                (
                    Side::Server,
                    b"\0\0\0\x25\0\0\0\0\0\0\x75\x30\x01\0\0\x12\x34\x56\0\0\0\0\0\x10abcdefghijklmnop\0",
                ),
            ],
            info: "",
        },
        Sample {
            app: "zookeeper",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"srvr"),
                (Side::Server, b"Zookeeper version: 3.8.0-5a02a05eddb, built on 2022-02-25\n"),
            ],
            info: "command=srvr version=3.8.0-5a02a05eddb",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        let mut bad = CONNECT.to_vec();
        bad[31] = 0x11;
        assert_eq!(probe_all(&ZooKeeper, &bad, Side::Client), Probe::No);
        assert_eq!(probe_all(&ZooKeeper, b"stats\r\n", Side::Client), Probe::No);
    }
}
