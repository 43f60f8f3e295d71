//! How long sessions last, which of them gives way, and what an end tells.

use fsm_fastpath::{
    config::DpiMode,
    dpi::{Engine as _, Event, Inspector, Verdict},
};

use crate::{
    frame::{ACK, RST, SYN, icmp, raw, tcp, udp},
    recognise::{GET, OK},
    talk::{C, D, S, Talk},
};

/// After how many seconds of silence the only session ends.
fn lasts(talk: &mut Talk) -> u64 {
    assert_eq!(talk.sessions(), 1);
    let start = talk.now;
    while talk.sessions() > 0 {
        talk.tick(1);
    }
    (talk.now - start) / S
}

/// Bytes of a session without the state of its inspection.
const _: () = assert!(Inspector::SESSION_BYTES < 400);

#[test]
fn timeouts_by_state() {
    let new = || Talk::new(DpiMode::Monitor, "");
    let opened = || {
        let mut talk = new();
        talk.open();
        talk
    };
    let mut talk = new();
    talk.segment(C, SYN, 1, b"");
    assert_eq!(lasts(&mut talk), 20, "opening");
    assert_eq!(lasts(&mut opened()), 30, "no data");
    let mut talk = opened();
    talk.say(C, GET);
    assert_eq!(lasts(&mut talk), 1200, "active");
    let mut talk = opened();
    talk.say(C, GET);
    talk.segment(C, ACK | 1, talk.next[C], b"");
    assert_eq!(lasts(&mut talk), 90, "half closed");
    let mut talk = opened();
    talk.close();
    assert_eq!(lasts(&mut talk), 15, "closing");
    let mut talk = opened();
    talk.say(C, GET);
    talk.segment(D, RST, talk.next[D], b"");
    assert_eq!(lasts(&mut talk), 15, "reset");
    let mut talk = opened();
    talk.say(C, GET);
    talk.segment(D, RST, talk.next[D].wrapping_add(1 << 20), b"");
    assert_eq!(lasts(&mut talk), 1200, "a wild RST changes nothing");
    for (frame, seconds) in [
        (udp("10.0.0.1:1", "10.0.0.2:2"), 30),
        (icmp("10.0.0.1", "10.0.0.2", 8), 5),
        (icmp("fd00::1", "fd00::2", 128), 5),
        (raw("10.0.0.1", "10.0.0.2", 47), 15),
    ] {
        let mut talk = new();
        talk.judge(&frame.bytes());
        assert_eq!(lasts(&mut talk), seconds, "{:?}", frame.l4);
    }
}

#[test]
fn packets_put_the_end_off() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    for _ in 0..20 {
        talk.datagram(C, b"hello");
        talk.tick(29);
    }
    assert_eq!(talk.sessions(), 1);
    assert_eq!(lasts(&mut talk), 1);
    assert_eq!(talk.ended(), [[20, 0]]);
    // A pause longer than the wheel.
    talk.datagram(C, b"hello");
    talk.tick(1 << 40 >> 10);
    assert_eq!(talk.sessions(), 0);
}

#[test]
fn a_new_connection_of_the_same_tuple_is_a_new_session() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    for _ in 0..2 {
        talk.open();
        talk.say(C, GET);
        assert_eq!(talk.say(D, OK), Verdict::Allow);
        talk.close();
        // Closed: any other sequence number opens anew.
        talk.segment(C, SYN, 99, b"");
        assert_eq!(talk.sessions(), 1);
        talk.tick(60);
    }
    assert_eq!(talk.ended(), [[5, 3], [1, 0], [5, 3], [1, 0]]);
    assert_eq!(talk.apps().len(), 2);
    // A forged SYN does not end what lives; after a long silence it may be a new one.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    talk.say(C, &GET[..9]);
    talk.segment(C, SYN, 99, b"");
    talk.say(C, &GET[9..]);
    talk.say(D, OK);
    assert_eq!((talk.ended().len(), talk.apps().len()), (0, 1));
    talk.now += 31 * S;
    talk.segment(C, SYN, 99, b"");
    assert_eq!(talk.ended().len(), 1);
}

