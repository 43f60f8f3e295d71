//! TCP tracking against two model endpoints ([`endpoint`]), a network that loses, reorders and duplicates on
//! both sides of the observer, and an attacker who does not know the numbers. Where nothing is lost, the
//! state is netfilter's.

use fsm_common::{
    track::{Segment, State},
    wire::l4::tcp_flag::{ACK, FIN, RST, SYN},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::fuzz::pair::Pair;

#[path = "../support/endpoint.rs"]
mod endpoint;
use endpoint::{End, Rfc};

/// The state table of netfilter (`nf_conntrack_proto_tcp.c`, `tcp_conntracks`), without what is ignored or
/// invalid: such a segment leaves the state as it is.
mod netfilter {
    use super::{ACK, FIN, RST, SYN, State};

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum N {
        No,
        Ss,
        Sr,
        Es,
        Fw,
        Cw,
        La,
        Tw,
        Cl,
        S2,
        /// Ignored or invalid.
        __,
    }
    use N::*;

    const TABLE: [[[N; 10]; 5]; 2] = [
        [
            [Ss, Ss, __, __, __, __, __, Ss, Ss, S2],
            [__, __, Sr, __, __, __, __, __, __, Sr],
            [__, __, Fw, Fw, La, La, La, Tw, Cl, __],
            [Es, __, Es, Es, Cw, Cw, Tw, Tw, Cl, __],
            [__, Cl, Cl, Cl, Cl, Cl, Cl, Cl, Cl, Cl],
        ],
        [
            [__, S2, __, __, __, __, __, Ss, __, S2],
            [__, Sr, __, __, __, __, __, __, __, Sr],
            [__, __, Fw, Fw, La, La, La, Tw, Cl, __],
            [__, __, Sr, Es, Cw, Cw, Tw, Tw, Cl, __],
            [__, Cl, Cl, Cl, Cl, Cl, Cl, Cl, Cl, Cl],
        ],
    ];

    #[derive(Debug)]
    pub struct Netfilter(N);

    impl Netfilter {
        pub fn new() -> Self {
            Self(No)
        }

        /// `direction` 0 is the opener's.
        pub fn see(&mut self, direction: usize, flags: u8) {
            let row = match flags & (SYN | ACK | FIN | RST) {
                flags if flags & RST != 0 => 4,
                SYN => 0,
                flags if flags & SYN != 0 => 1,
                flags if flags & FIN != 0 => 2,
                _ => 3,
            };
            let next = TABLE[direction][row][self.0 as usize];
            if next != __ {
                self.0 = next;
            }
        }

        pub fn state(&self) -> Option<State> {
            Some(match self.0 {
                Ss => State::SynSent,
                Sr | S2 => State::SynRecv,
                Es => State::Established,
                Fw => State::FinWait,
                Cw => State::CloseWait,
                La => State::LastAck,
                Tw => State::TimeWait,
                Cl => State::Close,
                No | __ => return None,
            })
        }
    }
}
use netfilter::Netfilter;

/// Two ends, what is under way before and after the observer, and what the observer makes of it.
#[derive(Debug)]
struct World {
    ends: [End; 2],
    pair: Pair,
    before: [Vec<Segment>; 2],
    after: [Vec<Segment>; 2],
    passed: [Vec<Segment>; 2],
    /// The observer looks.
    is_watched: bool,
    /// Everything the observer saw, for messages.
    log: Vec<(usize, Segment, Option<State>)>,
}

impl World {
    fn new(ends: [End; 2]) -> Self {
        Self {
            ends,
            pair: Pair::new(),
            before: Default::default(),
            after: Default::default(),
            passed: Default::default(),
            is_watched: true,
            log: Vec::new(),
        }
    }

    fn put(&mut self, from: usize, segment: Option<Segment>) {
        self.before[from].extend(segment);
    }

    /// The segment passes the observer.
    fn pass(&mut self, from: usize, at: usize) {
        if at >= self.before[from].len() {
            return;
        }
        let segment = self.before[from].remove(at);
        self.observe(from, &segment);
        self.passed[from].push(segment);
        self.after[from].push(segment);
    }

    fn observe(&mut self, from: usize, segment: &Segment) {
        if self.is_watched {
            self.pair.see(from, segment);
            self.log.push((from, *segment, self.pair.state()));
        }
    }

    fn deliver(&mut self, from: usize, at: usize) {
        if at >= self.after[from].len() {
            return;
        }
        let segment = self.after[from].remove(at);
        let answer = self.ends[1 - from].receive(&segment);
        self.put(1 - from, answer);
    }

    /// From now on nothing is lost or late, until all is still.
    fn drain(&mut self) {
        for _ in 0..400 {
            for from in 0..2 {
                while !self.before[from].is_empty() {
                    self.pass(from, 0);
                }
                while !self.after[from].is_empty() {
                    self.deliver(from, 0);
                }
            }
            if self.before.iter().all(Vec::is_empty) {
                if self.ends.iter().all(End::is_quiet) {
                    return;
                }
                for from in 0..2 {
                    let again = self.ends[from].retransmit();
                    self.put(from, again);
                }
            }
        }
        panic!("never still: {self:#?}");
    }

    fn open(&mut self, len: u32) {
        let syn = self.ends[0].open(len);
        self.put(0, Some(syn));
    }

    /// Both ends close, in this order, and everything arrives.
    fn close(&mut self, first: usize) {
        self.drain();
        for from in [first, 1 - first] {
            let fin = self.ends[from].close(0);
            self.put(from, fin);
            self.drain();
        }
    }

    fn both_open(&self) -> bool {
        self.ends.iter().all(End::is_open)
    }

    #[track_caller]
    fn check(&self) {
        let state = self.pair.state();
        if self.both_open() {
            let open = [
                None,
                Some(State::SynSent),
                Some(State::SynRecv),
                Some(State::Established),
                Some(State::Unacknowledged),
            ];
            assert!(
                open.contains(&state),
                "{state:?} while both are open: {self:#?}"
            );
        }
    }
}

fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![0u8, 8, 0x40, 0x80, 0xc8])
}

