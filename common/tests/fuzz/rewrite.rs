//! Any frame that parses, translated and back: checksums are as right or wrong as they were, no other byte
//! changes, and the inverse gives the packet back.

use fsm_common::{
    flow::{Address, FlowKey},
    parse::{Packet, Parsed, parse},
    rewrite::Rewrite,
};

use super::{folded, take, words};

/// The first 36 bytes are addresses and ports to translate to, the rest a frame.
pub fn check(mut data: &[u8]) {
    let (saddr, daddr) = (take::<16>(&mut data), take::<16>(&mut data));
    let (sport, dport) = (take::<2>(&mut data), take::<2>(&mut data));
    match parse(data) {
        Ok(Packet::V4(parsed)) => {
            let to = FlowKey {
                saddr: <[u8; 4]>::narrow(saddr),
                daddr: <[u8; 4]>::narrow(daddr),
                sport,
                dport,
                ..parsed.key
            };
            there_and_back(data, &parsed, &to);
        }
        Ok(Packet::V6(parsed)) => {
            let to = FlowKey {
                saddr,
                daddr,
                sport,
                dport,
                ..parsed.key
            };
            there_and_back(data, &parsed, &to);
        }
        _ => {}
    }
}

fn there_and_back<A: Address>(before: &[u8], parsed: &Parsed<A>, to: &FlowKey<A>) {
    let plan = Rewrite::plan(&parsed.key, to);
    let mut frame = before.to_vec();
    if plan.apply(&mut frame, parsed).is_none() {
        assert_eq!(frame, before, "refused, and changed nevertheless");
        return;
    }
    let changed: Vec<usize> = (0..frame.len())
        .filter(|&at| frame[at] != before[at])
        .collect();
    let may: Vec<usize> = places(parsed).concat();
    assert!(
        changed.iter().all(|at| may.contains(at)),
        "changed {changed:?} of {may:?}"
    );
    assert_eq!(
        header_sum::<A>(&frame, parsed),
        header_sum::<A>(before, parsed),
        "IPv4 header"
    );
    if parsed.has_ports() && !without_sum(before, parsed) {
        assert_eq!(
            datagram_sum::<A>(&frame, parsed),
            datagram_sum::<A>(before, parsed),
            "transport"
        );
        assert!(!without_sum(&frame, parsed), "a UDP checksum became none");
    }
    let back = Parsed {
        key: *to,
        ..*parsed
    };
    plan.inverse(&parsed.key)
        .apply(&mut frame, &back)
        .expect("as before");
    // 0 and 0xffff are one number (RFC 1624 §3); no packet with right checksums has the other.
    let mut expected = before.to_vec();
    for at in sums(parsed) {
        if frame[at..at + 2] == [0, 0] && expected[at..at + 2] == [0xff, 0xff] {
            expected[at..at + 2].copy_from_slice(&[0, 0]);
        }
    }
    assert_eq!(frame, expected, "not undone");
}

/// Offsets of the checksum fields.
fn sums<A>(parsed: &Parsed<A>) -> Vec<usize> {
    let mut sums = Vec::new();
    if size_of::<A>() == 4 {
        sums.push(parsed.l3_at() + 10);
    }
    if parsed.has_ports() {
        sums.push(parsed.l4_at() + if parsed.is_tcp() { 16 } else { 6 });
    }
    sums
}

/// What a translation may change.
fn places<A>(parsed: &Parsed<A>) -> Vec<Vec<usize>> {
    let addrs = parsed.l3_at() + if size_of::<A>() == 4 { 12 } else { 8 };
    let mut places: Vec<Vec<usize>> = sums(parsed)
        .into_iter()
        .map(|at| vec![at, at + 1])
        .collect();
    places.push((addrs..addrs + 2 * size_of::<A>()).collect());
    if parsed.has_ports() {
        places.push((parsed.l4_at()..parsed.l4_at() + 4).collect());
    }
    places
}

fn without_sum<A>(frame: &[u8], parsed: &Parsed<A>) -> bool {
    let at = parsed.l4_at() + 6;
    !parsed.is_tcp() && frame[at..at + 2] == [0, 0]
}

fn header_sum<A>(frame: &[u8], parsed: &Parsed<A>) -> u16 {
    let l3 = parsed.l3_at();
    if size_of::<A>() == 4 {
        let header = usize::from(frame[l3] & 15) * 4;
        folded(words(&frame[l3..l3 + header]))
    } else {
        0
    }
}

/// Addresses and everything from the transport header on; what else is in the pseudo header stays.
fn datagram_sum<A>(frame: &[u8], parsed: &Parsed<A>) -> u16 {
    let addrs = parsed.l3_at() + if size_of::<A>() == 4 { 12 } else { 8 };
    folded(words(&frame[addrs..addrs + 2 * size_of::<A>()]) + words(&frame[parsed.l4_at()..]))
}
