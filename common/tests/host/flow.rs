//! Flow entries: the two directions find each other.

use fsm_common::flow::{Address, Flow, FlowKey, nf};
use proptest::prelude::*;

fn key<A: Address>(addrs: [[u8; 16]; 2], [sport, dport]: [[u8; 2]; 2], proto: u8) -> FlowKey<A> {
    FlowKey {
        saddr: A::narrow(addrs[0]),
        daddr: A::narrow(addrs[1]),
        sport,
        dport,
        proto,
        pad: [0; 3],
    }
}

fn entry<A: Address>(key: &FlowKey<A>) -> Flow<A> {
    let any = [0xaa; 16];
    let mut flow = Flow {
        last_seen_ns: 1,
        packets: 1,
        bytes: 1,
        to_saddr: A::narrow(any),
        to_daddr: A::narrow(any),
        to_sport: [1; 2],
        to_dport: [1; 2],
        addr_delta: 1,
        port_delta: 1,
        generation: 1,
        ifindex: 1,
        born: 1,
        seq_end: 1,
        acked: 1,
        window: 1,
        nf: 0xff,
        tcp: 1,
    };
    flow.start(key, 7, 5 << 30 | 3);
    flow
}

/// As the kernel stores a translated flow: both entries, each the other's pair.
fn pair<A: Address>(key: &FlowKey<A>, to: &FlowKey<A>) {
    let mut forward = entry(key);
    forward.set_translation(key, to);
    forward.nf |= nf::XNAT;
    let reply_key = forward.pair_key(key);
    assert_eq!(reply_key, to.reversed());
    let mut reply = entry(&reply_key);
    reply.set_translation(&reply_key, &key.reversed());
    assert_eq!(reply.pair_key(&reply_key), *key);
    assert_eq!(forward.translated(key), *to);
    assert_eq!(reply.translated(&reply_key), key.reversed());
    use fsm_common::checksum::opposite;
    assert_eq!(
        (reply.addr_delta, reply.port_delta),
        (opposite(forward.addr_delta), opposite(forward.port_delta))
    );
}

proptest! {
    #[test]
    fn the_directions_of_a_translated_flow_find_each_other(
        from: ([[u8; 16]; 2], [[u8; 2]; 2]), to: ([[u8; 16]; 2], [[u8; 2]; 2]), proto: u8,
    ) {
        pair::<[u8; 4]>(&key(from.0, from.1, proto), &key(to.0, to.1, proto));
        pair::<[u8; 16]>(&key(from.0, from.1, proto), &key(to.0, to.1, proto));
    }

    #[test]
    fn a_plain_flows_pair_is_the_answer(addrs: [[u8; 16]; 2], ports: [[u8; 2]; 2], proto: u8) {
        let key = key::<[u8; 16]>(addrs, ports, proto);
        prop_assert_eq!(entry(&key).pair_key(&key), key.reversed());
        prop_assert_eq!(key.reversed().reversed(), key);
        prop_assert_eq!(entry(&key).translated(&key), key);
    }

    #[test]
    fn a_redirect_is_kept_and_leaves_the_tuple_alone(ifindex: u32, mac: [u8; 6], addrs: [[u8; 16]; 2], ports: [[u8; 2]; 2]) {
        redirect::<[u8; 4]>(ifindex, mac, &key(addrs, ports, 6))?;
        redirect::<[u8; 16]>(ifindex, mac, &key(addrs, ports, 6))?;
    }

    #[test]
    fn addresses_widen_and_narrow(v4: [u8; 4], v6: [u8; 16]) {
        prop_assert_eq!(<[u8; 4]>::narrow(v4.widen()), v4);
        prop_assert_eq!(&v4.widen()[4..], &[0; 12]);
        prop_assert_eq!(<[u8; 16]>::narrow(v6.widen()), v6);
        prop_assert_eq!(<[u8; 4]>::from_head(v4.head()), v4);
        prop_assert_eq!(&<[u8; 16]>::from_head(v4)[..4], &v4[..]);
        prop_assert!(v4.same(&v4) && v6.same(&v6));
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum()
        };
        prop_assert_eq!((v4.sum(), v6.sum()), (words(&v4), words(&v6)));
    }

    #[test]
    fn same_is_equality(a: [u8; 16], at in 0usize..16, value: u8) {
        let mut b = a;
        b[at] = value;
        prop_assert_eq!(a.same(&b), a == b);
        let (a, b) = (<[u8; 4]>::narrow(a), <[u8; 4]>::narrow(b));
        prop_assert_eq!(a.same(&b), a == b);
    }
}