fn end() -> impl Strategy<Value = End> {
    let iss = prop_oneof![
        any::<u32>(),
        (0u32..70_000).prop_map(|back| back.wrapping_neg())
    ];
    (iss, 4000u16.., 0u8..=9, flags())
        .prop_map(|(iss, window, scale, extra)| End::new(iss, window, scale, extra))
}

/// What happens next; an index picks one of the segments under way.
#[derive(Clone, Debug)]
enum Op {
    Send(usize, u32),
    Close(usize, u32),
    Abort(usize),
    Retransmit(usize),
    Pass(usize, Index),
    Deliver(usize, Index),
    LoseBefore(usize, Index),
    LoseAfter(usize, Index),
    /// An old segment once more.
    Repeat(usize, Index),
    /// A forged segment: flags, how far its numbers are off, whether its acknowledgement is right, payload.
    Attack(usize, u8, u32, bool, u32),
}

fn op(with_close: bool) -> impl Strategy<Value = Op> {
    let from = || 0usize..2;
    let index = any::<Index>;
    let closing = u32::from(with_close);
    prop_oneof![
        6 => (from(), 1u32..9000).prop_map(|(from, len)| Op::Send(from, len)),
        closing => (from(), 0u32..3000).prop_map(|(from, len)| Op::Close(from, len)),
        3 => from().prop_map(Op::Retransmit),
        12 => (from(), index()).prop_map(|(from, at)| Op::Pass(from, at)),
        12 => (from(), index()).prop_map(|(from, at)| Op::Deliver(from, at)),
        2 => (from(), index()).prop_map(|(from, at)| Op::LoseBefore(from, at)),
        2 => (from(), index()).prop_map(|(from, at)| Op::LoseAfter(from, at)),
        2 => (from(), index()).prop_map(|(from, at)| Op::Repeat(from, at)),
    ]
}

