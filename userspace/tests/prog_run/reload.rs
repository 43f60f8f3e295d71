//! Reloads while packets pass: every packet is judged by all of the old rules or by all of the new ones; and what
//! a reload leaves in the maps, after whatever came before it.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{TestRun as _, TestRunOptions};
use fsm_common::{
    maps::{name, role},
    policy::{Acl4Key, AclValue, Cidr4Key, CidrRules, CidrValue},
    reason::Reason,
};
use fsm_fastpath::{
    config,
    loader::{
        apply::{ApplyError, Kernel, apply},
        objects::program,
    },
    maps::Maps,
    model::{
        Model,
        plan::{InForce, Plan},
    },
};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{ACK, Frame, tcp},
};

/// A model of `ADDRESS [PORTS] ACTION` lines, and as many addresses and networks besides that are denied.
fn model(rules: &str, more: (u8, u32)) -> Model {
    let mut text = String::from("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n");
    for rule in rules.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let (addr, action) = (words[0], words[words.len() - 1]);
        let port = if words.len() == 3 { words[1] } else { "0" };
        text += &format!("[[acl]]\naddr = \"{addr}\"\nport = \"{port}\"\naction = \"{action}\"\n");
    }
    for i in 0..more.1 {
        let [_, _, b, c] = i.to_be_bytes();
        for net in [
            format!("{}.0.{b}.{c}", more.0),
            format!("{}.{b}.{c}.0/24", 100 + more.0),
        ] {
            text += &format!("[[acl]]\naddr = \"{net}\"\naction = \"deny\"\n");
        }
    }
    let config = config::parse(&text, Path::new("node.toml")).unwrap_or_else(|e| panic!("{e}"));
    Model::compile(&config).unwrap()
}

/// Peers that both policies deny, each by another kind of entry.
const DENIED: [&str; 7] = [
    "20.0.0.2:4444",
    "20.2.2.9:80",
    "20.3.3.3:4444",
    "20.4.4.4:443",
    "20.5.0.5:80",
    "20.6.6.6:80",
    "20.7.0.7:80",
];
/// Peers that both let in, likewise.
const PASSED: [&str; 6] = [
    "20.10.0.1:80",
    "20.11.1.1:80",
    "20.12.0.1:443",
    "20.13.3.3:7000",
    "20.14.0.1:80",
    "20.15.1.1:80",
];

const OLD: &str = "
    20.0.0.2         deny
    20.2.0.0/16      deny
    20.3.0.0/16      audit
    20.3.3.0/24 1-5000    deny
    20.3.3.0/24 6000-7000 deny
    20.4.4.4 443     deny
    20.5.0.5         deny
    20.6.0.0/16      audit
    20.6.6.0/24      deny
    20.7.0.0/24      deny

    20.10.0.0/24     deny
    20.10.0.1        audit
    20.11.0.0/16     audit
    20.12.0.1        deny
    20.12.0.1 443    audit
    20.13.0.0/16     deny
    20.13.3.0/24 7000-7100 audit
    20.14.0.0/16     audit
    20.15.0.0/16     deny
    20.15.1.0/24     audit
";
const NEW: &str = "
    20.0.0.0/24      deny
    20.2.0.0/16      audit
    20.2.2.0/24      deny
    20.3.0.0/16      deny
    20.4.4.4         deny
    20.5.0.5         audit
    20.5.0.5 80      deny
    20.6.0.0/16      deny
    20.6.6.0/24 1-5  audit
    20.7.0.7         deny

    20.11.0.0/16     deny
    20.11.1.0/24     audit
    20.12.0.0/16     deny
    20.12.0.1        audit
    20.13.3.0/24 1-6000 deny
    20.13.3.0/24 7001-7001 deny
    20.14.0.0/16     deny
    20.14.0.1        audit
    20.15.0.0/16     deny
    20.15.1.1        audit
";

