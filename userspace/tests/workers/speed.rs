//! How long a packet takes through a worker, and what it costs there. Not run by itself: numbers need a release
//! build and a quiet host (`cargo test --release --test workers -- --ignored --nocapture speed`).

use std::{
    fs,
    time::{Duration, Instant},
};

use fsm_common::{escalate::Escalated, stats::Hook};
use fsm_fastpath::worker::{Setup, WorkerStatus, Workers, thread::clock_ns};

use super::{
    frame::{ACK, tcp},
    stage::{DROP, Loaded, PASS, Stage, alone, cpus, settled},
};

/// Runs this thread on one CPU.
fn pin(core: u32) {
    let core = core_affinity::CoreId { id: core as usize };
    assert!(core_affinity::set_for_current(core));
}

fn start(stage: &mut Stage, change: impl FnOnce(&mut Setup)) -> Workers {
    let mut setup = stage.setup(16);
    setup.cores = vec![1 % cpus()];
    change(&mut setup);
    Workers::start(&setup, &stage.engines(false)).unwrap()
}

/// Nanoseconds that the worker's thread has run.
fn cpu_ns(status: &WorkerStatus) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/task/{}/schedstat", status.tid)).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn frame(byte: u8) -> Vec<u8> {
    let payload = vec![byte; 200];
    tcp("10.0.0.1:1000", "10.0.0.2:80", ACK)
        .payload(&payload)
        .bytes()
}

fn now(stage: &Stage, frame: &[u8]) -> Escalated {
    let at_ns = clock_ns();
    Escalated {
        at_ns,
        ..stage.said(frame, Hook::TcEgress)
    }
}

/// One packet at a time, `gap` apart.
fn latency(loaded: &mut Loaded, what: &str, gap: Duration, change: impl FnOnce(&mut Setup)) {
    let mut stage = Stage::new(loaded, 1);
    let workers = start(&mut stage, change);
    pin(0);
    let frame = frame(PASS);
    const COUNT: u64 = 20_000;
    let mut whole = Vec::new();
    let mut buffer = vec![0; 4096];
    for _ in 0..COUNT {
        let then = Instant::now();
        stage.inject(&now(&stage, &frame), &frame);
        while stage.far.receive(&mut buffer).unwrap().is_none() {}
        whole.push(then.elapsed().as_nanos() as u64);
        while then.elapsed() < gap {
            std::hint::spin_loop();
        }
    }
    whole.sort_unstable();
    let status = &settled(&workers, COUNT)[0];
    let [p50, p99] = [whole[whole.len() / 2], whole[whole.len() * 99 / 100]];
    println!(
        "{what}: taken to given back p50 {} p99 {} ns; sent to received p50 {p50} p99 {p99} ns; worker {} ns of CPU a packet",
        status.latency.p50,
        status.latency.p99,
        cpu_ns(status) / COUNT
    );
    drop(workers);
    drop(stage);
    super::stage::sh("ip link del near; ip link del dpi0");
}

/// Packets as fast as one CPU can send them, another one having the worker.
fn cost(loaded: &mut Loaded, what: &str, byte: u8) {
    let mut stage = Stage::new(loaded, 1);
    let workers = start(&mut stage, |_| ());
    pin(0);
    let frame = frame(byte);
    const COUNT: u64 = 300_000;
    let before = cpu_ns(&workers.status()[0]);
    let then = Instant::now();
    for _ in 0..COUNT {
        stage.inject(&now(&stage, &frame), &frame);
    }
    let took = then.elapsed();
    std::thread::sleep(Duration::from_millis(200));
    let status = &workers.status()[0];
    let judged = status.counters.judged;
    println!(
        "{what}: {:.0} packets/s sent, {} of {COUNT} judged, batch p50 {} p99 {}, worker {} ns of CPU a packet, latency p50 {} p99 {} ns, {:?}",
        COUNT as f64 / took.as_secs_f64(),
        judged,
        status.batch.p50,
        status.batch.p99,
        (cpu_ns(status) - before) / judged,
        status.latency.p50,
        status.latency.p99,
        status.xsk
    );
    drop(workers);
    drop(stage);
    super::stage::sh("ip link del near; ip link del dpi0");
}

#[test]
#[ignore = "a measurement"]
fn through_a_worker() {
    alone(|loaded| {
        for _ in 0..3 {
            latency(loaded, "one by one", Duration::ZERO, |_| ());
            latency(
                loaded,
                "one by one, 50 us apart",
                Duration::from_micros(50),
                |_| (),
            );
        }
    });
}

#[test]
#[ignore = "a measurement"]
fn a_packets_cost() {
    alone(|loaded| {
        for _ in 0..3 {
            cost(loaded, "received and dropped", DROP);
            cost(loaded, "received and given back", PASS);
        }
    });
}