fn attack() -> impl Strategy<Value = Op> {
    let kinds = vec![RST, RST | ACK, FIN | ACK, SYN, SYN | ACK, ACK, ACK | 8];
    // Further off than any window, either way.
    (
        0usize..2,
        prop::sample::select(kinds),
        0x5000_0000u32..0xb000_0000,
        any::<bool>(),
        0u32..1400,
    )
        .prop_map(|(from, flags, off, ack, len)| Op::Attack(from, flags, off, ack, len))
}

impl World {
    fn run(&mut self, op: &Op) {
        let pick = |list: &[Segment], at: &Index| (!list.is_empty()).then(|| at.index(list.len()));
        match op {
            Op::Send(from, len) => {
                let data = self.ends[*from].send(*len);
                self.put(*from, data);
            }
            Op::Close(from, len) => {
                let fin = self.ends[*from].close(*len);
                self.put(*from, fin);
            }
            Op::Abort(from) => {
                let rst = self.ends[*from].abort();
                self.put(*from, rst);
            }
            Op::Retransmit(from) => {
                let again = self.ends[*from].retransmit();
                self.put(*from, again);
            }
            Op::Pass(from, at) => {
                if let Some(at) = pick(&self.before[*from], at) {
                    self.pass(*from, at);
                }
            }
            Op::Deliver(from, at) => {
                if let Some(at) = pick(&self.after[*from], at) {
                    self.deliver(*from, at);
                }
            }
            Op::LoseBefore(from, at) => {
                if let Some(at) = pick(&self.before[*from], at) {
                    self.before[*from].remove(at);
                }
            }
            Op::LoseAfter(from, at) => {
                if let Some(at) = pick(&self.after[*from], at) {
                    self.after[*from].remove(at);
                }
            }
            Op::Repeat(from, at) => {
                if let Some(at) = pick(&self.passed[*from], at) {
                    let old = self.passed[*from][at];
                    // A SYN after the end begins a flow, here as with netfilter.
                    if old.flags & SYN == 0 || !self.pair.state().is_some_and(State::is_over) {
                        self.put(*from, Some(old));
                    }
                }
            }
            Op::Attack(from, flags, off, right_ack, len) => {
                self.attack(*from, *flags, *off, *right_ack, *len)
            }
        }
    }

    fn attack(&mut self, from: usize, flags: u8, off: u32, right_ack: bool, len: u32) {
        let Some(state) = self.pair.state() else {
            return;
        };
        let is_half = matches!(
            state,
            State::SynSent | State::SynRecv | State::Unacknowledged
        );
        // A SYN without ACK has no number that could be wrong while there are none; one after the end begins
        // a flow; and a reset that acknowledges the SYN is a refusal.
        if flags & (SYN | ACK) == SYN && (is_half || state.is_over()) {
            return;
        }
        let ack = self.ends[1 - from].next;
        let forged = Segment {
            seq: self.ends[from].next.wrapping_add(off),
            ack: if right_ack && !is_half {
                ack
            } else {
                ack.wrapping_add(off)
            },
            len: if flags & (SYN | RST) == 0 { len } else { 0 },
            window: 65535,
            flags,
            scale: 14,
        };
        self.observe(from, &forged);
        assert_eq!(
            self.pair.state(),
            Some(state),
            "by {forged:?} of {from}: {self:#?}"
        );
    }

    /// Both have closed and the last ACK has passed.
    #[track_caller]
    fn check_end(&self) {
        let state = self.pair.state();
        let has_reset = self.ends.iter().any(|end| end.has_reset);
        let closed = [Rfc::Closed, Rfc::TimeWait];
        assert!(
            has_reset || self.ends.iter().all(|end| closed.contains(&end.state)),
            "{self:#?}"
        );
        let expected = state == Some(State::TimeWait) || (has_reset && state == Some(State::Close));
        assert!(expected, "{state:?} after the end: {self:#?}");
    }
}

