//! The two entries of a TCP flow, fed as the programs feed them (`common/src/bpf/{judge,half,again}.rs`):
//! [`Flow::first`] for the first segment, [`Flow::event`] for SYN, FIN, RST and everything while the flow is
//! half-open, [`Flow::segment`] for the rest. Time does not pass here.

use fsm_common::{
    flow::{Flow, FlowKey},
    track::{Segment, State, is_settled, state},
    wire::l4::tcp_flag::{ACK, FIN, RST, SYN},
};

/// A tracked connection between ends 0 and 1.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What each end has sent, as far as it was seen.
    pub flows: [Flow<[u8; 4]>; 2],
    /// The end whose segment was first; none before.
    pub opener: Option<usize>,
    /// The flow is in the main table.
    pub settled: bool,
    /// Flows begun.
    pub begun: usize,
}

fn blank() -> Flow<[u8; 4]> {
    let key = FlowKey {
        saddr: [10, 0, 0, 1],
        daddr: [10, 0, 0, 2],
        sport: [1, 1],
        dport: [2, 2],
        proto: 6,
        pad: [0; 3],
    };
    let mut flow = Flow {
        last_seen_ns: 0,
        packets: 0,
        bytes: 0,
        to_saddr: [0; 4],
        to_daddr: [0; 4],
        to_sport: [0; 2],
        to_dport: [0; 2],
        addr_delta: 0,
        port_delta: 0,
        generation: 0,
        ifindex: 0,
        born: 0,
        seq_end: 0,
        acked: 0,
        window: 0,
        nf: 0,
        tcp: 0,
    };
    flow.start(&key, 1, 0);
    flow
}

impl Pair {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self {
            flows: [blank(), blank()],
            opener: None,
            settled: false,
            begun: 0,
        }
    }

    /// The state, where there is a flow.
    pub fn state(&self) -> Option<State> {
        let opener = self.opener?;
        Some(state(
            6,
            self.flows[opener].side(),
            self.flows[1 - opener].side(),
        ))
    }

    /// A segment of end `from` passes; true where it was taken for the connection's own.
    pub fn see(&mut self, from: usize, segment: &Segment) -> bool {
        let is_syn = segment.flags & (SYN | ACK) == SYN;
        if is_syn && self.state().is_some_and(State::is_over) {
            self.opener = None;
        }
        let Some(opener) = self.opener else {
            if segment.flags & RST != 0 {
                return false;
            }
            (self.flows, self.settled) = ([blank(), blank()], false);
            (self.opener, self.begun) = (Some(from), self.begun + 1);
            self.flows[from].first(segment);
            self.flows[from].packets = 1;
            return true;
        };
        let other = self.flows[1 - from];
        let flow = &mut self.flows[from];
        flow.packets += 1;
        let taken = if self.settled && segment.flags & (SYN | FIN | RST) == 0 {
            flow.segment(segment)
        } else {
            flow.event(&other, segment)
        };
        let (orig, reply) = (self.flows[opener].side(), self.flows[1 - opener].side());
        self.settled |= is_settled(6, orig, reply, 0);
        taken
    }
}