/// Runs of a frame in one call.
const RUNS: u32 = 2000;

/// How many of the runs of a frame from this peer were dropped by the ACL.
fn denied(node: &mut Node, hook: Hook, peer: &str) -> u64 {
    let frame = tcp(peer, "10.1.0.2:80", ACK).bytes();
    let count = |node: &Node| -> u64 {
        let reason = node.maps.reason.get(&(Reason::AclDeny as u32), 0);
        reason.unwrap().iter().sum()
    };
    let before = count(node);
    let options = TestRunOptions {
        data_in: Some(&frame),
        repeat: RUNS,
        ..TestRunOptions::new()
    };
    let result = match hook {
        Hook::Xdp => node.objects.xdp(program::XDP).test_run(options),
        Hook::TcIn => node.objects.tc(program::TC_INGRESS).test_run(options),
        Hook::TcOut => node.objects.tc(program::TC_EGRESS).test_run(options),
    };
    result.unwrap_or_else(|e| panic!("{e:?}"));
    count(node) - before
}

#[test]
fn no_packet_meets_half_of_a_reload() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        let kernel = Kernel {
            csum_ipv6_flag: node.maps.settings().unwrap().csum_ipv6_flag,
            ..Kernel::default()
        };
        // The entries besides keep the writer at it for longer, and take each other's memory.
        let policies = || [model(OLD, (30, 3000)), model(NEW, (31, 3000))];
        let mut known = None;
        let [old, _] = policies();
        apply(&mut node.maps, &mut known, old, &kernel).unwrap_or_else(|e| panic!("{e}"));
        let (stop, mut mixed) = (AtomicBool::new(false), Vec::new());
        let bpffs = node.pins.parent().unwrap().to_owned();
        let reloads = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut maps = Maps::open(&bpffs).unwrap();
                let mut reloads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let [old, new] = policies();
                    for model in [new, old] {
                        apply(&mut maps, &mut known, model, &kernel).unwrap();
                        reloads += 1;
                    }
                }
                reloads
            });
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end && mixed.is_empty() {
                for hook in [Hook::Xdp, Hook::TcIn] {
                    let all = DENIED.map(|peer| (peer, u64::from(RUNS)));
                    for (peer, expected) in all.into_iter().chain(PASSED.map(|peer| (peer, 0))) {
                        let denied = denied(node, hook, peer);
                        if denied != expected {
                            mixed.push(format!("{hook:?} {peer}: {denied} of {RUNS} denied"));
                        }
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        assert!(mixed.is_empty(), "after {reloads} reloads: {mixed:?}");
        assert!(reloads >= 10, "{reloads} reloads in 4 s");
    });
}

/// What the maps hold, as far as [`model`] fills them.
fn entries(node: &Node) -> (usize, usize, usize) {
    let count = |map: &'static str| match map {
        name::FSM_XACL => each::<Acl4Key, AclValue>(node, map),
        name::FSM_CIDR4 => each::<Cidr4Key, CidrValue>(node, map),
        _ => each::<u32, CidrRules>(node, map),
    };
    (
        count(name::FSM_XACL),
        count(name::FSM_CIDR4),
        count(name::FSM_CIDR_SET),
    )
}

fn each<K: aya::Pod, V: aya::Pod>(node: &Node, map: &'static str) -> usize {
    let bulk = node.maps.bulk::<K, V>(map).unwrap();
    let (mut at_once, mut by_key) = (0, 0);
    bulk.each(|_, _| {
        at_once += 1;
        Ok::<_, aya::maps::MapError>(())
    })
    .unwrap();
    bulk.each_by_key(|_, _| {
        by_key += 1;
        Ok::<_, aya::maps::MapError>(())
    })
    .unwrap();
    assert_eq!(at_once, by_key, "{map}: both ways to read see the same");
    at_once
}

