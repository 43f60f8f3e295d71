//! TCP connections through the gateway, segment by segment: when they settle, what closes them and what does
//! not, and when the same ports are a new one. The state is derived from both entries ([`track::state`]).
//!
//! [`track::state`]: fsm_common::track::state

use fsm_common::{reason::Reason, track::State};

use crate::{
    nat::{Case, taken},
    support::{
        Hook, LO, Node,
        frame::{ACK, FIN, Frame, L4, RST, SYN, tcp},
    },
};

const NEW: &[Reason] = &[Reason::FlowNew];
const OUT: &[Reason] = &[Reason::TcpOutOfWindow];
/// First sequence numbers of app and server: the app's wraps in a moment.
const A: u32 = 0xffff_fff0;
const B: u32 = 5_000_000;
const SECOND: u64 = 1_000_000_000;

/// One connection of the app's, taken to the gateway.
struct Talk<'a> {
    node: &'a mut Node,
    case: &'a Case,
    there: String,
    back: String,
}

/// Numbers from each end's first one.
fn a(n: u32) -> u32 {
    A.wrapping_add(n)
}

fn b(n: u32) -> u32 {
    B.wrapping_add(n)
}

/// Runs `test` on a connection over IPv4, and on one over IPv6.
fn talk(test: impl Fn(&mut Talk) + Send + 'static) {
    taken(move |node, case| {
        let there = format!("tcp {} > {}", case.app, case.server);
        let back = format!("tcp {} > {}", case.gateway, case.app);
        test(&mut Talk {
            node,
            case,
            there,
            back,
        });
    });
}

impl Talk<'_> {
    fn frame(&self, from_app: bool, flags: u8, seq: u32, ack: u32) -> Frame {
        let Case {
            app,
            gateway,
            server,
            ..
        } = self.case;
        let frame = if from_app {
            tcp(app, server, flags)
        } else {
            tcp(gateway, app, flags)
        };
        frame.at(seq, ack)
    }

    /// The app sends; its packet goes to the gateway, translated.
    #[track_caller]
    fn app(&mut self, flags: u8, seq: u32, ack: u32, reasons: &[Reason]) {
        let frame = self.frame(true, flags, seq, ack);
        self.app_sends(&frame, reasons);
    }

    #[track_caller]
    fn app_sends(&mut self, frame: &Frame, reasons: &[Reason]) {
        let out = self
            .node
            .run(Hook::TcIn, LO, &frame.bytes())
            .translated(&self.there, reasons);
        assert_eq!(
            out,
            frame
                .clone()
                .with_tuple(self.case.app, self.case.gateway)
                .bytes()
        );
    }

    /// The gateway sends; its packet comes from the server, translated.
    #[track_caller]
    fn gateway(&mut self, flags: u8, seq: u32, ack: u32, reasons: &[Reason]) {
        let frame = self.frame(false, flags, seq, ack);
        self.gateway_sends(&frame, reasons);
    }

    #[track_caller]
    fn gateway_sends(&mut self, frame: &Frame, reasons: &[Reason]) {
        let out = self
            .node
            .run(Hook::TcOut, LO, &frame.bytes())
            .translated(&self.back, reasons);
        assert_eq!(
            out,
            frame
                .clone()
                .with_tuple(self.case.server, self.case.app)
                .bytes()
        );
    }

    /// State, and whether the flow is in the main table (both directions or none).
    #[track_caller]
    fn is(&self, state: State, is_settled: bool) {
        assert_eq!(self.node.state(&self.there, &self.back), state);
        let settled = self.node.settled();
        let found = [&self.there, &self.back].map(|tuple| settled.contains_key(tuple));
        assert_eq!(found, [is_settled; 2], "settled");
    }

    #[track_caller]
    fn open(&mut self) {
        self.app(SYN, A, 0, NEW);
        self.is(State::SynSent, false);
        self.gateway(SYN | ACK, B, a(1), &[]);
        self.is(State::SynRecv, false);
        self.app(ACK, a(1), b(1), &[]);
        self.is(State::Established, true);
    }

    /// Both ends close, the app first; each has sent so much.
    #[track_caller]
    fn close(&mut self, sent: u32, received: u32) {
        self.app(FIN | ACK, a(sent), b(received), &[]);
        self.is(State::FinWait, true);
        self.gateway(ACK, b(received), a(sent + 1), &[]);
        self.is(State::CloseWait, true);
        self.gateway(FIN | ACK, b(received), a(sent + 1), &[]);
        self.is(State::LastAck, true);
        self.app(ACK, a(sent + 1), b(received + 1), &[]);
        self.is(State::TimeWait, true);
    }

    /// A frame of the app's that begins a new flow with the same tuples, in the small table.
    #[track_caller]
    fn begins_anew(&mut self, flags: u8, seq: u32, ack: u32, state: State) {
        let (flows, origins) = (self.node.count(Reason::FlowNew), self.origins());
        assert_eq!(origins, 1, "of the settled flow");
        let frame = self.frame(true, flags, seq, ack);
        let (action, out, _) = self.node.raw(Hook::TcIn, LO, &frame.bytes());
        assert_eq!((action, self.node.count(Reason::FlowNew)), (-1, flows + 1));
        assert_eq!(
            out,
            frame.with_tuple(self.case.app, self.case.gateway).bytes()
        );
        self.is(state, false);
        let flows = self.node.flows();
        assert_eq!(
            (flows[&self.there].packets, flows[&self.back].packets),
            (1, 0)
        );
        assert_eq!(self.origins(), 0, "the old flow's origin");
    }

    /// Origins of this family's flows.
    fn origins(&self) -> usize {
        let v6 = u8::from(self.case.app.starts_with('['));
        let all = self.node.maps.xopt.keys().map(Result::unwrap);
        all.filter(|key| key.v6 == v6).count()
    }
}