#[test]
fn a_client_that_tries_again_is_followed_at_the_number_that_was_taken() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.segment(C, SYN, 1000, b"");
    talk.segment(C, SYN, 99_000, b"");
    talk.next = [1001, 500];
    talk.segment(D, SYN | ACK, 499, b"");
    talk.say(C, GET);
    assert_eq!(talk.say(D, OK), Verdict::Allow);
    assert_eq!(talk.apps()[0].0, "http");
}

#[test]
fn data_of_a_syn_counts_once_taken_or_not() {
    for taken in [0, 10] {
        let mut talk = Talk::new(DpiMode::Monitor, "");
        talk.segment(C, SYN, 999, &GET[..10]);
        talk.next = [1000 + taken, 500];
        talk.segment(D, SYN | ACK, 499, b"");
        talk.say(C, &GET[taken as usize..]);
        assert_eq!(talk.say(D, OK), Verdict::Allow);
        let info = "method=GET host=example.org path=/a user_agent=t/1 version=1.1 status=200";
        assert_eq!(
            talk.apps(),
            [("http", info.to_owned())],
            "{taken} bytes taken"
        );
    }
}

#[test]
fn the_client_is_who_opened_it() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    let [client, server] = talk.ends;
    let answer = tcp(server, client, SYN | ACK).bytes();
    talk.judge(&answer);
    let view = &talk.engine.sessions(talk.now, 9)[0];
    assert_eq!([view.client, view.server], talk.sockets());
    assert_eq!(view.packets, [0, 1]);
}

#[test]
fn a_flood_of_syns_takes_the_place_of_its_like_only() {
    let mut talk = Talk::of(DpiMode::Monitor, "", 64);
    talk.open();
    talk.say(C, &GET[..5]);
    for n in 0..1000 {
        let from = format!("10.9.{}.{}:1000", n >> 8, n & 255);
        talk.judge(&tcp(&from, "20.0.0.2:8080", SYN).bytes());
        assert!(talk.engine.stats().sessions <= 64);
    }
    let stats = talk.engine.stats();
    assert_eq!(
        (stats.sessions, stats.evicted, stats.no_room),
        (64, 1000 - 63, 0)
    );
    assert!(talk.events.is_empty(), "no event a packet");
    talk.say(C, &GET[5..]);
    assert_eq!(talk.say(D, OK), Verdict::Allow);
}

#[test]
fn a_table_of_answered_sessions_has_no_room() {
    let mut talk = Talk::of(DpiMode::Protect, "", 4);
    for n in 0..6 {
        let (client, server) = (format!("10.0.0.{n}:1"), "20.0.0.2:53");
        talk.judge(&udp(&client, server).bytes());
        assert_eq!(talk.judge(&udp(server, &client).bytes()), Verdict::Pass);
    }
    let stats = talk.engine.stats();
    assert_eq!((stats.sessions, stats.evicted, stats.no_room), (4, 0, 4));
    talk.tick(60);
    assert_eq!((talk.sessions(), talk.ended().len()), (0, 4));
}

#[test]
fn what_is_over_makes_room_without_a_tick() {
    let mut talk = Talk::of(DpiMode::Monitor, "", 64);
    for n in 0..2000 {
        let client = format!("10.0.{}.{}:1", n >> 8, n & 255);
        for (from, to) in [(&client[..], "20.0.0.2:53"), ("20.0.0.2:53", &client)] {
            talk.judge(&udp(from, to).bytes());
        }
        // Two a second at most live for 31 seconds.
        talk.now += S / 2;
    }
    let stats = talk.engine.stats();
    assert_eq!((stats.evicted, stats.no_room), (0, 0));
    assert_eq!(talk.ended().len(), 2000 - stats.sessions);
}

#[test]
fn finish_tells_what_is_open() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    talk.say(C, GET);
    talk.engine.finish(&mut |event| talk.events.push(event));
    assert_eq!(talk.apps()[0].0, "http");
    assert_eq!(talk.ended(), [[3, 1]]);
    let Some(Event::Flow { app, bytes, .. }) = talk.events.last() else {
        panic!("{:?}", talk.events);
    };
    assert_eq!(
        (*app, *bytes),
        (Some("http"), [54 * 3 + GET.len() as u64, 54])
    );
}
