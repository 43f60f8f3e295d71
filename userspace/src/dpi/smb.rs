//! SMB 1, 2 and 3, over TCP alone or behind a NetBIOS session: the dialect that is agreed on.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Kinds of NetBIOS messages: data, a session's request and its answer.
const DATA: u8 = 0;
const REQUEST: u8 = 0x81;
const ACCEPT: u8 = 0x82;
/// Bytes before a message: its kind and length.
const FRONT_BYTES: usize = 4;
/// Bytes of a request for a session: two encoded names.
const REQUEST_BYTES: u8 = 68;
/// Of SMB 1; of 2 and 3; of 3 encrypted, compressed.
const MAGICS: [u8; 4] = [0xff, 0xfe, 0xfd, 0xfc];
/// Negotiation, in SMB 1 and 2.
const NEGOTIATE1: u8 = 0x72;
const NEGOTIATE2: u16 = 0;

/// SMB.
pub struct Smb;

impl Parser for Smb {
    fn app(&self) -> &'static str {
        "smb"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let bytes = match skip_session(head) {
            Some(bytes) => bytes,
            None => return head.more(),
        };
        // Length, magic.
        let is_right = |(at, b): (usize, &u8)| match at {
            0 => *b == DATA,
            1 => true,
            4 => MAGICS.contains(b),
            5..=7 => *b == b"SMB"[at - 5],
            _ => true,
        };
        if !bytes.iter().take(8).enumerate().all(is_right) {
            return Probe::No;
        }
        let Some(front) = bytes.get(..12) else {
            return head.more();
        };
        let len = usize::from(front[1]) << 16 | usize::from(front[2]) << 8 | usize::from(front[3]);
        // SMB 2 says how long its header is; in SMB 1 the command stands there.
        let is_form = front[4] != 0xfe || front[8..10] == [64, 0];
        match len >= 32 && is_form {
            true => Probe::Yes,
            false => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some(bytes) = skip_session(head) else {
            return head.more_to_read();
        };
        let mut rest = Reader(bytes);
        let message = rest
            .u32()
            .and_then(|len| rest.take(len as usize & 0xff_ffff));
        let Some(message) = message else {
            return head.more_to_read();
        };
        if head.side == Side::Server
            && let Some(dialect) = dialect(message)
        {
            info.add_word("version", dialect.to_owned());
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// What follows the request for a NetBIOS session or its answer; `None` where it is not there yet.
fn skip_session<'a>(head: &Head<'a>) -> Option<&'a [u8]> {
    let bytes = head.bytes;
    match (head.side, bytes) {
        (_, []) => None,
        (Side::Client, [REQUEST, 0, 0, REQUEST_BYTES, ..]) => bytes
            .get(FRONT_BYTES + usize::from(REQUEST_BYTES)..)
            .filter(|rest| !rest.is_empty()),
        (Side::Client, [REQUEST] | [REQUEST, 0] | [REQUEST, 0, 0]) => None,
        (Side::Server, [ACCEPT, 0, 0, 0, rest @ ..]) => Some(rest).filter(|rest| !rest.is_empty()),
        (Side::Server, [ACCEPT] | [ACCEPT, 0] | [ACCEPT, 0, 0]) => None,
        _ => Some(bytes),
    }
}

/// What a server's answer to a negotiation says.
fn dialect(message: &[u8]) -> Option<&'static str> {
    match *message.first()? {
        0xff if message.get(4) == Some(&NEGOTIATE1) => Some("1.0"),
        0xfe => {
            let command = message.get(12..14)?;
            let body = message.get(64..70)?;
            if u16::from_le_bytes([command[0], command[1]]) != NEGOTIATE2 || body[..2] != [65, 0] {
                return None;
            }
            match u16::from_le_bytes([body[4], body[5]]) {
                0x0202 => Some("2.0.2"),
                0x0210 => Some("2.1"),
                0x02ff => Some("2"),
                0x0300 => Some("3.0"),
                0x0302 => Some("3.0.2"),
                0x0311 => Some("3.1.1"),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "smb",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"\0\0\0\x2f\xffSMB\x72\0\0\0\0\x18\x01\x28\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0c\0\x02NT LM 0.12\0",
            ),
            (
                Side::Server,
                b"\0\0\0\x25\xffSMB\x72\0\0\0\0\x98\x01\x28\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0",
            ),
        ],
        info: "version=1.0",
    }];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\0\0\0\x2f\xffSMC\x72\0\0\0"[..],
            b"\0\0\0\x1f\xffSMB\x72\0\0\0",
            b"\0\0\0\x40\xfeSMB\x41\0\0\0",
        ] {
            assert_eq!(probe_all(&Smb, bytes, Side::Client), Probe::No);
        }
    }
}
