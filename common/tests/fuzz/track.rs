//! Any segments in both directions of a connection: no panic; what is refused changes nothing; numbers do
//! not go back; FIN and RST are noted only near what the other end expects; an end is final.

use fsm_common::{
    track::{Segment, State, reached},
    wire::l4::{
        tcp_flag::{ACK, FIN, RST, SYN},
        tcp_flags_valid,
    },
};

use super::{pair::Pair, take};

/// Bytes that two numbers may always be apart: the smallest window that is reckoned with.
const MIN_REACH: u32 = 1 << 16;

/// Twelve bytes a segment: direction and what its numbers are relative to, flags, scale, window, both
/// offsets, payload.
pub fn check(mut data: &[u8]) {
    let mut pair = Pair::new();
    let isn = take::<8>(&mut data);
    let mut next = [
        u32::from_be_bytes([isn[0], isn[1], isn[2], isn[3]]),
        u32::from_be_bytes([isn[4], isn[5], isn[6], isn[7]]),
    ];
    while !data.is_empty() {
        let bytes = take::<12>(&mut data);
        let from = usize::from(bytes[0] & 1);
        let segment = segment(&bytes, &next, from, &pair);
        // Refused by the parser.
        if !tcp_flags_valid(segment.flags) {
            continue;
        }
        step(&mut pair, from, &segment);
        // What an honest end would send next, as often as not.
        if bytes[0] & 2 == 0 {
            next[from] = segment.end();
        }
    }
}

fn segment(bytes: &[u8; 12], next: &[u32; 2], from: usize, pair: &Pair) -> Segment {
    let far = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let near = u32::from(bytes[8]).wrapping_sub(128);
    let other = &pair.flows[1 - from];
    let seq = match bytes[0] >> 2 & 7 {
        0..=3 => next[from],
        4 => next[from].wrapping_add(near),
        5 => other.acked.wrapping_add(near),
        6 => next[from].wrapping_add(far),
        _ => far,
    };
    let ack = match bytes[0] >> 5 {
        0..=3 => next[1 - from],
        4 => next[1 - from].wrapping_add(near),
        5 => other.seq_end.wrapping_add(near),
        6 => next[1 - from].wrapping_add(far),
        _ => far.rotate_left(16),
    };
    Segment {
        seq,
        ack,
        len: u32::from(u16::from_be_bytes([bytes[9], bytes[10]])) & 0x3fff,
        window: u16::from_be_bytes([bytes[2], bytes[3]]),
        flags: bytes[1],
        scale: bytes[11],
    }
}

fn step(pair: &mut Pair, from: usize, segment: &Segment) {
    let before = pair.clone();
    let taken = pair.see(from, segment);
    let (state, then) = (pair.state(), before.state());
    if pair.begun != before.begun {
        assert_ne!(state, None);
        return;
    }
    let (old, now, other) = (before.flows[from], pair.flows[from], before.flows[1 - from]);
    assert_eq!(now.side().tcp & old.tcp, old.tcp, "a flag was forgotten");
    assert!(now.scale() <= 14);
    let untouched =
        |flow: fsm_common::flow::Flow<[u8; 4]>| fsm_common::flow::Flow { packets: 0, ..flow };
    assert_eq!(
        untouched(pair.flows[1 - from]),
        untouched(other),
        "one direction writes the other"
    );
    if !taken {
        assert_eq!(
            untouched(now),
            untouched(old),
            "refused, and noted nevertheless: {segment:?}"
        );
    }
    let window = |flow: &fsm_common::flow::Flow<[u8; 4]>| {
        (u32::from(flow.window) << flow.scale()).max(MIN_REACH)
    };
    if segment.flags & SYN == 0 && old.tcp & ACK != 0 {
        assert!(
            reached(now.acked, old.acked),
            "an acknowledgement was taken back"
        );
        assert!(
            now.acked.wrapping_sub(old.acked) <= window(&old),
            "acknowledged beyond the window"
        );
        let first_fin = now.tcp & !old.tcp & FIN != 0;
        assert!(
            first_fin || reached(now.seq_end, old.seq_end),
            "sequence numbers went back"
        );
        assert!(
            old.tcp & FIN == 0 || now.seq_end == old.seq_end,
            "something follows a FIN"
        );
        assert!(now.window >= old.window);
    }
    if now.tcp & !old.tcp & FIN != 0 && other.tcp & ACK != 0 {
        let apart = segment.seq.wrapping_sub(other.acked);
        assert!(
            apart.min(apart.wrapping_neg()) <= window(&other),
            "a FIN from afar"
        );
    }
    if now.tcp & !old.tcp & RST != 0 {
        let exact = other.tcp & ACK != 0 && segment.seq.wrapping_sub(other.acked) <= window(&other);
        let refusal =
            segment.flags & ACK != 0 && other.tcp & SYN != 0 && segment.ack == other.seq_end;
        let gives_up = other.tcp & ACK == 0 && segment.seq == old.seq_end;
        assert!(exact || refusal || gives_up, "a reset from afar");
    }
    if then == Some(State::Close) {
        assert_eq!(state, then, "a reset connection lives");
    }
    // Acknowledgements of what was never sent, one after the other within the window, get it half round.
    if then == Some(State::TimeWait) && now.acked == old.acked {
        assert!(
            matches!(state, Some(State::TimeWait | State::Close)),
            "{state:?} after TIME_WAIT"
        );
    }
    assert!(!before.settled || pair.settled);
}