fn redirect<A: Address>(ifindex: u32, mac: [u8; 6], key: &FlowKey<A>) -> Result<(), TestCaseError> {
    let mut flow = entry(key);
    flow.set_redirect(ifindex, mac);
    prop_assert_eq!(flow.redirect(), (ifindex, mac));
    prop_assert_eq!(flow.nf, nf::ALLOW | nf::RDIR);
    prop_assert_eq!(flow.pair_key(key), key.reversed());
    flow.pass_unchanged(key);
    prop_assert_eq!(flow.nf, nf::ALLOW);
    prop_assert_eq!(flow, entry(key));
    Ok(())
}

#[test]
fn a_new_entry_has_no_past() {
    let key = key::<[u8; 4]>([[1; 16], [2; 16]], [[3; 2], [4; 2]], 6);
    let flow = entry(&key);
    assert_eq!(
        (flow.packets, flow.bytes, flow.ifindex, flow.tcp, flow.nf),
        (0, 0, 0, 0, nf::ALLOW)
    );
    assert_eq!(
        (flow.generation, flow.last_seen_ns, flow.age(7 << 30)),
        (7, 5 << 30 | 3, 2)
    );
    assert_eq!((flow.addr_delta, flow.port_delta), (0, 0));
    assert_eq!(
        (flow.seq_end, flow.acked, flow.window, flow.scale()),
        (0, 0, 0, 0)
    );
}

#[test]
fn sizes_are_those_of_the_layout() {
    // A change here needs a higher maps::LAYOUT.
    assert_eq!(
        (
            size_of::<FlowKey<[u8; 4]>>(),
            size_of::<FlowKey<[u8; 16]>>()
        ),
        (16, 40)
    );
    assert_eq!(
        (size_of::<Flow<[u8; 4]>>(), size_of::<Flow<[u8; 16]>>()),
        (64, 88)
    );
}

#[test]
fn bits_of_nf_do_not_overlap() {
    let bits = [
        nf::ALLOW,
        nf::XNAT,
        nf::RDIR,
        nf::REPLY,
        nf::INBOUND,
        nf::PROVISIONAL,
        nf::TRUST,
    ];
    assert_eq!(
        bits.iter().fold(0, |all, bit| all | bit).count_ones() as usize,
        bits.len()
    );
    assert_eq!(
        (nf::ALLOW, nf::XNAT, nf::RDIR),
        (1, 2, 4),
        "the seed's numbers"
    );
}

#[test]
fn local_scopes_are_never_steered() {
    let v4 = |text: &str| {
        text.parse::<std::net::Ipv4Addr>()
            .unwrap()
            .octets()
            .is_local_scope()
    };
    for local in [
        "0.0.0.0",
        "127.0.0.1",
        "127.0.0.6",
        "169.254.1.1",
        "224.0.0.251",
        "239.255.255.255",
        "255.255.255.255",
    ] {
        assert!(v4(local), "{local}");
    }
    for steered in [
        "1.0.0.0",
        "10.0.0.2",
        "169.253.1.1",
        "169.255.0.1",
        "192.168.0.1",
        "223.255.255.255",
    ] {
        assert!(!v4(steered), "{steered}");
    }
    let v6 = |text: &str| {
        text.parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
            .is_local_scope()
    };
    for local in ["::", "::1", "fe80::1", "febf::1", "ff02::1", "ff05::2"] {
        assert!(v6(local), "{local}");
    }
    for steered in ["fd10::2", "2001:db8::1", "fec0::1", "64:ff9b::1"] {
        assert!(!v6(steered), "{steered}");
    }
}
