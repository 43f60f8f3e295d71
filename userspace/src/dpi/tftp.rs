//! TFTP (RFC 1350, options by RFC 2347): a request to read or write, or the answer to its options.

use super::{
    lines::is_one_of,
    registry::{Head, Info, Parser, Probe, Reader, Step, Transport},
};

/// Kinds of packets.
const READ: u16 = 1;
const WRITE: u16 = 2;
const OPTIONS: u16 = 6;
/// How a file is sent.
const MODES: &[&[u8]] = &[b"OCTET", b"NETASCII", b"MAIL"];
/// Options (RFC 2348, 2349, 7440).
const NAMES: &[&[u8]] = &[
    b"BLKSIZE",
    b"TIMEOUT",
    b"TSIZE",
    b"WINDOWSIZE",
    b"ROLLOVER",
    b"MULTICAST",
];

/// TFTP.
pub struct Tftp;

impl Parser for Tftp {
    fn app(&self) -> &'static str {
        "tftp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match request(head.bytes) {
            Some(_) => Probe::Yes,
            None => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if let Some((kind, path)) = request(head.bytes) {
            match kind {
                READ => info.add("command", b"read"),
                WRITE => info.add("command", b"write"),
                _ => {}
            }
            info.add("path", path);
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Kind and path, of a whole datagram.
fn request(bytes: &[u8]) -> Option<(u16, &[u8])> {
    if bytes.last() != Some(&0) {
        return None;
    }
    let mut rest = Reader(bytes);
    let kind = rest.u16()?;
    let mut path: &[u8] = &[];
    match kind {
        READ | WRITE => {
            path = rest
                .until_nul()
                .filter(|path| !path.is_empty() && path.iter().all(|b| *b >= b' '))?;
            rest.until_nul().filter(|mode| is_one_of(mode, MODES))?;
        }
        OPTIONS if !rest.0.is_empty() => {}
        _ => return None,
    }
    while !rest.0.is_empty() {
        let (name, value) = (rest.until_nul()?, rest.until_nul()?);
        let is_known = kind != OPTIONS || is_one_of(name, NAMES);
        if !is_known || name.is_empty() || !value.iter().all(u8::is_ascii_graphic) {
            return None;
        }
    }
    Some((kind, path))
}

#[cfg(test)]
mod tests {
    use super::super::{
        registry::{Side, check::*},
        samples::Sample,
    };
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "tftp",
            transport: Transport::Udp,
            says: &[(Side::Client, b"\0\x01pxelinux.0\0octet\0tsize\x000\0")],
            info: "command=read path=pxelinux.0",
        },
        Sample {
            app: "tftp",
            transport: Transport::Udp,
            says: &[(Side::Client, b"\0\x06blksize\x001428\0")],
            info: "",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\0\x01a\0b\0"[..],
            b"\0\x01a\0octet",
            b"\0\x03\0\x01abc\0",
            b"\0\x06abc\x001\0",
        ] {
            assert_eq!(
                Tftp.probe(&head(bytes, Side::Client, Transport::Udp)),
                Probe::No
            );
        }
    }
}
