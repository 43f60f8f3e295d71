//! Flows under inspection: who gets a packet, and what a verdict does.

use fsm_common::{
    escalate::{Escalated, Judged, MARK_JUDGED, TAKEN, WorkerWord, taken as bits, verdict},
    flow::{FlowKey, nf},
    maps::{feature, iface_flag, role},
    policy::acl,
    reason::Reason,
    stats,
};

use crate::{
    nat::{Case, taken},
    support::{
        Hook, LO, Node, alone,
        frame::{ACK, FIN, RST, SYN, TCP, check_sums, tcp, udp},
    },
};

const NEW: &[Reason] = &[Reason::FlowNew];
const POLICY: u32 = 77;

fn now_ns() -> u64 {
    fsm_fastpath::control::sweep::now_ns()
}

/// Inspection on, with one worker that lives.
fn inspect(node: &mut Node, features: u32) {
    node.set(|settings| {
        settings.features |= feature::INSPECT | features;
        (settings.dpi_policy, settings.dpi_ifindex) = (POLICY, LO);
        (settings.workers, settings.dpi_frame) = (1, 1514);
    });
    alive(node, now_ns());
}

fn alive(node: &mut Node, alive_ns: u64) {
    node.maps.worker.set(0, WorkerWord { alive_ns }, 0).unwrap();
}

/// What the last packet was taken with.
fn label(node: &mut Node) -> Escalated {
    let cpus = node.maps.escalated.get(&0, 0).unwrap();
    let found = cpus.iter().filter(|label| label.magic == TAKEN);
    let label = *found.max_by_key(|l| l.at_ns).expect("no packet was taken");
    let none = aya::maps::PerCpuValues::try_from(vec![Escalated::ZERO; cpus.len()]).unwrap();
    node.maps.escalated.set(0, none, 0).unwrap();
    assert!(now_ns() - label.at_ns < 1_000_000_000);
    label
}

fn parts(text: &str) -> (std::net::IpAddr, [u8; 2]) {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    (socket.ip(), socket.port().to_be_bytes())
}

/// A worker's word on one direction.
fn say(node: &mut Node, src: &str, dst: &str, proto: u8, label: &Escalated, verdict: u8) {
    let judged = Judged {
        policy: label.policy,
        born: label.born,
        verdict,
        pad: [0; 7],
    };
    let ((saddr, sport), (daddr, dport)) = (parts(src), parts(dst));
    use std::net::IpAddr::{V4, V6};
    match (saddr, daddr) {
        (V4(s), V4(d)) => {
            let key = FlowKey {
                saddr: s.octets(),
                daddr: d.octets(),
                sport,
                dport,
                proto,
                pad: [0; 3],
            };
            node.maps.verdict4.insert(key, judged, 0).unwrap();
        }
        (V6(s), V6(d)) => {
            let key = FlowKey {
                saddr: s.octets(),
                daddr: d.octets(),
                sport,
                dport,
                proto,
                pad: [0; 3],
            };
            node.maps.verdict6.insert(key, judged, 0).unwrap();
        }
        _ => unreachable!(),
    }
}

fn under_inspection(node: &Node, tuple: &str) -> bool {
    node.flows()[tuple].nf & nf::INSPECT != 0
}

/// A handshake whose packets all go by a worker, and back.
fn open(node: &mut Node, case: &Case) -> (String, String, Escalated) {
    let Case {
        app,
        server,
        gateway,
        ..
    } = case;
    let there = format!("tcp {app} > {server}");
    let back = format!("tcp {gateway} > {app}");
    let syn = tcp(app, server, SYN).at(100, 0);
    let out = node
        .run(Hook::TcIn, LO, &syn.bytes())
        .taken(Some(&there), NEW);
    assert_eq!(out, syn.bytes(), "as the app has sent it");
    let first = label(node);
    given_back(node, &syn.bytes(), &syn.with_tuple(app, gateway).bytes());

    let answer = tcp(gateway, app, SYN | ACK).at(500, 101);
    let out = node
        .run(Hook::TcOut, LO, &answer.bytes())
        .taken(Some(&back), &[]);
    assert_eq!(
        out,
        answer.clone().with_tuple(server, app).bytes(),
        "as the app gets it"
    );
    let second = label(node);
    assert_eq!(second.hash, first.hash, "both directions meet one worker");
    assert_eq!(
        (first.flags & bits::REPLY, second.flags & bits::REPLY),
        (0, bits::REPLY)
    );
    assert_eq!(second.born, first.born);
    // On its way out it was translated before.
    node.mark = MARK_JUDGED;
    let seen = node.run(Hook::TcOut, LO, &out);
    node.mark = 0;
    assert_eq!(seen.mark, 0, "nobody else sees the mark");
    seen.untouched(&[]);

    let ack = tcp(app, server, ACK).at(101, 501);
    let _ = node
        .run(Hook::TcIn, LO, &ack.bytes())
        .taken(Some(&there), &[]);
    assert_eq!(label(node).hook, stats::Hook::TcIngress as u8);
    assert!(node.settled().contains_key(&there));
    (there, back, first)
}

