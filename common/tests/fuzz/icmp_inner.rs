//! Any bytes as the quote of an ICMP error: no panic, a tuple is read only from where it is, and the quote's
//! and the message's checksums stay as right as they were when the quote is translated.

use fsm_common::{
    checksum,
    flow::{Address, FlowKey},
    parse::{Quoted, quoted4, quoted6},
    rewrite::deltas,
};

use super::{folded, take, words};

/// A byte for the offset, 36 of addresses and ports, and the message.
pub fn check(mut data: &[u8]) {
    let [at] = take::<1>(&mut data);
    let (saddr, daddr) = (take::<16>(&mut data), take::<16>(&mut data));
    let (sport, dport) = (take::<2>(&mut data), take::<2>(&mut data));
    let at = usize::from(at);
    if let Some(quoted) = quoted4(data, at) {
        let to = FlowKey {
            saddr: <[u8; 4]>::narrow(saddr),
            daddr: <[u8; 4]>::narrow(daddr),
            sport,
            dport,
            ..quoted.key
        };
        assert_eq!(data[at] >> 4, 4);
        translate(data, at, &quoted, &to);
    }
    if let Some(quoted) = quoted6(data, at) {
        let to = FlowKey {
            saddr,
            daddr,
            sport,
            dport,
            ..quoted.key
        };
        assert_eq!(data[at] >> 4, 6);
        translate(data, at, &quoted, &to);
    }
}

fn translate<A: Address>(data: &[u8], at: usize, quoted: &Quoted<A>, to: &FlowKey<A>) {
    let (key, l4, len) = (&quoted.key, usize::from(quoted.l4), size_of::<A>());
    let addrs = at + if len == 4 { 12 } else { 8 };
    assert!(l4 + 4 <= data.len() && at + 20 <= l4);
    assert_eq!(data[l4..l4 + 4], [key.sport, key.dport].concat());
    assert_eq!(data[addrs..addrs + len], key.saddr.widen()[..len]);
    assert_eq!(data[addrs + len..addrs + 2 * len], key.daddr.widen()[..len]);
    assert_eq!(key.pad, [0; 3]);

    // A sum is over words from the message's start: a quote stands there at an even offset.
    let mut message = data[at & 1..].to_vec();
    let (at, l4, addrs) = (at & !1, l4 - (at & 1), addrs - (at & 1));
    let before = folded(words(&message));
    let (addr_delta, port_delta) = deltas(key, to);
    message[l4..l4 + 4].copy_from_slice(&[to.sport, to.dport].concat());
    message[addrs..addrs + len].copy_from_slice(&to.saddr.widen()[..len]);
    message[addrs + len..addrs + 2 * len].copy_from_slice(&to.daddr.widen()[..len]);
    let delta = if len == 4 {
        // The header mends itself, so the message's sum knows of the ports alone.
        let header = usize::from(message[at] & 15) * 4;
        let old = folded(words(&data[data.len() - message.len()..][at..at + header]));
        let check = [message[at + 10], message[at + 11]];
        message[at + 10..at + 12].copy_from_slice(&checksum::adjust(check, addr_delta));
        assert_eq!(
            folded(words(&message[at..at + header])),
            old,
            "quoted header"
        );
        port_delta
    } else {
        checksum::fold(u32::from(addr_delta) + u32::from(port_delta))
    };
    // The checksum of the whole, wherever it stands, takes the difference away.
    let check = checksum::adjust([0xff, 0xff], delta);
    let after = folded(words(&message) + words(&check));
    assert_eq!(after, before, "message");
}