#[test]
fn a_handshake_settles_at_the_openers_acknowledgement() {
    talk(|talk| {
        talk.open();
        talk.close(1, 1);
    });
}

#[test]
fn a_syn_is_retransmitted_until_it_is_answered() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        for _ in 0..3 {
            talk.app(SYN, A, 0, &[]);
            talk.is(State::SynSent, false);
        }
        talk.gateway(SYN | ACK, B, a(1), &[]);
        // Its answer was lost behind us.
        talk.app(SYN, A, 0, &[]);
        talk.gateway(SYN | ACK, B, a(1), &[]);
        talk.is(State::SynRecv, false);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
        // Late copies.
        talk.app(SYN, A, 0, &[]);
        talk.gateway(SYN | ACK, B, a(1), &[]);
        talk.is(State::Established, true);
    });
}

#[test]
fn both_ends_may_open_at_once() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        talk.gateway(SYN, B, 0, &[]);
        talk.is(State::SynRecv, false);
        talk.app(SYN | ACK, A, b(1), &[]);
        talk.is(State::SynRecv, false);
        talk.gateway(SYN | ACK, B, a(1), &[]);
        talk.is(State::Established, true);
        talk.close(1, 1);
    });
}

#[test]
fn data_in_a_syn_settles_like_any_other() {
    talk(|talk| {
        // RFC 7413: a cookie, and a request.
        let options = vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
        let syn = Frame {
            l4: L4::Tcp {
                flags: SYN,
                options,
            },
            ..talk.frame(true, SYN, A, 0).payload(b"GET /")
        };
        talk.app_sends(&syn, NEW);
        talk.gateway(SYN | ACK, B, a(6), &[]);
        // The answer comes before the opener's acknowledgement.
        let answer = talk.frame(false, ACK, b(1), a(6)).payload(&[1; 700]);
        talk.gateway_sends(&answer, &[]);
        talk.is(State::SynRecv, false);
        talk.app(ACK, a(6), b(701), &[]);
        talk.is(State::Established, true);
        talk.close(6, 701);
    });
}

#[test]
fn a_forged_acknowledgement_does_not_settle() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        // Before there is anything to acknowledge.
        talk.app(ACK, a(1), 4711, &[]);
        talk.app(SYN | ACK, A, 4711, OUT);
        talk.gateway(SYN | ACK, B, a(1), &[]);
        talk.is(State::SynRecv, false);
        talk.app(ACK, a(1), b(0x2000_0000), &[]);
        talk.app(FIN | ACK, a(1), b(0x2000_0000), OUT);
        talk.is(State::SynRecv, false);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
    });
}

