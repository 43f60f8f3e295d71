//! What goes wrong, and what it costs.

use std::time::{Duration, Instant};

use fsm_common::stats::Hook;
use fsm_fastpath::{
    dpi::Event,
    worker::{Workers, max_frame},
};

use super::{
    frame::{ACK, tcp},
    stage::{ALLOW, DENY, DROP, PANIC, PASS, RESET, Stage, TELL, alone, settled, sh, whole},
};

const V4: [&str; 2] = ["10.0.0.1:1000", "10.0.0.2:80"];

fn with(byte: u8) -> Vec<u8> {
    tcp(V4[0], V4[1], ACK).payload(&[byte]).bytes()
}

#[test]
fn a_panic_costs_one_packet_at_most() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let tid = workers.status()[0].tid;
        stage.out(&with(PANIC));
        assert_eq!(stage.next(), Some(with(PANIC)), "open");
        workers.set_fail_open(false);
        stage.out(&with(PANIC));
        assert!(stage.is_silent(), "closed");
        stage.out(&with(PASS));
        assert_eq!(stage.next(), Some(with(PASS)));
        let from = workers
            .with_engine(0, |_| -> u32 { panic!("asked to") })
            .unwrap();
        assert!(from.recv().is_err());
        let status = settled(&workers, 3);
        assert_eq!(status[0].counters.restarts, 3);
        assert_eq!((status[0].tid, status[0].has_ended), (tid, false));
        whole(&status[0].frames);
    });
}

#[test]
fn an_engine_can_be_asked_and_changed() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 2);
        let workers = stage.start();
        for worker in 0..2 {
            let from = workers
                .with_engine(worker, |engine| engine.sessions(0, 10))
                .unwrap();
            assert_eq!(from.recv_timeout(Duration::from_secs(1)).unwrap(), []);
        }
        assert!(workers.with_engine(2, |_| ()).is_none());
    });
}

/// Nobody reads events: they are lost and counted, and no packet waits.
#[test]
fn a_slow_reader_costs_events_only() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let setup = stage.setup(4);
        let workers = Workers::start(&setup, &stage.engines(false)).unwrap();
        for _ in 0..50 {
            stage.out(&with(TELL));
            assert_eq!(stage.next(), Some(with(TELL)));
        }
        let counters = settled(&workers, 50)[0].counters;
        assert_eq!((counters.events_lost, counters.tx_packets), (46, 50));
        let mut events = stage.events.take().unwrap();
        let mut told = 0;
        while let Ok(event) = events.try_recv() {
            assert!(matches!(event.event, Event::Threat { name: "told", .. }));
            told += 1;
        }
        assert_eq!(told, 4);
    });
}

/// 200 000 frames with every verdict, over two queues, as fast as they go: each is somewhere at the end.
#[test]
fn no_frame_leaks() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 2);
        let setup = stage.setup(16);
        let workers = Workers::start(&setup, &stage.engines(false)).unwrap();
        let bytes = [PASS, ALLOW, DROP, DENY, RESET, PASS, PASS, TELL];
        let flows: Vec<_> = (0..512u32)
            .map(|i| {
                let client = format!("10.0.{}.{}:{}", i & 3, i & 63, 1000 + i);
                let payload = vec![bytes[i as usize % bytes.len()]; 1 + i as usize * 2];
                tcp(&client, V4[1], ACK).payload(&payload).bytes()
            })
            .collect();
        const COUNT: usize = 200_000;
        let start = Instant::now();
        for i in 0..COUNT {
            stage.out(&flows[i % flows.len()]);
        }
        let took = start.elapsed();
        let status = settled(&workers, COUNT as u64);
        let sum = |get: fn(&fsm_fastpath::worker::Counters) -> u64| -> u64 {
            status.iter().map(|s| get(&s.counters)).sum()
        };
        let arrived = sum(|c| c.rx_packets);
        let full: u64 = status
            .iter()
            .map(|s| s.xsk.rx_ring_full + s.xsk.fill_empty)
            .sum();
        eprintln!(
            "{COUNT} frames sent in {took:?}, {arrived} arrived, {} changed workers, {} had no room there; rings full {full}",
            sum(|c| c.hop_out),
            sum(|c| c.hop_full)
        );
        assert!(arrived > COUNT as u64 / 10);
        assert_eq!(sum(|c| c.judged) + sum(|c| c.hop_full), arrived);
        assert!(sum(|c| c.hop_out) > 0);
        assert_eq!(sum(|c| c.hop_out), sum(|c| c.hop_in));
        let given = sum(|c| c.passed) + sum(|c| c.allowed) + sum(|c| c.rsts);
        assert_eq!(given, sum(|c| c.tx_packets) + sum(|c| c.tx_full));
        for worker in &status {
            whole(&worker.frames);
            assert_eq!(worker.xsk.rx_invalid + worker.xsk.tx_invalid, 0);
        }
        // And they still work.
        while stage.far.receive(&mut vec![0; 4096]).unwrap().is_some() {}
        stage.out(&with(PASS));
        assert_eq!(stage.next(), Some(with(PASS)));
    });
}

