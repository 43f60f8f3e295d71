//! Strategies: frames as a network may carry them.

use std::net::{IpAddr, SocketAddr};

use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::frame::{ACK, FIN, Frame, L4, RST, SYN, ext, tcp};

/// Flags that a TCP may send.
const FLAGS: [u8; 8] = [
    SYN,
    SYN | ACK,
    ACK,
    ACK | 8,
    FIN | ACK,
    RST,
    RST | ACK,
    SYN | 0xc0,
];

fn addrs(v6: bool) -> BoxedStrategy<(IpAddr, IpAddr)> {
    if v6 {
        any::<([u8; 16], [u8; 16])>()
            .prop_map(|(s, d)| (s.into(), d.into()))
            .boxed()
    } else {
        any::<([u8; 4], [u8; 4])>()
            .prop_map(|(s, d)| (s.into(), d.into()))
            .boxed()
    }
}

fn l4() -> impl Strategy<Value = L4> {
    prop_oneof![
        (select(&FLAGS[..]), vec(any::<[u8; 4]>(), 0..=10)).prop_map(|(flags, words)| L4::Tcp {
            flags,
            options: nops(words.concat())
        }),
        any::<bool>().prop_map(|sum| L4::Udp { sum }),
        (any::<u8>(), any::<u8>()).prop_map(|(kind, code)| L4::Icmp(kind, code)),
    ]
}

/// TCP and IPv4 options that mean nothing, of any bytes' number.
fn nops(bytes: Vec<u8>) -> Vec<u8> {
    vec![1; bytes.len()]
}

/// Extension headers in any order; hop-by-hop first, for etherparse wants it there.
fn exts() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let one = (select(&[43u8, 51, 60][..]), 1usize..=4)
        .prop_map(|(kind, units)| ext(kind, if kind == 51 { units * 8 + 8 } else { units * 8 }));
    (option::of(1usize..=3), vec(one, 0..=4)).prop_map(|(hop_by_hop, mut rest)| {
        if let Some(units) = hop_by_hop {
            rest.insert(0, ext(0, units * 8));
        }
        rest
    })
}

/// Whole frames of either family with up to two tags, options and extension headers.
pub fn frame() -> impl Strategy<Value = Frame> {
    any::<bool>().prop_flat_map(|v6| {
        let tags = vec((select(&[0x8100u16, 0x88a8][..]), 1u16..4095), 0..=2);
        let net = (
            addrs(v6),
            any::<[u16; 2]>(),
            0u8..=10,
            exts(),
            any::<u8>(),
            any::<u16>(),
        );
        (tags, net, l4(), vec(any::<u8>(), 0..64)).prop_map(
            move |(tags, ((src, dst), ports, words, exts, ttl, id), l4, payload)| Frame {
                tags,
                src: SocketAddr::new(src, ports[0]),
                dst: SocketAddr::new(dst, ports[1]),
                ttl,
                options: if v6 {
                    Vec::new()
                } else {
                    vec![1; usize::from(words) * 4]
                },
                id,
                exts: if v6 { exts } else { Vec::new() },
                // Echo: other types have headers that etherparse wants whole.
                l4: match l4 {
                    L4::Icmp(..) => L4::Icmp(if v6 { 128 } else { 8 }, 0),
                    // Over IPv6 there is no UDP without a checksum.
                    L4::Udp { .. } if v6 => L4::Udp { sum: true },
                    other => other,
                },
                payload: [vec![0; 4], payload].concat(),
                ..tcp("0.0.0.0:0", "0.0.0.0:0", SYN)
            },
        )
    })
}

/// Frames of TCP and UDP without tags: what rewrites are for.
pub fn translatable() -> impl Strategy<Value = Frame> {
    frame().prop_filter_map("has ports", |frame| {
        matches!(frame.l4, L4::Tcp { .. } | L4::Udp { .. }).then(|| Frame {
            tags: Vec::new(),
            ..frame
        })
    })
}

/// Frames with a few bytes changed, cut or appended.
pub fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6);
    (
        frame(),
        changes,
        option::of(any::<proptest::sample::Index>()),
        vec(any::<u8>(), 0..8),
    )
        .prop_map(|(frame, changes, cut, tail)| {
            let mut bytes = frame.bytes();
            for (at, value) in changes {
                // Mostly the headers.
                let at = at.index(bytes.len().min(80));
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            [bytes, tail].concat()
        })
}
