//! What is done with flows that a policy is about, by mode.

use fsm_fastpath::{config::DpiMode, dpi::Verdict};

use crate::{
    frame::{SYN, icmp},
    recognise::{GET, OK},
    talk::{C, D, Talk, policies},
};

const NO_HTTP: &str = "[[dpi.policy]]\napps = [\"http\"]\naction = \"deny\"\n";
const NO_8080: &str = "[[dpi.policy]]\nports = [\"any/8080\"]\naction = \"deny\"\n";
const TELL_HTTP: &str = "[[dpi.policy]]\napps = [\"http\"]\naction = \"violate\"\n";

#[test]
fn protect_resets_what_is_denied_by_its_protocol() {
    let mut talk = Talk::new(DpiMode::Protect, NO_HTTP);
    assert_eq!(talk.open(), Verdict::Pass);
    assert_eq!(talk.say(C, &GET[..10]), Verdict::Pass);
    assert_eq!(talk.say(C, &GET[10..]), Verdict::Reset);
    assert_eq!(talk.say(C, b"more"), Verdict::Reset);
    assert_eq!(talk.say(D, OK), Verdict::Reset);
    assert_eq!(talk.violations(), [(0, Some("http"), true)]);
    assert_eq!(talk.apps().len(), 1);
    assert_eq!(talk.engine.buffered(), 0);
    talk.tick(61);
    assert_eq!(talk.sessions(), 0);
}

#[test]
fn protect_stops_what_is_denied_by_its_port_at_once() {
    let mut talk = Talk::new(DpiMode::Protect, NO_8080);
    assert_eq!(talk.segment(C, SYN, 1, b""), Verdict::Reset);
    assert_eq!(talk.datagram(C, b"hello"), Verdict::Deny);
    assert_eq!(talk.violations(), [(0, None, true), (0, None, true)]);
    // Another try is another flow.
    assert_eq!(talk.segment(C, SYN, 1, b""), Verdict::Reset);
    assert_eq!(talk.violations().len(), 2);
    assert_eq!(talk.segment(C, SYN, 2, b""), Verdict::Reset);
    assert_eq!(talk.violations().len(), 3);
}

#[test]
fn monitor_tells_and_learn_does_not() {
    for (mode, want) in [
        (DpiMode::Monitor, vec![(0, Some("http"), false)]),
        (DpiMode::Learn, vec![]),
    ] {
        let mut talk = Talk::new(mode, NO_HTTP);
        talk.open();
        assert_eq!(talk.say(C, GET), Verdict::Pass);
        assert_eq!(talk.say(D, OK), Verdict::Allow);
        assert_eq!(talk.violations(), want);
        assert_eq!(talk.apps().len(), 1);
    }
    let mut talk = Talk::new(DpiMode::Off, NO_HTTP);
    assert_eq!(talk.open(), Verdict::Allow);
    assert_eq!(talk.sessions(), 0);
}

#[test]
fn violate_tells_once_and_lets_go_on() {
    let mut talk = Talk::new(DpiMode::Protect, TELL_HTTP);
    talk.open();
    talk.say(C, GET);
    assert_eq!(talk.say(D, OK), Verdict::Allow);
    assert_eq!(talk.say(C, GET), Verdict::Allow);
    assert_eq!(talk.violations(), [(0, Some("http"), false)]);
}

#[test]
fn other_protocols_are_left_to_the_kernel_or_denied_at_their_first_packet() {
    let echo = icmp("10.0.0.1", "20.0.0.2", 8).bytes();
    let mut talk = Talk::new(DpiMode::Protect, "");
    assert_eq!(talk.judge(&echo), Verdict::Allow);
    let mut talk = Talk::new(
        DpiMode::Protect,
        "[[dpi.policy]]\nports = [\"icmp\"]\naction = \"deny\"\n",
    );
    assert_eq!(talk.judge(&echo), Verdict::Deny);
    // Its protocol will never be known: a policy that names some is not about it.
    let mut talk = Talk::new(DpiMode::Protect, NO_HTTP);
    assert_eq!(talk.judge(&echo), Verdict::Allow);
}

#[test]
fn a_change_of_policy_is_seen_by_the_next_packet_of_a_known_flow() {
    let mut talk = Talk::new(DpiMode::Protect, "");
    talk.open();
    talk.say(C, GET);
    assert_eq!(talk.say(D, OK), Verdict::Allow);
    talk.engine.set_policy(policies(NO_HTTP));
    assert_eq!(talk.say(C, GET), Verdict::Reset);
    assert_eq!(talk.violations(), [(0, Some("http"), true)]);
    talk.engine.set_policy(policies(""));
    assert_eq!(talk.say(C, GET), Verdict::Allow);
    talk.engine.set_policy(policies(NO_HTTP));
    talk.engine.set_mode(DpiMode::Monitor);
    assert_eq!(talk.say(C, GET), Verdict::Allow);
    assert_eq!(talk.apps().len(), 1);
}

#[test]
fn what_was_denied_is_looked_at_when_it_is_no_longer() {
    let mut talk = Talk::new(DpiMode::Protect, NO_8080);
    assert_eq!(talk.open(), Verdict::Reset);
    talk.engine.set_policy(policies(NO_HTTP));
    assert_eq!(talk.say(C, b""), Verdict::Pass);
    assert_eq!(talk.say(C, GET), Verdict::Reset);
    assert_eq!(
        talk.violations(),
        [(0, None, true)],
        "the same number: told once"
    );
}
