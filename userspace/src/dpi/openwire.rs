//! OpenWire, ActiveMQ's own: each side's first command says its format.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// What stands behind the length: the kind of command, a name.
const FRONT: &[u8] = b"\x01ActiveMQ";
/// Bytes of the first command.
const MAX_BYTES: u32 = 4096;
/// The newest version; there have been twelve.
const MAX_VERSION: u32 = 64;

/// OpenWire.
pub struct OpenWire;

impl Parser for OpenWire {
    fn app(&self) -> &'static str {
        "openwire"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let mut rest = Reader(head.bytes);
        match rest.u32() {
            None if head.bytes.iter().take(2).all(|b| *b == 0) => return head.more(),
            Some(len) if (13..=MAX_BYTES).contains(&len) => {}
            _ => return Probe::No,
        }
        let shown = rest.0.len().min(FRONT.len());
        if rest.0[..shown] != FRONT[..shown] {
            return Probe::No;
        }
        match rest.take(FRONT.len()).and_then(|_| rest.u32()) {
            Some(1..=MAX_VERSION) => Probe::Yes,
            Some(_) => Probe::No,
            None => head.more(),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let mut rest = Reader(head.bytes);
        match rest.take(4 + FRONT.len()).and_then(|_| rest.u32()) {
            None => return head.more_to_read(),
            Some(version) if head.side == Side::Server => {
                info.add_word("version", version.to_string())
            }
            Some(version) => info.add_word("client_version", version.to_string()),
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

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "openwire",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Server,
                b"\0\0\x01\x54\x01ActiveMQ\0\0\0\x0c\x01\0\0\x01\x42",
            ),
            (
                Side::Client,
                b"\0\0\x01\x04\x01ActiveMQ\0\0\0\x0a\x01\0\0\0\xf2",
            ),
        ],
        info: "version=12 client_version=10",
    }];
}
