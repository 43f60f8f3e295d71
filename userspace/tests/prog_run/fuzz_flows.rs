//! The programs and the host's build of the packet logic on the same mutated frames, with live translated
//! flows, half-open and settled, both ways: verdict and bytes agree. The same frames each time, unless
//! `FSM_SOAK` is set: then many more, and others each time.

use std::time::{SystemTime, UNIX_EPOCH};

use fsm_common::{maps::TIMEOUT_SLOTS, nat::dir, policy::acl, reason::Reason};

use crate::{
    fuzz::Random,
    support::{
        Hook, LO, Node, alone,
        frame::{ACK, FIN, Frame, L4, RST, SYN, TCP, UDP, ext, fragment_header, icmp, tcp, udp},
        model::{Fate, Model},
        seen,
    },
};

const FRAMES: usize = 20_000;
const SOAK_FRAMES: usize = 4_000_000;
/// Frames after which flows that were reset or evicted live again.
const ROUND: usize = 250;

struct Case {
    app: &'static str,
    /// The app's second address and port, whose flows stay half-open.
    shy: &'static str,
    server: &'static str,
    gateway: &'static str,
    router: &'static str,
    denied: &'static str,
}

const CASES: [Case; 2] = [
    Case {
        app: "10.1.0.2:40000",
        shy: "10.1.0.3:40001",
        server: "20.0.0.2:80",
        gateway: "10.0.0.1:15001",
        router: "77.0.0.1:0",
        denied: "20.0.0.66:80",
    },
    Case {
        app: "[fd10:1::2]:40000",
        shy: "[fd10:1::3]:40001",
        server: "[fd20::2]:80",
        gateway: "[fd10::1]:15001",
        router: "[fd77::1]:0",
        denied: "[fd20::66]:80",
    },
];

/// Flows of either family: TCP settled and half-open, UDP.
fn live(node: &mut Node) {
    for case in &CASES {
        let Case {
            app,
            shy,
            server,
            gateway,
            ..
        } = case;
        for (hook, frame) in [
            (Hook::TcIn, tcp(app, server, SYN).at(100, 0)),
            (Hook::TcOut, tcp(gateway, app, SYN | ACK).at(700, 101)),
            (Hook::TcIn, tcp(app, server, ACK).at(101, 701)),
            (Hook::TcIn, tcp(shy, server, SYN).at(100, 0)),
            (Hook::TcIn, udp(app, server)),
            (Hook::TcOut, udp(gateway, app)),
            (Hook::TcIn, udp(shy, server)),
        ] {
            node.raw(hook, LO, &frame.bytes());
        }
    }
}

/// Good frames of those flows, and of none.
fn seeds() -> Vec<(Hook, Vec<u8>)> {
    let mut seeds = Vec::new();
    for case in &CASES {
        let Case {
            app,
            shy,
            server,
            gateway,
            router,
            denied,
        } = case;
        let is_v6 = app.starts_with('[');
        let mut ways = Vec::new();
        for end in [app, shy] {
            ways.push((Hook::TcIn, *end, *server));
            ways.push((Hook::TcOut, *gateway, *end));
        }
        ways.push((Hook::TcOut, *app, *server));
        ways.push((Hook::TcIn, *app, *denied));
        for (hook, src, dst) in ways {
            let segment = |flags| tcp(src, dst, flags).at(101, 701);
            let mut frames: Vec<Frame> = [SYN, ACK, ACK | 8, FIN | ACK, RST].map(segment).into();
            frames.push(segment(ACK).payload(&[7; 33]));
            frames.push(Frame {
                l4: L4::Tcp {
                    flags: SYN,
                    options: vec![2, 4, 5, 180, 1, 3, 3, 7],
                },
                ..segment(SYN)
            });
            frames.push(udp(src, dst));
            frames.push(udp(src, dst).payload(&[9; 121]));
            if is_v6 {
                frames.push(segment(ACK).ext(ext(0, 8)).ext(ext(43, 24)).ext(ext(60, 8)));
                frames.push(
                    udp(src, dst)
                        .ext(fragment_header(1, 0, false))
                        .ext(ext(51, 16)),
                );
            } else {
                frames.push(Frame {
                    options: vec![1; 12],
                    ..segment(ACK)
                });
                frames.push(Frame {
                    options: vec![1; 40],
                    ..udp(src, dst)
                });
                frames.push(udp(src, dst).without_sum());
            }
            for frame in frames {
                seeds.push((hook, frame.bytes()));
                seeds.push((hook, frame.clone().tag(0x8100, 5).bytes()));
                seeds.push((hook, frame.clone().tag(0x88a8, 7).tag(0x8100, 5).bytes()));
                for part in frame.payload(&[3; 64]).fragments(24) {
                    seeds.push((hook, part));
                }
            }
        }
        // Errors about what the gateway's side saw of the app's packets, and about what the app saw.
        for (hook, from, to, quoted) in [
            (Hook::TcOut, gateway, app, tcp(app, gateway, ACK)),
            (
                Hook::TcOut,
                router,
                app,
                tcp(app, gateway, ACK).payload(&[1; 60]),
            ),
            (Hook::TcOut, router, shy, udp(shy, gateway)),
            (Hook::TcIn, app, server, tcp(server, app, ACK)),
            (Hook::TcIn, app, server, udp(server, app)),
            (Hook::TcIn, app, router, tcp(app, server, ACK)),
        ] {
            let host = |socket: &str| {
                socket
                    .parse::<std::net::SocketAddr>()
                    .unwrap()
                    .ip()
                    .to_string()
            };
            let kind = if is_v6 { 2 } else { 3 };
            let quote = &quoted.bytes()[14..];
            for len in [quote.len(), 20 + 8, 40 + 8, 40 + 3] {
                let payload = [&[0, 0, 5, 0], &quote[..len.min(quote.len())]].concat();
                let error = icmp(&host(from), &host(to), kind).payload(&payload);
                seeds.push((hook, error.bytes()));
                seeds.push((hook, error.tag(0x8100, 9).bytes()));
            }
        }
    }
    seeds
}

