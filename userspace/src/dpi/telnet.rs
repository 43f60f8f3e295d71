//! Telnet: the options that both sides negotiate first (RFC 854, 855). What is typed is not read.

use super::registry::{Head, Info, Parser, Probe, Reader, Step, Transport};

/// What follows is a command.
const IAC: u8 = 0xff;
/// The four commands with an option: will, won't, do, don't.
const FIRST: u8 = 251;
const LAST: u8 = 254;
/// Commands that must be there: one of three bytes could be chance.
const COMMANDS: usize = 2;

/// Telnet.
pub struct Telnet;

impl Parser for Telnet {
    fn app(&self) -> &'static str {
        "telnet"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let mut rest = Reader(head.bytes);
        for _ in 0..COMMANDS {
            match (rest.u8(), rest.u8(), rest.u8()) {
                (Some(IAC), Some(FIRST..=LAST), Some(option)) if is_option(option) => {}
                (Some(IAC), None | Some(FIRST..=LAST), None) | (None, ..) => return head.more(),
                _ => return Probe::No,
            }
        }
        Probe::Yes
    }

    fn read(&self, _: &Head<'_>, _: &mut Info) -> Step {
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Options by IANA's list.
fn is_option(option: u8) -> bool {
    matches!(option, 0..=49 | 138..=140)
}

#[cfg(test)]
mod tests {
    use super::super::{
        registry::{Side, check::*},
        samples::Sample,
    };
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "telnet",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Server,
                b"\xff\xfd\x18\xff\xfd\x20\xff\xfd\x23\xff\xfd\x27",
            ),
            (Side::Client, b"\xff\xfb\x18\xff\xfc\x20"),
        ],
        info: "",
    }];

    #[test]
    fn one_command_is_not_enough() {
        for bytes in [
            &b"\xff\xfd\x18login: "[..],
            b"\xff\xfd\x99\xff",
            b"\xff\xff\xff\xff",
        ] {
            assert_eq!(probe_all(&Telnet, bytes, Side::Server), Probe::No);
        }
    }
}
