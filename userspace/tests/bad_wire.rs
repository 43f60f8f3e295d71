//! Real transfers over a wire that loses, repeats, reorders and delays: every byte arrives, the node ends no
//! connection, and every flow is seen through to its end.
//!
//! Needs root and the programs that `docs/lab.md` names. `FSM_SOAK=1` (`scripts/soak`) runs the long one.

mod traffic;

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fsm_fastpath::lab::{Lab, Role, Wire};
use traffic::http::{connect, serve};
use traffic::{
    alone, at, done, drops, flows, frame, is_soak, lab_over, notes, on, pattern, raw, spawn_on,
    wait_for,
};

/// Longer than any retransmission of these transfers.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that takes `n` bytes, checks them, and gives `m` bytes back; both numbers come first, as
/// eight bytes each, big endian.
fn exchange_server(lab: &Lab, role: Role, listen: SocketAddr) {
    on(lab, role, move || {
        serve(listen, |mut stream| {
            let mut sizes = [0; 16];
            if stream.read_exact(&mut sizes).is_err() {
                return;
            }
            let (up, down) = sizes.split_at(8);
            let size = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap()) as usize;
            let (up, down) = (size(up), size(down));
            let mut data = vec![0; up];
            if stream.read_exact(&mut data).is_err() || data != pattern(up, 11) {
                return;
            }
            let _ = stream.write_all(&pattern(down, 12));
        });
    });
}

/// One exchange with such a server; its error says what went wrong.
fn exchange(to: SocketAddr, up: usize, down: usize) -> Result<u16, String> {
    let mut stream = connect(to).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let port = stream.local_addr().unwrap().port();
    let sizes = [(up as u64).to_be_bytes(), (down as u64).to_be_bytes()].concat();
    let mut send = |data: &[u8]| stream.write_all(data).map_err(|e| format!("send: {e}"));
    send(&sizes)?;
    send(&pattern(up, 11))?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .map_err(|e| format!("receive: {e}, after {} bytes", answer.len()))?;
    match answer == pattern(down, 12) {
        true => Ok(port),
        false => Err(format!("{} of {down} bytes, or other ones", answer.len())),
    }
}

/// Counts RSTs that reach a host before the FIN of their own direction, until told to stop: after its FIN a
/// closed socket rightly answers a late copy with one.
fn watch_resets(lab: &Lab, role: Role, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let stop = Arc::clone(stop);
    spawn_on(lab, role, move || {
        let socket = raw::open("eth0");
        let (mut closed, mut resets) = (HashSet::new(), 0);
        while !stop.load(Ordering::Relaxed) {
            raw::listen(&socket, Duration::from_millis(100), |bytes| {
                if let Some(seen) = raw::tcp4(bytes) {
                    let tuple = (seen.ends, seen.ports);
                    if seen.flags & frame::FIN != 0 {
                        closed.insert(tuple);
                    } else if seen.flags & frame::SYN != 0 {
                        closed.remove(&tuple);
                    } else if seen.flags & frame::RST != 0 && !closed.contains(&tuple) {
                        resets += 1;
                    }
                }
                false
            })
            .unwrap();
        }
        resets
    })
}