proptest! {
    /// One thing at a time: each segment arrives before the next is sent.
    #[test]
    fn in_step_the_state_is_netfilters(
        ends in [end(), end()],
        fast_open in prop_oneof![Just(0u32), 1u32..1400],
        ops in vec(prop_oneof![
            6 => (0usize..2, 1u32..60_000).prop_map(|(from, len)| Op::Send(from, len)),
            2 => (0usize..2, 0u32..3000).prop_map(|(from, len)| Op::Close(from, len)),
            1 => (0usize..2).prop_map(Op::Abort),
        ], 0..12),
    ) {
        let (mut world, mut netfilter) = (World::new(ends), Netfilter::new());
        world.open(fast_open);
        for op in std::iter::once(&Op::Retransmit(2)).chain(&ops) {
            if !matches!(op, Op::Retransmit(_)) {
                world.run(op);
            }
            while let Some(from) = (0..2).find(|&from| !world.before[from].is_empty()) {
                let flags = world.before[from][0].flags;
                world.pass(from, 0);
                netfilter.see(from, flags);
                prop_assert_eq!(world.pair.state(), netfilter.state(), "{:?}", world.log);
                world.deliver(from, 0);
            }
            world.check();
        }
    }

    #[test]
    fn what_is_lost_late_or_twice_closes_nothing_and_the_end_is_found(
        ends in [end(), end()],
        fast_open in prop_oneof![Just(0u32), 1u32..1400],
        ops in vec(op(false), 0..60),
        closing in vec(op(true), 0..40),
        first in 0usize..2,
    ) {
        let mut world = World::new(ends);
        world.open(fast_open);
        for op in ops.iter().chain(&closing) {
            world.run(op);
            world.check();
        }
        world.close(first);
        world.check_end();
        prop_assert_eq!(world.pair.begun, 1);
        prop_assert!(world.pair.settled);
    }

    #[test]
    fn forged_segments_change_nothing(
        ends in [end(), end()],
        ops in vec(prop_oneof![3 => op(false), 2 => attack()], 0..60),
        closing in vec(prop_oneof![3 => op(true), 2 => attack()], 0..30),
        first in 0usize..2,
    ) {
        let mut world = World::new(ends);
        world.open(0);
        for op in ops.iter().chain(&closing) {
            world.run(op);
            world.check();
        }
        world.close(first);
        world.check_end();
        prop_assert_eq!(world.pair.begun, 1);
    }

    #[test]
    fn a_connection_seen_late_ends_like_any_other(
        ends in [end(), end()],
        unseen in vec(op(false), 0..20),
        ops in vec(op(false), 4..40),
        closing in vec(op(true), 0..30),
        first in 0usize..2,
    ) {
        let mut world = World::new(ends);
        world.is_watched = false;
        world.open(0);
        world.drain();
        unseen.iter().for_each(|op| world.run(op));
        world.drain();
        world.is_watched = true;
        world.passed = Default::default();
        // Both sides speak.
        for from in 0..2 {
            world.run(&Op::Send(from, 100));
            world.drain();
        }
        prop_assert_eq!(world.pair.state(), Some(State::Established));
        for op in ops.iter().chain(&closing) {
            world.run(op);
            world.check();
        }
        world.close(first);
        world.check_end();
    }

    #[test]
    fn both_may_open_at_once(ends in [end(), end()], ops in vec(op(false), 0..30), first in 0usize..2) {
        let mut world = World::new(ends);
        let syns = [world.ends[0].open(0), world.ends[1].open(0)];
        for (from, syn) in syns.into_iter().enumerate() {
            world.put(from, Some(syn));
            world.pass(from, 0);
        }
        prop_assert_eq!(world.pair.state(), Some(State::SynRecv));
        world.drain();
        prop_assert_eq!(world.pair.state(), Some(State::Established));
        for op in &ops {
            world.run(op);
            world.check();
        }
        world.close(first);
        world.check_end();
    }

    /// Data and ACKs that cross on the way, until one end gives up.
    #[test]
    fn a_reset_at_the_right_place_ends_it(ends in [end(), end()], ops in vec(op(false), 0..40), by in 0usize..2) {
        let mut world = World::new(ends);
        world.open(0);
        ops.iter().for_each(|op| world.run(op));
        world.drain();
        prop_assert_eq!(world.pair.state(), Some(State::Established));
        world.run(&Op::Abort(by));
        world.drain();
        prop_assert_eq!(world.pair.state(), Some(State::Close));
    }
}
