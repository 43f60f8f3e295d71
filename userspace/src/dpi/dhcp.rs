//! DHCP for IPv4 (RFC 2131), told by its cookie.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes before the cookie.
const FRONT_BYTES: usize = 236;
/// Options follow.
const COOKIE: &[u8] = &[0x63, 0x82, 0x53, 0x63];
/// Kinds of messages, from 1.
const KINDS: [&str; 8] = [
    "discover", "offer", "request", "decline", "ack", "nak", "release", "inform",
];
/// Options that are told.
const HOST: u8 = 12;
const KIND: u8 = 53;
const VENDOR: u8 = 60;
/// Without a length: nothing, and the end.
const PAD: u8 = 0;
const END: u8 = 255;

/// DHCP.
pub struct Dhcp;

impl Parser for Dhcp {
    fn app(&self) -> &'static str {
        "dhcp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Udp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        // Asked or answered, kind and length of the hardware's address, relays.
        match head.bytes {
            [1 | 2, _, 0..=16, 0..=16, ..]
                if head.bytes.get(FRONT_BYTES..FRONT_BYTES + 4) == Some(COOKIE) =>
            {
                Probe::Yes
            }
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let mut rest = Reader(
            head.bytes
                .get(FRONT_BYTES + COOKIE.len()..)
                .unwrap_or_default(),
        );
        let command = match head.side {
            Side::Client => "command",
            Side::Server => "answer",
        };
        while let Some(option) = rest.u8().filter(|option| *option != END) {
            if option == PAD {
                continue;
            }
            let Some(value) = rest.with_u8_len() else {
                break;
            };
            match (option, value.0) {
                (KIND, [kind @ 1..=8]) => {
                    info.add_word(command, KINDS[usize::from(kind - 1)].to_owned())
                }
                (HOST, name) => info.add("host", name),
                (VENDOR, name) => info.add("client_software", name),
                _ => {}
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    /// A discover: everything zero but the head, the cookie and the options.
    const DISCOVER: [u8; 256] = {
        let mut bytes = [0; 256];
        let head = b"\x01\x01\x06\0\x12\x34\x56\x78";
        let tail = b"\x63\x82\x53\x63\x35\x01\x01\x0c\x03app\xff";
        let mut at = 0;
        while at < head.len() {
            bytes[at] = head[at];
            at += 1;
        }
        at = 0;
        while at < tail.len() {
            bytes[FRONT_BYTES + at] = tail[at];
            at += 1;
        }
        bytes
    };

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "dhcp",
        transport: Transport::Udp,
        says: &[(Side::Client, &DISCOVER)],
        info: "command=discover host=app",
    }];
}