/// Sends each question until its own answer comes, ten times at most; how often it sent.
fn ask_udp(
    server: &str,
    questions: u16,
    question: impl Fn(u16) -> Vec<u8>,
    is_answer: impl Fn(&[u8], &[u8]) -> bool,
) -> Result<u32, String> {
    let any = if at(server).is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(at(server)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let (mut sent, mut answer) = (0, vec![0; 65_536]);
    for number in 0..questions {
        let question = question(number);
        let mut is_answered = || {
            sent += 1;
            socket.send(&question).unwrap();
            // Answers to earlier questions may come late, or twice.
            while let Ok(length) = socket.recv(&mut answer) {
                if is_answer(&question, &answer[..length]) {
                    return true;
                }
            }
            false
        };
        if !(0..10).any(|_| is_answered()) {
            return Err(format!("{server}: question {number} of {questions}"));
        }
    }
    Ok(sent)
}

/// DNS, which the node's resolver answers, and echoes over the wire, whole and in fragments.
fn datagrams() -> Result<u32, String> {
    let dns = |id: u16| {
        // RFC 1035 §4.1: a header with one question; lab.test, A, IN.
        let mut question = id.to_be_bytes().to_vec();
        question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        question.extend(b"\x03lab\x04test\x00\x00\x01\x00\x01");
        question
    };
    let is_name = |question: &[u8], answer: &[u8]| {
        answer.starts_with(&question[..2]) && answer.ends_with(&[20, 0, 0, 2])
    };
    let same = |question: &[u8], answer: &[u8]| question == answer;
    let mut sent = 0;
    for resolver in ["20.0.0.53:53", "[fd20::53]:53"] {
        sent += ask_udp(resolver, 50, dns, is_name)?;
    }
    for echo in ["20.0.0.2:7777", "[fd20::2]:7777"] {
        sent += ask_udp(echo, 50, |n| pattern(200, u64::from(n) + 1), same)?;
        sent += ask_udp(echo, 10, |n| pattern(3000, u64::from(n) + 1), same)?;
    }
    Ok(sent)
}

/// How much is sent in one round.
struct Load {
    /// Bytes of the long transfers, each way.
    long: usize,
    /// Connections at once.
    parallel: usize,
    /// Bytes of each of them, each way.
    short: usize,
}

/// The four ways through the node: from apps and to apps, IPv4 and IPv6.
const WAYS: [(Role, &str); 4] = [
    (Role::App1, "20.0.0.2:8090"),
    (Role::App1, "[fd20::2]:8090"),
    (Role::Client, "10.1.0.2:8090"),
    (Role::Client, "[fd10:1::2]:8090"),
];

/// Everything at once, each way; the ports of what was opened, by way.
fn round(lab: &Lab, load: &Load) -> BTreeMap<usize, Vec<u16>> {
    let mut running = Vec::new();
    for (way, (role, to)) in WAYS.into_iter().enumerate() {
        let mut start = |up, down| {
            let thread = spawn_on(lab, role, move || exchange(at(to), up, down));
            running.push((way, thread));
        };
        start(load.long, 0);
        start(0, load.long);
        for _ in 0..load.parallel / WAYS.len() {
            start(load.short, load.short);
        }
    }
    let datagrams = spawn_on(lab, Role::App2, datagrams);
    let mut ports: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
    for (way, thread) in running {
        let port = done(thread).unwrap_or_else(|e| panic!("{}: {e}", WAYS[way].1));
        ports.entry(way).or_default().push(port);
    }
    let sent = done(datagrams).unwrap_or_else(|error| panic!("{error}"));
    println!("220 questions by UDP, sent {sent} times");
    ports
}

fn assert_all_over(lab: &Lab, ports: &BTreeMap<usize, Vec<u16>>) {
    for (way, ports) in ports {
        let (role, to) = WAYS[*way];
        let addr = at(to).ip().to_string();
        let rows = flows(lab, &["--dst", &addr, "--port", "8090", "--proto", "tcp"]);
        for port in ports {
            let row = rows
                .iter()
                .find(|row| row["sport"] == *port && row["verdict"] == "nat");
            let row = row.unwrap_or_else(|| panic!("{role} to {to}: port {port} has no flow"));
            let state = row["state"].as_str().unwrap();
            assert!(["TIME_WAIT", "CLOSE"].contains(&state), "{to}: {row}");
        }
    }
}

/// Every worker has all of its frames, and none was lost on the way to it.
fn assert_frames_are_there(lab: &Lab) {
    let status = lab.fsm(&["status"]).unwrap();
    for row in status["workers"].as_array().unwrap() {
        let numbers = [&row["frames"]["leaked"], &row["lost"], &row["restarts"]];
        assert_eq!(numbers, [0, 0, 0], "{row}");
    }
    assert_eq!(status["drops"]["escalation_lost"], 0);
}

/// What must hold over any wire, whatever it does; gives how often tracking has seen a strange segment.
fn run(tag: &str, wire: Wire, extra: &str, load: &Load, limit: Duration) {
    let _alone = alone();
    let lab = lab_over(Some(wire), tag, extra);
    for (server, listen) in [
        (Role::Outside, "20.0.0.2:8090"),
        (Role::Outside, "[fd20::2]:8090"),
        (Role::App1, "10.1.0.2:8090"),
        (Role::App1, "[fd10:1::2]:8090"),
    ] {
        exchange_server(&lab, server, at(listen));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let watchers =
        [Role::Client, Role::Outside, Role::App1].map(|role| watch_resets(&lab, role, &stop));
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || begin.elapsed() < limit {
        let ports = round(&lab, load);
        wait_for("the last segments", Duration::from_secs(15), || {
            let rows = flows(&lab, &["--port", "8090", "--proto", "tcp"]);
            let over =
                |row: &serde_json::Value| row["state"] == "TIME_WAIT" || row["state"] == "CLOSE";
            rows.iter().all(over)
        });
        assert_all_over(&lab, &ports);
        assert_frames_are_there(&lab);
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let resets = watchers.map(done);
    let stats = lab.wire_stats().unwrap();
    let strange = notes(&lab, "tcp_out_of_window");
    println!(
        "{rounds} rounds in {:?}; {strange} out of window; resets {resets:?}; {stats:?}",
        begin.elapsed()
    );
    assert_eq!(
        resets, [0; 3],
        "the node or its stack has ended a connection"
    );
    for way in [stats.forth, stats.back] {
        assert!(
            way.taken > 1000 && way.lost > 0 && way.duplicated > 0 && way.reordered > 0,
            "{stats:?}"
        );
        assert_eq!(way.overrun, 0, "the wire itself was too slow: {stats:?}");
    }
    for reason in [
        "internal",
        "nat_no_port",
        "flow_table_full",
        "bad_tcp",
        "bad_tcp_flags",
        "answer_orphan",
    ] {
        assert_eq!(drops(&lab, reason), 0, "{reason}");
    }
    assert_eq!(notes(&lab, "nat_port_moved"), 0);
    assert!(
        strange <= 10 * rounds,
        "{strange} segments were taken for strangers'"
    );
}

#[test]
fn over_a_bad_wire_every_byte_arrives_and_every_flow_is_seen_to_its_end() {
    let load = Load {
        long: 5_000_000,
        parallel: 50,
        short: 20_000,
    };
    run("bad", Wire::BAD, "", &load, Duration::ZERO);
}

/// Flows that wait for two workers.
const BY_WORKERS: &str = "\n[dpi]\nmode = \"protect\"\ncores = [0, 1]\n";

#[test]
fn over_a_bad_wire_and_by_workers_it_is_the_same() {
    let load = Load {
        long: 2_000_000,
        parallel: 100,
        short: 20_000,
    };
    run("badw", Wire::BAD, BY_WORKERS, &load, Duration::ZERO);
}

/// Ten minutes, each round over the same wire.
fn soak(tag: &str, extra: &str) {
    if !is_soak() {
        println!("skipped: FSM_SOAK=1 (scripts/soak) runs it");
        return;
    }
    let load = Load {
        long: 5_000_000,
        parallel: 100,
        short: 50_000,
    };
    let wire = Wire {
        seed: 2,
        ..Wire::BAD
    };
    run(tag, wire, extra, &load, Duration::from_secs(600));
}

#[test]
fn over_a_bad_wire_it_holds_for_ten_minutes() {
    soak("soak", "");
}

#[test]
fn over_a_bad_wire_and_by_workers_it_holds_for_ten_minutes() {
    soak("soakw", BY_WORKERS);
}
