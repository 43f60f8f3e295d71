//! Names and timeouts of a flow's states.

pub use fsm_common::track::{Side, State, state};

use crate::config::Conntrack;

/// Name in JSON and tables, and what `--state` takes: netfilter's.
pub const fn name(state: State) -> &'static str {
    match state {
        State::SynSent => "SYN_SENT",
        State::SynRecv => "SYN_RECV",
        // netfilter: ESTABLISHED [UNREPLIED]
        State::Established | State::Unacknowledged => "ESTABLISHED",
        State::FinWait => "FIN_WAIT",
        State::CloseWait => "CLOSE_WAIT",
        State::LastAck => "LAST_ACK",
        State::TimeWait => "TIME_WAIT",
        State::Close => "CLOSE",
        State::Unreplied => "UNREPLIED",
        State::Stream => "STREAM",
        State::Icmp => "ICMP",
        State::Generic => "GENERIC",
    }
}

/// Seconds for which a flow in this state may be idle.
pub const fn timeout_s(state: State, conntrack: &Conntrack) -> u32 {
    match state {
        State::SynSent => conntrack.tcp_syn_sent_s,
        State::SynRecv => conntrack.tcp_syn_recv_s,
        State::Established => conntrack.tcp_established_s,
        State::Unacknowledged => conntrack.tcp_unacknowledged_s,
        State::FinWait => conntrack.tcp_fin_wait_s,
        State::CloseWait => conntrack.tcp_close_wait_s,
        State::LastAck => conntrack.tcp_last_ack_s,
        State::TimeWait => conntrack.tcp_time_wait_s,
        State::Close => conntrack.tcp_close_s,
        State::Unreplied => conntrack.udp_s,
        State::Stream => conntrack.udp_stream_s,
        State::Icmp => conntrack.icmp_s,
        State::Generic => conntrack.generic_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_key_of_conntrack() {
        let text = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";
        let config = crate::config::parse(text, "node.toml".as_ref()).unwrap();
        let timeouts = State::ALL.map(|state| timeout_s(state, &config.conntrack));
        assert_eq!(
            timeouts,
            [
                120, 60, 432_000, 300, 120, 60, 30, 120, 10, 30, 120, 30, 600
            ]
        );
    }

    #[test]
    fn a_state_is_found_at_its_number() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
    }
}
