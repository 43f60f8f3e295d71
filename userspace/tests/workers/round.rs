//! There and back.

use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use fsm_common::{
    escalate::{Escalated, STALE_NS, WorkerWord, taken},
    maps::name,
    stats::Hook,
};
use fsm_fastpath::{
    loader::{dpi, dpi::NAMES},
    worker::{Counters, Workers, thread::clock_ns},
};

use super::{
    frame::{ACK, tcp, udp},
    stage::{MTU, PASS, Stage, alone, attach, attach_all, netlink, settled, sh, whole},
};

const V4: [&str; 2] = ["10.0.0.1:1000", "10.0.0.2:80"];
const V6: [&str; 2] = ["[fd00::1]:1000", "[fd00::2]:80"];

#[test]
fn frames_come_back_as_they_went() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        for [from, to] in [V4, V6] {
            for len in [1, 2, 33, 600, 1400] {
                let mut payload = vec![0x5a; len];
                payload[len - 1] = PASS;
                for frame in [
                    tcp(from, to, ACK).payload(&payload).bytes(),
                    udp(from, to).payload(&payload).bytes(),
                    tcp(from, to, ACK)
                        .tag(0x8100, 0x2064)
                        .payload(&payload)
                        .bytes(),
                ] {
                    stage.out(&frame);
                    assert_eq!(stage.next().as_ref(), Some(&frame));
                }
            }
        }
        let status = settled(&workers, 30);
        assert_eq!(status[0].counters.tx_packets, 30);
        assert_eq!(status[0].counters.tx_bytes, status[0].counters.rx_bytes);
        assert_eq!(status[0].latency.count, 30);
        assert!(status[0].is_pinned && !status[0].has_ended);
        whole(&status[0].frames);
        // As the hooks see it.
        let alive_ns = || {
            let data = MapData::from_pin(stage.pins.join(name::FSM_WORKER)).unwrap();
            let words = Array::<_, WorkerWord>::try_from(Map::Array(data)).unwrap();
            [0, 1].map(|worker| words.get(&worker, 0).unwrap().alive_ns)
        };
        let [first, second] = alive_ns();
        assert!(clock_ns() - first < STALE_NS, "{first}");
        assert_eq!(second, 0);
        drop(workers);
        assert_eq!(alive_ns(), [0; 2]);
    });
}

#[test]
fn a_tag_beside_the_frame_is_put_back() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let _workers = stage.start();
        let bare = tcp(V4[0], V4[1], ACK).payload(&[PASS]);
        for (flags, tpid) in [
            (taken::TAGGED, 0x8100),
            (taken::TAGGED | taken::TAG_AD, 0x88a8),
        ] {
            let said = stage.said(&bare.bytes(), Hook::TcEgress);
            let vlan = 0x6123;
            stage.inject(
                &Escalated {
                    flags,
                    vlan,
                    ..said
                },
                &bare.bytes(),
            );
            let tagged = bare.clone().tag(tpid, vlan).bytes();
            assert_eq!(stage.next(), Some(tagged));
        }
    });
}

/// What was taken on its way in goes into the stack: an echo request is answered.
#[test]
fn what_came_from_the_device_goes_into_the_stack() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let _workers = stage.start();
        sh(
            "ip addr add 10.0.0.2/24 dev near; ip link set near address 02:00:00:00:00:01
            ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:02 dev near",
        );
        let echo = super::frame::icmp("10.0.0.1", "10.0.0.2", 8).bytes();
        for hook in [Hook::Xdp, Hook::TcIngress] {
            stage.inject(&stage.said(&echo, hook), &echo);
            let answer = stage.next().expect("an answer");
            assert_eq!((&answer[26..30], answer[34]), (&[10, 0, 0, 2][..], 0));
        }
    });
}

/// However the pair spreads frames over its queues, both directions of a flow meet one engine.
#[test]
fn both_directions_meet_one_worker() {
    alone(|loaded| {
        for queues in [1, 2, 4] {
            let mut stage = match queues {
                1 => Stage::new(loaded, 1),
                _ => {
                    sh("ip link del near");
                    Stage::new(loaded, queues)
                }
            };
            let workers = stage.start();
            assert_eq!(stage.pair.back.queues, [queues; 2]);
            let mut expected = Vec::new();
            let mut spread = vec![0; queues as usize];
            for port in 2000..2200 {
                let client = format!("10.0.0.1:{port}");
                let there = tcp(&client, V4[1], ACK).payload(&[PASS]).bytes();
                let back = tcp(V4[1], &client, ACK).payload(&[PASS]).bytes();
                stage.out(&there);
                let said = stage.said(&back, Hook::TcEgress);
                let flags = taken::REPLY;
                stage.inject(&Escalated { flags, ..said }, &back);
                expected.extend([there, back]);
                // Not more at a time than the pair holds.
                while let Some(frame) = expected.pop() {
                    let came = stage.next().unwrap();
                    if came != frame {
                        assert_eq!(stage.next().as_ref(), Some(&frame));
                        expected.retain(|other| *other != came);
                    }
                }
                let log = std::mem::take(&mut *stage.log.lock().unwrap());
                assert_eq!((log.len(), log[0].0), (2, log[1].0), "port {port}");
                assert!(log.iter().any(|(_, meta)| meta.is_reply));
                spread[log[0].0] += 1;
            }
            let status = settled(&workers, 400);
            let hops: u64 = status.iter().map(|s| s.counters.hop_out).sum();
            assert_eq!(hops, status.iter().map(|s| s.counters.hop_in).sum::<u64>());
            eprintln!("{queues} queues: flows {spread:?}, {hops} of 400 packets changed workers");
            assert!(
                spread.iter().all(|&flows| flows > 100 / queues),
                "{spread:?}"
            );
            assert_eq!(hops > 0, queues > 1);
            for worker in &status {
                whole(&worker.frames);
            }
        }
    });
}

