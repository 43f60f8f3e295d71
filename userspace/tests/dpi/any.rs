//! Any bytes at all: no panic, and no limit is passed.

use fsm_fastpath::{
    config::DpiMode,
    dpi::{Engine as _, Inspector, MAX_BUFFERED_BYTES, Meta, Settings},
};
use proptest::prelude::*;

use crate::{
    frame::{ether, tcp, udp},
    talk::{META, S, policies},
};

const MOST: usize = 8;
const POLICY: &str = r#"
    [[dpi.policy]]
    apps = ["http", "dns"]
    action = "deny"
    [[dpi.policy]]
    ports = ["tcp/3"]
    action = "violate"
"#;

/// What may come: rubbish, or segments and datagrams that are right but for what they say.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"Host: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03",
        b"\x16\x03\x03\x00\x02\x02\x00",
        b"SSH-2.0-x\r\n",
        b"\x00\x11\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01",
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01",
    ]);
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        (words, 0usize..30).prop_map(|(word, len)| word[..len.min(word.len())].to_vec()),
    ];
    let port = || 1u8..5;
    let segment = (
        port(),
        port(),
        any::<u8>(),
        0u32..300,
        0u32..300,
        payload.clone(),
    )
        .prop_map(|(from, to, flags, seq, ack, payload)| {
            let frame = tcp(
                &format!("10.0.0.1:{from}"),
                &format!("10.0.0.2:{to}"),
                flags,
            );
            let seq = seq.wrapping_sub(100);
            frame.at(seq, ack).payload(&payload).bytes()
        });
    let answer = (port(), port(), any::<u8>(), 0u32..300, payload.clone()).prop_map(
        |(from, to, flags, seq, payload)| {
            let frame = tcp(
                &format!("10.0.0.2:{from}"),
                &format!("10.0.0.1:{to}"),
                flags | 0x10,
            );
            frame.at(seq, 0).payload(&payload).bytes()
        },
    );
    let datagram = (port(), port(), payload).prop_map(|(from, to, payload)| {
        let frame = udp(&format!("[fd00::1]:{from}"), &format!("[fd00::2]:{to}"));
        frame.payload(&payload).bytes()
    });
    let rubbish = prop::collection::vec(any::<u8>(), 0..120);
    let ip = prop::collection::vec(any::<u8>(), 0..120).prop_map(|mut bytes| {
        if let Some(first) = bytes.first_mut() {
            *first = 0x45;
        }
        ether(0x0800, &bytes)
    });
    prop_oneof![4 => segment, 4 => answer, 2 => datagram, 1 => rubbish, 1 => ip]
}

fn meta() -> impl Strategy<Value = Meta> {
    any::<(bool, bool)>().prop_map(|(is_reply, is_copy)| Meta {
        is_reply,
        is_copy,
        ..META
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics_and_limits_hold(
        mode in prop::sample::select(vec![DpiMode::Learn, DpiMode::Monitor, DpiMode::Protect]),
        steps in prop::collection::vec((frames(), meta(), 0u64..40, 0u8..20), 1..120),
    ) {
        let settings = Settings { mode, max_sessions: MOST, stream_depth: 1 << 10 };
        let mut engine = Inspector::new(settings, policies(POLICY), 7);
        let mut now = 5 * S;
        let (mut opened, mut ended) = (0usize, 0usize);
        let mut tell = |event| {
            if let fsm_fastpath::dpi::Event::Flow { .. } = event {
                ended += 1;
            }
        };
        for (frame, meta, seconds, what) in &steps {
            engine.judge(now, meta, frame, &mut tell);
            opened += 1;
            match what {
                0 => {
                    now += seconds * S;
                    engine.tick(now, &mut tell);
                }
                1 => engine.set_policy(policies("")),
                2 => now = now.saturating_sub(*seconds),
                _ => {}
            }
            let stats = engine.stats();
            prop_assert!(stats.sessions <= MOST);
            prop_assert_eq!(engine.sessions(now, usize::MAX).len(), stats.sessions);
            prop_assert!(engine.buffered() <= MAX_BUFFERED_BYTES);
            prop_assert!(stats.sessions > 0 || engine.buffered() == 0);
        }
        engine.finish(&mut tell);
        prop_assert_eq!((engine.stats().sessions, engine.buffered()), (0, 0));
        prop_assert!(ended <= opened);
    }
}

#[test]
fn what_is_kept_of_streams_is_bounded_by_the_engine_too() {
    let settings = Settings {
        mode: DpiMode::Monitor,
        max_sessions: 20_000,
        stream_depth: 1 << 30,
    };
    let mut engine = Inspector::new(settings, policies(""), 7);
    // The longest head that can go on for ever: a request's header.
    let part = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 1380]].concat();
    let mut most = 0;
    for n in 0..5_000u32 {
        let from = format!("10.0.{}.{}:1000", n >> 8, n & 255);
        for at in 0..11 {
            let payload = if at == 0 { &part[..] } else { &part[19..] };
            let seq = if at == 0 { 1 } else { 1400 + (at - 1) * 1380 };
            let frame = tcp(&from, "20.0.0.2:80", 0x10).at(seq, 1).payload(payload);
            engine.judge(S, &META, &frame.bytes(), &mut |_| {});
            most = most.max(engine.buffered());
        }
    }
    assert_eq!(engine.stats().sessions, 5_000);
    // The check is before a packet; one adds at most a doubled buffer.
    assert!(
        most > MAX_BUFFERED_BYTES / 2 && most < MAX_BUFFERED_BYTES + (32 << 10),
        "{most}"
    );
}