fn holds(node: &mut Node, model: &Model) {
    let sets: std::collections::HashSet<_> = model
        .cidr4
        .iter()
        .map(|(_, rules)| rules.list())
        .filter(|rules| rules.len() > 1)
        .collect();
    assert_eq!(
        entries(node),
        (model.acl4.len(), model.cidr4.len(), sets.len())
    );
    node.device(LO, role::UPLINK, 0);
    for peer in DENIED {
        let frame: Frame = tcp(peer, "10.1.0.2:80", ACK);
        node.run(Hook::Xdp, LO, &frame.bytes())
            .dropped(Reason::AclDeny);
    }
    for peer in PASSED {
        let frame: Frame = tcp(peer, "10.1.0.2:80", ACK);
        node.run(Hook::Xdp, LO, &frame.bytes()).untouched(&[]);
    }
}

#[test]
fn a_reload_leaves_exactly_its_entries_whoever_wrote_those_before() {
    alone(|node| {
        let (old, new) = (model(OLD, (30, 300)), model(NEW, (31, 20_000)));
        apply(&mut node.maps, &mut None, old.clone(), &Kernel::default()).unwrap();
        holds(node, &old);
        // Another daemon, which reads what is there.
        let mut known = None;
        apply(&mut node.maps, &mut known, new.clone(), &Kernel::default()).unwrap();
        holds(node, &new);
        apply(&mut node.maps, &mut known, old.clone(), &Kernel::default()).unwrap();
        holds(node, &old);
    });
}

#[test]
fn what_a_daemon_leaves_that_ends_while_it_writes_is_never_in_force_and_goes_with_the_next_reload()
{
    alone(|node| {
        let (old, new) = (model(OLD, (30, 30)), model(NEW, (31, 30)));
        let mut known = None;
        apply(&mut node.maps, &mut known, old.clone(), &Kernel::default()).unwrap();
        let known: InForce = known.unwrap();
        let plan = Plan::new(&known, &new);
        let bulk = |map| node.maps.bulk(map).unwrap();
        bulk(name::FSM_CIDR_SET).write(&plan.sets).unwrap();
        let half = |n: usize| 0..n / 2;
        let (acl, cidr) = (&plan.writes.acl4, &plan.writes.cidr4);
        let map = node.maps.bulk(name::FSM_XACL).unwrap();
        map.write(&acl[half(acl.len())]).unwrap();
        let map = node.maps.bulk(name::FSM_CIDR4).unwrap();
        map.write(&cidr[half(cidr.len())]).unwrap();
        node.device(LO, role::UPLINK, 0);
        for peer in DENIED {
            assert_eq!(denied(node, Hook::Xdp, peer), u64::from(RUNS), "{peer}");
        }
        for next in [old, new] {
            apply(&mut node.maps, &mut None, next.clone(), &Kernel::default()).unwrap();
            holds(node, &next);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_changed() {
    alone(|node| {
        let old = model(OLD, (30, 30));
        let mut known = None;
        let generation =
            apply(&mut node.maps, &mut known, old.clone(), &Kernel::default()).unwrap();
        let mut new = model(NEW, (31, 30));
        let networks = (0..9000u32).map(|i| {
            let addr = (0x3200_0000 | i << 8).to_be_bytes();
            let key = Cidr4Key {
                prefix_len: 24,
                addr,
            };
            (key, fsm_common::maps::skip::OUTBOUND)
        });
        new.skip4 = fsm_fastpath::model::table::Table::new(networks.collect());
        let error = apply(&mut node.maps, &mut known, new, &Kernel::default()).unwrap_err();
        assert!(matches!(error, ApplyError::TooSmall(_)), "{error}");
        let said = error.to_string();
        assert!(
            said.contains("fsm_skip4") && said.contains("9000") && said.contains("8192"),
            "{said}"
        );
        assert_eq!(node.maps.settings().unwrap().generation, generation);
        assert!(known.is_some(), "what the maps hold is still known");
        holds(node, &old);
    });
}
