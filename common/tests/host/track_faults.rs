//! What tracking once got wrong, or easily might: each a conversation of a few segments.

use fsm_common::{
    track::{Segment, State},
    wire::l4::tcp_flag::{ACK, FIN, RST, SYN},
};

use crate::fuzz::pair::Pair;

/// First sequence numbers of both ends.
const A: u32 = 0xffff_ff00;
const B: u32 = 5_000_000;

fn at(flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
    Segment {
        seq,
        ack,
        len,
        window: 0xffff,
        flags,
        scale: 7,
    }
}

fn a(n: u32) -> u32 {
    A.wrapping_add(n)
}

fn b(n: u32) -> u32 {
    B.wrapping_add(n)
}

fn after(segments: &[(usize, Segment)]) -> Pair {
    let mut pair = Pair::new();
    for (from, segment) in segments {
        assert!(pair.see(*from, segment), "{segment:?}");
    }
    pair
}

fn open() -> Pair {
    let pair = after(&[
        (0, at(SYN, A, 0, 0)),
        (1, at(SYN | ACK, B, a(1), 0)),
        (0, at(ACK, a(1), b(1), 0)),
    ]);
    assert_eq!(
        (pair.state(), pair.settled),
        (Some(State::Established), true)
    );
    pair
}

fn close(pair: &mut Pair, a_end: u32, b_end: u32) {
    assert!(pair.see(0, &at(FIN | ACK, a_end, b_end, 0)));
    assert_eq!(pair.state(), Some(State::FinWait));
    assert!(pair.see(1, &at(ACK, b_end, a_end.wrapping_add(1), 0)));
    assert_eq!(pair.state(), Some(State::CloseWait));
    assert!(pair.see(1, &at(FIN | ACK, b_end, a_end.wrapping_add(1), 0)));
    assert_eq!(pair.state(), Some(State::LastAck));
    assert!(pair.see(0, &at(ACK, a_end.wrapping_add(1), b_end.wrapping_add(1), 0)));
    assert_eq!(pair.state(), Some(State::TimeWait));
}

#[test]
fn an_opener_that_acknowledges_before_the_answer_settles_nothing() {
    // Both with a forged source; the server's answer then makes it look like two sides.
    for forged in [
        at(ACK, a(1), 77, 0),
        at(SYN | ACK, A, 77, 0),
        at(SYN | ACK, 9, 77, 0),
        at(FIN | ACK, a(1), 77, 0),
    ] {
        let mut pair = after(&[(0, at(SYN, A, 0, 0))]);
        assert!(!pair.see(0, &forged), "{forged:?}");
        assert_eq!(pair.state(), Some(State::SynSent), "{forged:?}");
        assert!(pair.see(1, &at(SYN | ACK, B, a(1), 0)));
        assert_eq!(
            (pair.state(), pair.settled),
            (Some(State::SynRecv), false),
            "{forged:?}"
        );
        assert!(pair.see(0, &at(ACK, a(1), b(1), 0)));
        assert_eq!(
            (pair.state(), pair.settled),
            (Some(State::Established), true)
        );
    }
}

#[test]
fn the_right_acknowledgement_from_afar_settles_nothing() {
    let mut pair = after(&[(0, at(SYN, A, 0, 0)), (1, at(SYN | ACK, B, a(1), 0))]);
    assert!(!pair.see(0, &at(ACK, a(1 << 28), b(1), 0)));
    assert!(!pair.settled);
    // Nor does it close.
    assert!(!pair.see(1, &at(FIN | ACK, b(1 << 28), a(1), 0)));
    assert_eq!(pair.state(), Some(State::SynRecv));
}

#[test]
fn an_unfit_answer_makes_no_connection_of_one_seen_late() {
    let mut pair = after(&[(0, at(ACK, a(1), b(1), 100))]);
    assert!(!pair.see(1, &at(ACK, b(1), a(1 << 29), 0)));
    assert_eq!(
        (pair.state(), pair.settled),
        (Some(State::Unacknowledged), false)
    );
    assert!(!pair.see(1, &at(SYN, b(1), 0, 0)), "a SYN against it");
    assert!(
        !pair.see(1, &at(SYN | ACK, b(1), a(101), 0)),
        "nobody has asked"
    );
    assert_eq!(pair.state(), Some(State::Unacknowledged));
    assert!(pair.see(1, &at(ACK, b(1), a(101), 0)));
    assert_eq!(
        (pair.state(), pair.settled),
        (Some(State::Established), true)
    );
}