#[test]
fn a_connection_seen_late_settles_on_a_fitting_answer_only() {
    talk(|talk| {
        talk.app(ACK, a(1), b(1), NEW);
        talk.is(State::Unacknowledged, false);
        talk.gateway(ACK, b(1), a(0x2000_0000), &[]);
        talk.is(State::Unacknowledged, false);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Unacknowledged, false);
        talk.gateway(ACK, b(1), a(1), &[]);
        talk.is(State::Established, true);
        talk.close(1, 1);
    });
}

#[test]
fn a_reset_counts_at_the_right_place_only() {
    talk(|talk| {
        talk.open();
        for (seq, ack) in [(a(2), b(1)), (a(70_000), b(1)), (b(1), a(1)), (0, 0)] {
            talk.app(RST | ACK, seq, ack, OUT);
            talk.app(RST, seq, 0, OUT);
            talk.gateway(RST, seq.wrapping_add(77), 0, OUT);
            talk.is(State::Established, true);
        }
        talk.gateway(RST, b(1), 0, &[]);
        talk.is(State::Close, true);
    });
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        // A refusal acknowledges the SYN.
        talk.gateway(RST | ACK, 0, a(99), OUT);
        talk.is(State::SynSent, false);
        talk.gateway(RST | ACK, 0, a(1), &[]);
        talk.is(State::Close, false);
    });
}

#[test]
fn a_fin_from_elsewhere_changes_nothing() {
    talk(|talk| {
        talk.open();
        for off in [0x0010_0000, 0x4000_0000, 0x8000_0000, 0xfff0_0000] {
            talk.app(FIN | ACK, a(off), b(1), OUT);
            talk.gateway(FIN | ACK, b(1), a(off), OUT);
            talk.gateway(FIN | ACK, b(off), a(1), OUT);
            talk.is(State::Established, true);
        }
        talk.app(SYN, a(0x1000_0000), 0, OUT);
        talk.is(State::Established, true);
        talk.close(1, 1);
    });
}

#[test]
fn one_side_may_close_and_the_other_go_on() {
    talk(|talk| {
        talk.open();
        talk.app(FIN | ACK, a(1), b(1), &[]);
        talk.is(State::FinWait, true);
        let mut sent = 1;
        for _ in 0..5 {
            let data = talk.frame(false, ACK, b(sent), a(2)).payload(&[7; 1000]);
            talk.gateway_sends(&data, &[]);
            sent += 1000;
            talk.app(ACK, a(2), b(sent), &[]);
            talk.is(State::CloseWait, true);
        }
        talk.gateway(FIN | ACK, b(sent), a(2), &[]);
        talk.is(State::LastAck, true);
        talk.app(ACK, a(2), b(sent + 1), &[]);
        talk.is(State::TimeWait, true);
    });
}

#[test]
fn time_wait_absorbs_what_is_late() {
    talk(|talk| {
        talk.open();
        talk.close(1, 1);
        talk.gateway(FIN | ACK, b(1), a(2), &[]);
        talk.app(ACK, a(2), b(2), &[]);
        talk.app(FIN | ACK, a(1), b(1), &[]);
        // Data beyond the end is nobody's.
        talk.app(ACK, a(9000), b(2), &[]);
        talk.is(State::TimeWait, true);
    });
}

#[test]
fn a_syn_after_the_end_is_a_new_flow() {
    talk(|talk| {
        talk.open();
        talk.close(1, 1);
        talk.begins_anew(SYN, a(100_000), 0, State::SynSent);
    });
    talk(|talk| {
        talk.open();
        talk.gateway(RST, b(1), 0, &[]);
        talk.is(State::Close, true);
        talk.begins_anew(SYN, a(100_000), 0, State::SynSent);
        talk.gateway(SYN | ACK, B, a(100_001), &[]);
        talk.app(ACK, a(100_001), b(1), &[]);
        talk.is(State::Established, true);
    });
    // Half-open: refused, and tried again.
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        talk.gateway(RST | ACK, 0, a(1), &[]);
        let before = talk.node.count(Reason::FlowNew);
        let syn = talk.frame(true, SYN, 9, 0).bytes();
        talk.node.raw(Hook::TcIn, LO, &syn);
        assert_eq!(talk.node.count(Reason::FlowNew), before + 1);
        talk.is(State::SynSent, false);
    });
}

