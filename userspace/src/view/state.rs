//! A flow's state, from what was seen of its two directions, by netfilter's names.
//!
//! The kernel keeps no state machine, only the TCP flags seen in each direction. They tell everything
//! that a timeout needs, except the order of the last segments: see [`State::CloseWait`] and
//! [`State::LastAck`].

use fsm_common::wire::l3::IpProto;
use fsm_common::wire::l4::tcp_flag::{ACK, FIN, RST, SYN};

use crate::config::Conntrack;

/// State of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// TCP: the opener's SYN, no answer.
    SynSent,
    /// TCP: SYN and SYN-ACK, the third segment is missing.
    SynRecv,
    /// TCP: open; also a connection that was open before it was first seen.
    Established,
    /// TCP: looks open, but nothing was ever seen of the other side.
    Unacknowledged,
    /// TCP: the opener has closed its direction.
    FinWait,
    /// TCP: the other side has closed its direction, the opener has not.
    CloseWait,
    /// TCP: both have closed, the last ACK is missing. Flags do not tell it from [`Self::TimeWait`],
    /// so no flow is said to be in it.
    LastAck,
    /// TCP: both have closed.
    TimeWait,
    /// TCP: reset.
    Close,
    /// UDP: seen in one direction.
    Unreplied,
    /// UDP: seen in both directions.
    Stream,
    /// ICMP and ICMPv6.
    Icmp,
    /// Any other protocol.
    Generic,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 13] = [
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::Unacknowledged,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Unreplied,
        Self::Stream,
        Self::Icmp,
        Self::Generic,
    ];

    /// Name in JSON and tables, and what `--state` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            // netfilter: ESTABLISHED [UNREPLIED]
            Self::Established | Self::Unacknowledged => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::Unreplied => "UNREPLIED",
            Self::Stream => "STREAM",
            Self::Icmp => "ICMP",
            Self::Generic => "GENERIC",
        }
    }

    /// How long a flow in this state may be idle.
    pub const fn timeout_s(self, conntrack: &Conntrack) -> u32 {
        match self {
            Self::SynSent => conntrack.tcp_syn_sent_s,
            Self::SynRecv => conntrack.tcp_syn_recv_s,
            Self::Established => conntrack.tcp_established_s,
            Self::Unacknowledged => conntrack.tcp_unacknowledged_s,
            Self::FinWait => conntrack.tcp_fin_wait_s,
            Self::CloseWait => conntrack.tcp_close_wait_s,
            Self::LastAck => conntrack.tcp_last_ack_s,
            Self::TimeWait => conntrack.tcp_time_wait_s,
            Self::Close => conntrack.tcp_close_s,
            Self::Unreplied => conntrack.udp_s,
            Self::Stream => conntrack.udp_stream_s,
            Self::Icmp => conntrack.icmp_s,
            Self::Generic => conntrack.generic_s,
        }
    }
}

/// The state of a flow: TCP flags seen in each direction (ORed), and whether anything came back.
pub const fn state(proto: u8, orig_tcp: u8, reply_tcp: u8, reply_seen: bool) -> State {
    match IpProto(proto) {
        IpProto::TCP => tcp(orig_tcp, reply_tcp, reply_seen),
        IpProto::UDP if reply_seen => State::Stream,
        IpProto::UDP => State::Unreplied,
        IpProto::ICMP | IpProto::ICMPV6 => State::Icmp,
        _ => State::Generic,
    }
}

const fn tcp(orig: u8, reply: u8, reply_seen: bool) -> State {
    if (orig | reply) & RST != 0 {
        return State::Close;
    }
    match (orig & FIN != 0, reply & FIN != 0) {
        (true, true) => return State::TimeWait,
        (true, false) => return State::FinWait,
        (false, true) => return State::CloseWait,
        (false, false) => {}
    }
    let only_syn = orig & (SYN | ACK) == SYN;
    match (only_syn, reply & SYN != 0) {
        (true, true) => State::SynRecv,
        (true, false) => State::SynSent,
        (false, _) if reply_seen => State::Established,
        // Long timeouts are for connections that have two sides: else one forged segment held an
        // entry for days.
        (false, _) => State::Unacknowledged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;

    #[test]
    fn a_connection_goes_through_its_states() {
        let steps = [
            (SYN, 0, false, State::SynSent),
            (SYN, SYN | ACK, true, State::SynRecv),
            (SYN | ACK, SYN | ACK, true, State::Established),
            (SYN | ACK | FIN, SYN | ACK, true, State::FinWait),
            (SYN | ACK, SYN | ACK | FIN, true, State::CloseWait),
            (SYN | ACK | FIN, SYN | ACK | FIN, true, State::TimeWait),
        ];
        for (orig, reply, seen, expected) in steps {
            assert_eq!(
                state(TCP, orig, reply, seen),
                expected,
                "{orig:#x} {reply:#x}"
            );
        }
    }

    #[test]
    fn a_reset_ends_it_in_any_state() {
        for orig in 0..64 {
            assert_eq!(state(TCP, orig | RST, 0, false), State::Close);
            assert_eq!(state(TCP, orig, RST | ACK, true), State::Close);
        }
    }

    #[test]
    fn a_connection_seen_late_is_open() {
        assert_eq!(state(TCP, ACK, ACK, true), State::Established);
        assert_eq!(state(TCP, SYN | ACK, ACK, true), State::Established);
    }

    #[test]
    fn one_side_alone_does_not_stay_for_days() {
        for orig in [ACK, SYN | ACK] {
            let state = state(TCP, orig, 0, false);
            assert_eq!(
                (state, state.name()),
                (State::Unacknowledged, "ESTABLISHED")
            );
        }
    }

    #[test]
    fn a_challenge_ack_opens_nothing() {
        assert_eq!(state(TCP, SYN, ACK, true), State::SynSent);
    }

    #[test]
    fn other_protocols_have_their_own() {
        assert_eq!(state(17, 0, 0, false).name(), "UNREPLIED");
        assert_eq!(state(17, 0, 0, true).name(), "STREAM");
        assert_eq!(state(1, 0, 0, true), State::Icmp);
        assert_eq!(state(58, 0, 0, false), State::Icmp);
        assert_eq!(state(132, 0, 0, false), State::Generic);
    }

    #[test]
    fn each_state_has_its_key_of_conntrack() {
        let text = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";
        let config = crate::config::parse(text, "node.toml".as_ref()).unwrap();
        let timeouts = State::ALL.map(|state| state.timeout_s(&config.conntrack));
        assert_eq!(
            timeouts,
            [
                120, 60, 432_000, 300, 120, 60, 30, 120, 10, 30, 120, 30, 600
            ]
        );
    }
}