#[test]
fn a_syn_on_a_connection_seen_late_changes_nothing() {
    let mut pair = after(&[
        (0, at(ACK, a(1), b(1), 100)),
        (1, at(ACK, b(1), a(101), 100)),
    ]);
    let before = pair.flows;
    assert!(!pair.see(0, &at(SYN, 12345, 0, 0)));
    assert!(!pair.see(1, &at(SYN | ACK, 12345, 9, 0)));
    assert_eq!(
        [pair.flows[0].side(), pair.flows[1].side()],
        [before[0].side(), before[1].side()]
    );
    // Further than 64 KiB, which is as far as a window without scale reaches.
    assert!(pair.see(0, &at(ACK, a(101), b(1 << 20), 0)));
    close(&mut pair, a(101), b(1 << 20));
}

#[test]
fn nothing_follows_a_fin() {
    let mut pair = open();
    close(&mut pair, a(1), b(1));
    pair.see(0, &at(ACK, a(9000), b(2), 1000));
    pair.see(1, &at(ACK, b(9000), a(2), 1000));
    pair.see(1, &at(FIN | ACK, b(9000), a(2), 0));
    assert_eq!(pair.state(), Some(State::TimeWait));
}

#[test]
fn a_fin_says_where_the_end_is() {
    let mut pair = open();
    // Nobody took this; yet its acknowledgement is right.
    pair.see(0, &at(ACK, a(1 << 29), b(1), 1));
    pair.see(1, &at(ACK, b(1 << 29), a(1), 1));
    close(&mut pair, a(1), b(1));
}

#[test]
fn a_right_acknowledgement_from_afar_acknowledges_no_fin() {
    let mut pair = open();
    assert!(pair.see(0, &at(FIN | ACK, a(1), b(1), 0)));
    assert!(!pair.see(1, &at(ACK, b(0x6000_0000), a(2), 0)));
    assert_eq!(pair.state(), Some(State::FinWait));
}

#[test]
fn another_answer_counts_while_none_is_acknowledged() {
    let other = b(0x3000_0000);
    let opened = [(0, at(SYN, A, 0, 0)), (1, at(SYN | ACK, B, a(1), 0))];
    // The server has forgotten the first, or answers by cookies.
    let mut pair = after(&opened);
    assert!(pair.see(1, &at(SYN | ACK, other, a(1), 0)));
    assert!(pair.see(0, &at(ACK, a(1), other.wrapping_add(1), 0)));
    assert!(pair.settled);
    let mut pair = after(&opened);
    assert!(pair.see(0, &at(ACK, a(1), b(1), 0)));
    assert!(!pair.see(1, &at(SYN | ACK, other, a(1), 0)));
    close(&mut pair, a(1), b(1));
}

#[test]
fn a_copy_of_the_answer_takes_no_data_back() {
    let mut pair = after(&[
        (0, at(SYN, A, 0, 500)),
        (1, at(SYN | ACK, B, a(501), 0)),
        // RFC 7413: data before the opener's acknowledgement.
        (1, at(ACK, b(1), a(501), 3000)),
        (1, at(SYN | ACK, B, a(501), 0)),
        (0, at(ACK, a(501), b(3001), 0)),
    ]);
    assert!(pair.settled);
    close(&mut pair, a(501), b(3001));
}

#[test]
fn a_syn_without_its_data_is_the_same_syn() {
    let mut pair = after(&[
        (0, at(SYN, A, 0, 500)),
        (0, at(SYN, A, 0, 0)),
        (1, at(SYN | ACK, B, a(1), 0)),
        (0, at(ACK, a(1), b(1), 0)),
    ]);
    close(&mut pair, a(1), b(1));
}

#[test]
fn crossing_syns_are_half_open_until_both_are_acknowledged() {
    let mut pair = after(&[(0, at(SYN, A, 0, 0)), (1, at(SYN, B, 0, 0))]);
    assert_eq!(pair.state(), Some(State::SynRecv));
    assert!(pair.see(0, &at(SYN | ACK, A, b(1), 0)));
    assert_eq!((pair.state(), pair.settled), (Some(State::SynRecv), false));
    assert!(pair.see(1, &at(SYN | ACK, B, a(1), 0)));
    assert_eq!(
        (pair.state(), pair.settled),
        (Some(State::Established), true)
    );
    close(&mut pair, a(1), b(1));
}

#[test]
fn another_syn_is_not_taken_once_the_first_was_answered() {
    let mut pair = after(&[(0, at(SYN, A, 0, 0)), (1, at(SYN | ACK, B, a(1), 0))]);
    assert!(!pair.see(0, &at(SYN, 12345, 0, 0)));
    assert!(pair.see(0, &at(ACK, a(1), b(1), 0)));
    assert!(pair.see(0, &at(RST, a(1), 0, 0)));
    assert_eq!(pair.state(), Some(State::Close));
}