/// A frame with some bytes changed, lengths that lie, cut or continued.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = seed.to_vec();
    // Most keep their flow.
    for _ in 0..[0, 0, 1, 1, 2, 4][random.below(6)] {
        let at = 12 + random.below(frame.len().clamp(14, 140) - 12);
        if let Some(byte) = frame.get_mut(at) {
            *byte = match random.below(3) {
                0 => random.byte(),
                1 => *byte ^ 1 << random.below(8),
                _ => [0, 1, 4, 6, 17, 44, 58, 0x45, 0x60, 0x81, 0xff][random.below(11)],
            };
        }
    }
    // Fields of lengths, offsets and fragments.
    if random.below(4) == 0 {
        let at = [16, 18, 20, 22, 24, 38, 46, 54, 56, 58, 60, 70][random.below(12)];
        if at + 2 <= frame.len() {
            let value = match random.below(4) {
                0 => 0,
                1 => 0xffff,
                2 => random.below(200) as u16,
                _ => u16::from_be_bytes([frame[at], frame[at + 1]])
                    .wrapping_add(random.below(9) as u16)
                    .wrapping_sub(4),
            };
            frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
    }
    match random.below(12) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => frame.extend((0..random.below(60)).map(|_| random.byte())),
        _ => {}
    }
    // The kernel takes no shorter skb of an IP type for a test run.
    let least = match frame[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    };
    frame.resize(frame.len().max(least), 0);
    frame
}

#[test]
fn programs_and_host_agree_on_what_becomes_of_any_frame() {
    alone(|node| {
        let (frames, seed) = match std::env::var_os("FSM_SOAK") {
            None => (FRAMES, 0x2545_f491_4f6c_dd1d),
            Some(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                (SOAK_FRAMES, now.as_nanos() as u64 | 1)
            }
        };
        for (any, case) in ["0.0.0.0:0", "[::]:0"].iter().zip(&CASES) {
            for proto in [TCP, UDP] {
                node.nat(dir::EGRESS, proto, any, &[case.gateway]);
            }
        }
        let denied = CASES.map(|case| case.denied.parse::<std::net::SocketAddr>().unwrap().ip());
        for addr in denied {
            node.acl(&addr.to_string(), 0, TCP, acl::DENY);
        }
        for state in 0..TIMEOUT_SLOTS {
            node.maps.timeout.set(state, 3_600_000_000_000, 0).unwrap();
        }
        let octets = denied.map(|addr| match addr {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        });
        let (model, seeds, mut random) = (Model::new(node, octets), seeds(), Random(seed));
        let (mut translated, mut dropped, mut skipped) = (0, 0, 0);
        for number in 0..frames {
            if number % ROUND == 0 {
                live(node);
            }
            let (home, whole) = &seeds[random.below(seeds.len())];
            let frame = mutate(whole, &mut random);
            // Where it belongs, mostly.
            let hook = match random.below(8) {
                0 => Hook::Xdp,
                1 => [Hook::TcIn, Hook::TcOut][random.below(2)],
                _ => *home,
            };
            let known = model.ask(node, hook, &frame);
            let no_port = node.count(Reason::NatNoPort);
            let (action, out, _) = node.raw(hook, LO, &frame);
            if node.count(Reason::NatNoPort) != no_port {
                skipped += 1;
                continue;
            }
            let fate = known.fate(node, &frame);
            let found = if action == seen::drop_action(hook) {
                dropped += 1;
                assert_eq!(out, frame, "changed and dropped");
                None
            } else {
                assert_eq!(action, seen::pass_action(hook), "{hook:?} {frame:02x?}");
                translated += usize::from(out != frame);
                Some(&out)
            };
            let expected = match &fate {
                Fate::Dropped(_) => None,
                Fate::Goes(bytes) => Some(bytes),
            };
            assert_eq!(
                found, expected,
                "frame {number} of seed {seed:#x} at {hook:?}: {fate:?}, {known:?}\n{frame:02x?}"
            );
        }
        // It was worth it.
        assert!(
            translated * 5 > frames && dropped * 20 > frames && skipped * 100 < frames,
            "{translated} translated, {dropped} dropped, {skipped} without a port, of {frames}"
        );
        if frames != FRAMES {
            println!(
                "{frames} frames of seed {seed:#x}: {translated} translated, {dropped} dropped"
            );
        }
    });
}