/// The kernel drops what does not fit into a frame, the worker what does not fit with its trailer.
#[test]
fn a_frame_that_is_too_long_goes_nowhere() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        sh(
            "ip link set dpi0 mtu 2000; ip link set dpi1 mtu 2000; ip link set near mtu 3000; ip link set far mtu 3000",
        );
        let workers = stage.start();
        let most = max_frame(2048) as usize;
        let of = |len: usize| {
            tcp(V4[0], V4[1], ACK)
                .payload(&vec![PASS; len - 54])
                .bytes()
        };
        for len in [most + 1, most + 16, most + 17] {
            stage.out(&of(len));
        }
        stage.out(&of(most));
        assert_eq!(stage.next(), Some(of(most)));
        let status = settled(&workers, 3);
        assert_eq!(status[0].counters.too_long, 2);
        assert_eq!(status[0].xsk.rx_dropped, 1);
        whole(&status[0].frames);
    });
}

/// While the device is down, the hooks are told that nobody listens; when it is gone, the worker ends.
#[test]
fn a_device_that_goes_is_noticed() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let until = |what: &str, is_so: &dyn Fn(&Workers) -> bool| {
            let end = Instant::now() + Duration::from_secs(3);
            while !is_so(&workers) {
                assert!(Instant::now() < end, "{what}: {:?}", workers.status());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let lives = |workers: &Workers| workers.status()[0].age_ns.is_some();
        until("up", &lives);
        sh("ip link set dpi1 down");
        until("down", &|workers| !lives(workers));
        assert!(!workers.has_ended());
        sh("ip link set dpi1 up");
        until("up again", &lives);
        stage.out(&with(PASS));
        assert_eq!(stage.next(), Some(with(PASS)));
        sh("ip link del dpi0");
        until("gone", &Workers::has_ended);
        assert!(workers.status()[0].has_ended && !lives(&workers));
    });
}

/// Nobody asked for this frame, and its hook is a number that is none.
#[test]
fn strange_heads_do_no_harm() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let mut said = stage.said(&with(PASS), Hook::TcEgress);
        said.magic = 7;
        stage.inject(&said, &with(PASS));
        let mut said = stage.said(&with(PASS), Hook::TcEgress);
        said.ifindex = 9999;
        stage.inject(&said, &with(PASS));
        stage.inject(&stage.said(&with(PASS), Hook::TcEgress), &[]);
        stage.inject(&stage.said(&with(PASS), Hook::TcEgress), &[PASS; 20]);
        stage.out(&with(PASS));
        assert!(
            stage
                .next()
                .is_some_and(|frame| frame == [PASS; 20] || frame == with(PASS))
        );
        let status = settled(&workers, 3);
        whole(&status[0].frames);
    });
}