/// A packet that comes back goes on translated; it is counted in no flow, for it was before.
fn given_back(node: &mut Node, frame: &[u8], translated: &[u8]) {
    node.mark = MARK_JUDGED;
    let (before, seen) = (node.flows(), node.run(Hook::TcIn, LO, frame));
    node.mark = 0;
    assert_eq!((seen.frame.as_slice(), seen.mark), (translated, 0));
    assert_eq!((seen.reasons.len(), &seen.flow), (0, &None));
    assert_eq!(node.flows(), before);
}

#[test]
fn an_audited_flow_goes_by_a_worker_both_ways_until_it_is_allowed() {
    taken(|node, case| {
        inspect(node, 0);
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let (there, back, word) = open(node, case);
        let data = tcp(app, server, ACK)
            .at(101, 501)
            .payload(b"GET / HTTP/1.1");
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .taken(Some(&there), &[]);
        let label = label(node);
        assert_eq!(
            Escalated {
                at_ns: word.at_ns,
                ..label
            },
            word
        );
        say(node, app, server, TCP, &word, verdict::ALLOW);
        assert!(under_inspection(node, &there));
        let allowed = &[Reason::DpiAllowed];
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&there, allowed);
        assert!(!under_inspection(node, &there));
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&there, &[]);
        // The other direction has its own word.
        let answer = tcp(gateway, app, ACK)
            .at(501, 115)
            .payload(b"HTTP/1.1 200 OK");
        let _ = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .taken(Some(&back), &[]);
        say(node, server, app, TCP, &word, verdict::ALLOW);
        let _ = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .translated(&back, allowed);
        let _ = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .translated(&back, &[]);
    });
}

#[test]
fn a_denied_flow_is_dropped_and_a_reset_one_told() {
    taken(|node, case| {
        inspect(node, 0);
        let Case { app, server, .. } = case;
        let (_, _, word) = open(node, case);
        let data = tcp(app, server, ACK).at(101, 501).payload(b"bad");
        say(node, app, server, TCP, &word, verdict::DENY);
        for _ in 0..2 {
            let seen = node.run(Hook::TcIn, LO, &data.bytes());
            assert_eq!(
                (seen.action, seen.reasons.as_slice()),
                (2, &[Reason::DpiDeny][..])
            );
        }
        say(node, app, server, TCP, &word, verdict::RESET);
        let seen = node.run(Hook::TcIn, LO, &data.bytes());
        assert_eq!(seen.reasons, [Reason::DpiReset]);
        let l4 = seen.frame.len() - 20;
        let seq = &seen.frame[l4 + 4..l4 + 8];
        assert_eq!(seq, 501u32.to_be_bytes(), "exactly what the app waits for");
        assert_eq!(
            (seen.frame[l4 + 13], check_sums(&seen.frame)),
            (RST, Ok(()))
        );
        assert_eq!(
            seen.frame[..6],
            data.bytes()[6..12],
            "to whoever has sent it"
        );
    });
}

#[test]
fn a_word_counts_for_one_flow_under_one_policy() {
    taken(|node, case| {
        inspect(node, 0);
        let Case { app, server, .. } = case;
        let (there, _, word) = open(node, case);
        let data = tcp(app, server, ACK).at(101, 501).payload(b"data");
        let earlier = Escalated {
            born: word.born.wrapping_sub(1) & 0xff_ffff,
            ..word
        };
        for stale in [
            Escalated {
                policy: POLICY - 1,
                ..word
            },
            earlier,
        ] {
            say(node, app, server, TCP, &stale, verdict::ALLOW);
            let _ = node
                .run(Hook::TcIn, LO, &data.bytes())
                .taken(Some(&there), &[]);
        }
        say(node, app, server, TCP, &word, verdict::ALLOW);
        let allowed = &[Reason::DpiAllowed];
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&there, allowed);
        // A change of anything else has it judged again, and the word still counts.
        node.set(|_| {});
        let both = &[Reason::FlowRejudged, Reason::DpiAllowed];
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&there, both);
        // Another policy of inspection, and it does not.
        node.set(|settings| settings.dpi_policy += 1);
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .taken(Some(&there), &[Reason::FlowRejudged]);
        let label = label(node);
        assert_eq!(label.policy, POLICY + 1);
        say(node, app, server, TCP, &label, verdict::ALLOW);
        // The tuple's next connection is not this one.
        let rst = tcp(app, server, RST).at(105, 0);
        let _ = node
            .run(Hook::TcIn, LO, &rst.bytes())
            .translated(&there, allowed);
        let syn = tcp(app, server, SYN).at(9000, 0);
        let (action, _, _) = node.raw(Hook::TcIn, LO, &syn.bytes());
        assert_eq!(action, 7, "taken, as a new flow");
    });
}