/// A daemon that comes again finds the pair, and takes its place at the sockets; `down` leaves nothing.
#[test]
fn the_pair_outlives_its_workers() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 2);
        let frame = tcp(V4[0], V4[1], ACK).payload(&[PASS]).bytes();
        for _ in 0..3 {
            let pair = netlink(async |handle| dpi::ensure(handle, NAMES, 2, MTU).await).unwrap();
            assert!(pair.is_adopted);
            assert_eq!(pair.front.ifindex, stage.pair.front.ifindex);
            attach(loaded, &pair);
            let workers = stage.start();
            stage.out(&frame);
            assert_eq!(stage.next().as_ref(), Some(&frame));
            workers.stop();
            stage.out(&frame);
            assert!(stage.is_silent());
        }
        // Another number of queues: another pair. The programs follow it.
        let pair = netlink(async |handle| dpi::ensure(handle, NAMES, 3, MTU + 100).await).unwrap();
        assert!(!pair.is_adopted);
        assert_eq!((pair.back.queues, pair.front.mtu), ([3; 2], MTU + 100));
        attach(loaded, &pair);
        let pins = stage.pins.clone();
        assert!(netlink(async |handle| dpi::remove(handle, &pins, NAMES).await).unwrap());
        assert!(!netlink(async |handle| dpi::remove(handle, &pins, NAMES).await).unwrap());
        assert_eq!(
            std::fs::read_dir(stage.pins.join("links")).unwrap().count(),
            0
        );
        // The name is taken.
        sh("ip link add dpi0 type veth peer name other");
        let error = netlink(async |handle| dpi::ensure(handle, NAMES, 1, MTU).await);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("dpi0: a device of this name")
        );
    });
}

#[test]
fn nothing_is_said_by_the_pair_itself() {
    alone(|loaded| {
        let stage = Stage::new(loaded, 2);
        for [name, end] in [["dpi0", "front"], ["dpi1", "back"]] {
            let has = |script: &str| {
                sh(&format!(
                    "{script} || {{ echo {end}: $({script}); false; }}"
                ))
            };
            has(&format!("test -z \"$(ip -o addr show dev {name})\""));
            has(&format!("ip -o link show {name} | grep -q NOARP"));
        }
        let features = std::process::Command::new("ethtool")
            .args(["-k", "dpi0"])
            .output();
        if let Ok(output) = features {
            let text = String::from_utf8_lossy(&output.stdout);
            for name in [
                "tx-checksumming",
                "tcp-segmentation-offload",
                "generic-segmentation-offload",
                "tx-vlan-offload",
                "tx-udp-segmentation",
            ] {
                let line = text
                    .lines()
                    .find(|line| line.trim_start().starts_with(name));
                assert!(line.is_some_and(|line| line.contains(": off")), "{line:?}");
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(stage.pair.front.mtu, MTU);
        drop(stage);
    });
}

/// The largest MTU that is promised can be had.
#[test]
fn the_pair_takes_the_longest_frames_that_it_promises() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let pair = netlink(async |handle| dpi::ensure(handle, NAMES, 1, dpi::MAX_MTU).await);
        assert_eq!(pair.unwrap().back.mtu, dpi::MAX_MTU);
        sh("ip link set near mtu 9000; ip link set far mtu 9000");
        let mut setup = stage.setup(16);
        setup.frame_bytes = 4096;
        let workers = Workers::start(&setup, &stage.engines(false)).unwrap();
        // Ethernet header, IPv4 and UDP make 42.
        let payload = vec![PASS; dpi::MAX_MTU as usize + 14 - 32 - 42];
        let frame = udp(V4[0], V4[1]).payload(&payload).bytes();
        stage.out(&frame);
        assert_eq!(stage.next(), Some(frame));
        assert_eq!(settled(&workers, 1)[0].counters.tx_packets, 1);
    });
}

/// As above, but with what puts the heads on; which sees to it that no frame has to change workers. What the host itself
/// sends into the pair ends there.
#[test]
fn heads_are_put_on() {
    alone(|loaded| {
        for queues in [2, 4] {
            let mut stage = Stage::new(loaded, queues);
            attach_all(loaded, &stage.pair);
            let workers = stage.start();
            stage.set_workers(queues);
            for port in 2000..2100 {
                let ends = [V4, V6][port % 2];
                let client = format!("{}:{port}", &ends[0][..ends[0].len() - 5]);
                for (from, to) in [(&*client, ends[1]), (ends[1], &*client)] {
                    let segment = tcp(from, to, ACK).payload(&[PASS; 100]);
                    let segment = match port % 3 {
                        0 => segment.tag(0x8100, 5),
                        _ => segment,
                    };
                    let frame = segment.bytes();
                    let said = stage.said(&frame, Hook::TcEgress);
                    stage.escalate(&said, &frame);
                    assert_eq!(stage.next().as_ref(), Some(&frame));
                }
                let log = std::mem::take(&mut *stage.log.lock().unwrap());
                assert_eq!(log[0].0, log[1].0);
            }
            assert!(stage.is_refused(&tcp(V4[0], V4[1], ACK).bytes()));
            let status = settled(&workers, 200);
            let sum = |get: fn(&Counters) -> u64| -> u64 {
                status.iter().map(|s| get(&s.counters)).sum()
            };
            assert_eq!((sum(|c| c.judged), sum(|c| c.hop_out)), (200, 0));
            drop((workers, stage));
            sh("ip link del near; ip link del dpi0");
        }
    });
}