#[test]
fn what_comes_after_the_timeout_is_a_new_flow() {
    talk(|talk| {
        talk.open();
        talk.node.timeout(State::Established, 60);
        // Idle, and not for too long.
        talk.node.age(50 * SECOND);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
        talk.node.age(61 * SECOND);
        talk.begins_anew(ACK, a(1), b(1), State::Unacknowledged);
        talk.gateway(ACK, b(1), a(1), &[]);
        talk.is(State::Established, true);
    });
}

#[test]
fn a_segment_after_a_pause_or_a_change_of_policy_is_tracked() {
    for by_policy in [false, true] {
        talk(move |talk| {
            talk.open();
            talk.node.timeout(State::LastAck, 60);
            talk.app(FIN | ACK, a(1), b(1), &[]);
            talk.gateway(FIN | ACK, b(1), a(2), &[]);
            talk.is(State::LastAck, true);
            if by_policy {
                talk.node.set(|_| ());
                talk.app(ACK, a(2), b(2), &[Reason::FlowRejudged]);
            } else {
                talk.node.age(30 * SECOND);
                talk.app(ACK, a(2), b(2), &[]);
            }
            talk.is(State::TimeWait, true);
        });
    }
}

#[test]
fn an_evicted_entry_of_the_flows_own_direction_is_made_again() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        let there = talk.there.clone();
        talk.node.evict(&there);
        // The answer still knows where it belongs.
        talk.gateway(SYN | ACK, B, a(1), &[]);
        let before = talk.node.count(Reason::FlowNew);
        let ack = talk.frame(true, ACK, a(1), b(1));
        let (_, out, _) = talk.node.raw(Hook::TcIn, LO, &ack.bytes());
        assert_eq!(
            out,
            ack.with_tuple(talk.case.app, talk.case.gateway).bytes()
        );
        assert_eq!(talk.node.count(Reason::FlowNew), before + 1);
        talk.gateway(ACK, b(1), a(1), &[]);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
        talk.close(1, 1);
    });
}

#[test]
fn an_evicted_entry_of_the_answer_is_made_again() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        let back = talk.back.clone();
        talk.node.evict(&back);
        let before = talk.node.count(Reason::FlowNew);
        let syn = talk.frame(true, SYN, A, 0);
        let (_, out, _) = talk.node.raw(Hook::TcIn, LO, &syn.bytes());
        assert_eq!(
            out,
            syn.with_tuple(talk.case.app, talk.case.gateway).bytes()
        );
        assert_eq!(talk.node.count(Reason::FlowNew), before + 1);
        talk.gateway(SYN | ACK, B, a(1), &[]);
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
    });
}

#[test]
fn an_answer_whose_entry_was_evicted_takes_nothing_from_the_flow() {
    talk(|talk| {
        talk.app(SYN, A, 0, NEW);
        let back = talk.back.clone();
        talk.node.evict(&back);
        // Comes back untranslated, once: nothing says any more what it belongs to.
        let answer = talk.frame(false, SYN | ACK, B, a(1));
        let _ = talk.node.raw(Hook::TcOut, LO, &answer.bytes());
        // The app asks again, and is understood.
        let syn = talk.frame(true, SYN, A, 0);
        let (_, out, _) = talk.node.raw(Hook::TcIn, LO, &syn.bytes());
        assert_eq!(
            out,
            syn.with_tuple(talk.case.app, talk.case.gateway).bytes()
        );
        let (_, out, _) = talk.node.raw(Hook::TcOut, LO, &answer.bytes());
        assert_eq!(
            out,
            answer.with_tuple(talk.case.server, talk.case.app).bytes()
        );
        talk.app(ACK, a(1), b(1), &[]);
        talk.is(State::Established, true);
    });
}