#[test]
fn without_a_worker_the_policy_of_failures_decides() {
    taken(|node, case| {
        inspect(node, 0);
        let Case { app, server, .. } = case;
        let (there, _, _) = open(node, case);
        let data = tcp(app, server, ACK).at(101, 501).payload(b"data");
        let too_long = now_ns() - 600_000_000;
        for dead in [0, too_long] {
            alive(node, dead);
            node.set(|settings| settings.fail_open = 1);
            let open = &[Reason::FlowRejudged, Reason::DpiNoWorkerOpen];
            let _ = node
                .run(Hook::TcIn, LO, &data.bytes())
                .translated(&there, open);
            assert!(
                under_inspection(node, &there),
                "as soon as one is there again"
            );
            node.set(|settings| settings.fail_open = 0);
            let seen = node.run(Hook::TcIn, LO, &data.bytes());
            let closed = [Reason::FlowRejudged, Reason::DpiNoWorker];
            let mut reasons = seen.reasons.clone();
            reasons.sort_by_key(|reason| closed.iter().position(|r| r == reason));
            assert_eq!((seen.action, reasons.as_slice()), (2, &closed[..]));
        }
        alive(node, now_ns());
        let _ = node
            .run(Hook::TcIn, LO, &data.bytes())
            .taken(Some(&there), &[]);
        let _ = label(node);
        node.set(|settings| settings.dpi_frame = 40);
        let seen = node.run(Hook::TcIn, LO, &data.bytes());
        assert!(
            seen.reasons.contains(&Reason::DpiTooLarge),
            "{:?}",
            seen.reasons
        );
        assert_eq!(seen.action, 2);
    });
}

#[test]
fn copies_leave_the_packet_alone() {
    taken(|node, case| {
        inspect(node, feature::INSPECT_COPY);
        let Case { app, server, .. } = case;
        let there = format!("tcp {app} > {server}");
        let syn = tcp(app, server, SYN);
        let _ = node
            .run(Hook::TcIn, LO, &syn.bytes())
            .translated(&there, NEW);
        alive(node, 0);
        let again = &[Reason::DpiNoWorkerOpen];
        node.set(|settings| settings.fail_open = 0);
        let seen = node.run(Hook::TcIn, LO, &syn.bytes());
        assert_eq!(seen.action, -1, "waits for nobody, whatever node.fail says");
        assert!(seen.reasons.contains(&again[0]), "{:?}", seen.reasons);
    });
}

#[test]
fn trusted_flows_and_the_hosts_own_are_inspected_only_if_all_are() {
    alone(|node| {
        for (app, server) in [
            ("10.1.0.2:40000", "20.0.0.2:80"),
            ("[fd10:1::2]:40000", "[fd20::2]:80"),
        ] {
            let addr = parts(server).0.to_string();
            node.acl(&addr, 0, TCP, acl::TRUSTED);
            for (features, is_taken) in [(0, false), (feature::INSPECT_ALL, true)] {
                inspect(node, features);
                let trusted = node.run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes());
                assert_eq!(trusted.action == 7, is_taken, "trusted {app} {features}");
                let own = node.run(
                    Hook::TcOut,
                    LO,
                    &udp("10.0.0.1:5000", "20.0.0.7:53").bytes(),
                );
                assert_eq!(own.action == 7, is_taken, "own {app} {features}");
                for tuple in node.flows().into_keys() {
                    node.evict(&tuple);
                }
            }
            node.set(|settings| settings.features = 0);
        }
    });
}

#[test]
fn xdp_takes_what_is_in_the_midst_of_a_connection() {
    taken(|node, case| {
        let Case { app, server, .. } = case;
        node.device(LO, role::ENDPOINT, iface_flag::ESCALATE);
        inspect(node, 0);
        let (there, _, word) = open(node, case);
        let data = tcp(app, server, ACK).at(101, 501).payload(b"data");
        let seen = node.run(Hook::Xdp, LO, &data.bytes());
        let _ = seen.taken(Some(&there), &[]);
        // Events are TC's, and so is all that nobody may take.
        let fin = tcp(app, server, FIN | ACK).at(105, 501);
        node.run(Hook::Xdp, LO, &fin.bytes()).untouched(&[]);
        alive(node, 0);
        node.run(Hook::Xdp, LO, &data.bytes()).untouched(&[]);
        alive(node, now_ns());
        say(node, app, server, TCP, &word, verdict::RESET);
        node.run(Hook::Xdp, LO, &data.bytes()).untouched(&[]);
        say(node, app, server, TCP, &word, verdict::DENY);
        node.run(Hook::Xdp, LO, &data.bytes())
            .dropped(Reason::DpiDeny);
        say(node, app, server, TCP, &word, verdict::ALLOW);
        node.run(Hook::Xdp, LO, &data.bytes())
            .untouched(&[Reason::DpiAllowed]);
        assert!(!under_inspection(node, &there));
        node.device(LO, role::ENDPOINT, 0);
    });
}
