//! A full flow table, and floods.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::{Lab, Role};
use serde_json::Value;

use crate::traffic::frame;
use crate::traffic::http::{ask, connect};
use crate::traffic::{alone, at, done, flows, is_soak, lab, notes, on, raw, spawn_on, wait_for};

/// Connections that stay open, asked from the test.
struct Held {
    ask: std::sync::mpsc::Sender<()>,
    answers: std::sync::mpsc::Receiver<Vec<String>>,
    thread: std::thread::JoinHandle<()>,
}

impl Held {
    /// Opens so many and asks each once.
    fn open(lab: &Lab, role: Role, to: &'static str, count: usize) -> Held {
        let (answered, answers) = std::sync::mpsc::channel();
        let (ask_them, asked) = std::sync::mpsc::channel::<()>();
        let thread = spawn_on(lab, role, move || {
            let mut streams: Vec<TcpStream> = Vec::new();
            let mut errors = Vec::new();
            for _ in 0..count {
                match connect(at(to)).and_then(|mut s| ask(&mut s, "/who").map(|_| s)) {
                    Ok(stream) => streams.push(stream),
                    Err(error) => errors.push(error.to_string()),
                }
            }
            answered.send(errors).unwrap();
            while asked.recv().is_ok() {
                let failed =
                    |stream: &mut TcpStream| ask(stream, "/who").err().map(|e| e.to_string());
                answered
                    .send(streams.iter_mut().filter_map(failed).collect())
                    .unwrap();
            }
        });
        let held = Held {
            ask: ask_them,
            answers,
            thread,
        };
        assert_eq!(
            held.answers.recv().unwrap(),
            [""; 0],
            "to open {count} to {to}"
        );
        held
    }

    /// Asks all again; what went wrong.
    fn ask(&self) -> Vec<String> {
        self.ask.send(()).unwrap();
        self.answers.recv().unwrap()
    }

    fn end(self) {
        drop(self.ask);
        done(self.thread);
    }
}

/// Entries of the main IPv4 table.
fn entries(lab: &Lab) -> u64 {
    let dump = lab.fsm(&["status"]).unwrap();
    dump["maps"]["fsm_xflow"]["entries"]
        .as_u64()
        .unwrap_or_else(|| panic!("no entries of fsm_xflow: {}", dump["maps"]))
}

#[test]
fn at_a_full_table_new_connections_work_and_established_ones_live() {
    let _alone = alone();
    let lab = lab(
        "full",
        "\n[conntrack]\nmax_flows = 1024\ntcp_time_wait_s = 3\n",
    );
    // Each connection is two flows: to the gateway, and the gateway's own.
    let before = notes(&lab, "flow_table_full_open");
    let old = Held::open(&lab, Role::App1, "20.0.0.2:8080", 450);
    assert_eq!(
        notes(&lab, "flow_table_full_open"),
        before,
        "there is still room"
    );
    let new = Held::open(&lab, Role::App2, "20.0.0.2:8080", 200);
    assert!(
        notes(&lab, "flow_table_full_open") > before,
        "a full table is counted"
    );
    assert!(entries(&lab) <= 2048);
    // New ones still open, and everybody is still served, several times.
    let latest = Held::open(&lab, Role::Client, "10.1.0.2:80", 50);
    for _ in 0..3 {
        assert_eq!(old.ask(), [""; 0]);
        assert_eq!(new.ask(), [""; 0]);
        assert_eq!(latest.ask(), [""; 0]);
    }
    old.end();
    new.end();
    latest.end();
    // With room again (closed ones are gone after tcp_time_wait_s), new ones go to the main table.
    wait_for("room", Duration::from_secs(40), || entries(&lab) < 1000);
    let after = notes(&lab, "flow_table_full_open");
    let again = Held::open(&lab, Role::App1, "20.0.0.2:8080", 50);
    assert_eq!(notes(&lab, "flow_table_full_open"), after);
    again.end();
}

/// Takes 80 seconds, since nothing that has spoken within a minute ever goes.
#[test]
fn at_a_full_table_the_longest_idle_go_first_and_go_on_when_they_speak() {
    if !is_soak() {
        println!("skipped: FSM_SOAK=1 (scripts/soak) runs it");
        return;
    }
    let _alone = alone();
    let lab = lab("idle", "\n[conntrack]\nmax_flows = 1024\n");
    let idle = Held::open(&lab, Role::App1, "20.0.0.2:8080", 250);
    sleep(Duration::from_secs(70));
    let busy = Held::open(&lab, Role::App2, "20.0.0.2:8080", 250);
    let count = |src: &str| flows(&lab, &["--src", src, "--dst", "20.0.0.2"]).len();
    wait_for("room", Duration::from_secs(20), || count("10.1.0.2") < 250);
    assert_eq!(count("10.2.0.2"), 250, "who has spoken stays");
    assert_eq!(busy.ask(), [""; 0]);
    assert_eq!(idle.ask(), [""; 0], "who was taken out goes on");
    idle.end();
    busy.end();
}

/// Sends SYNs from invented clients to an app, as fast as they go.
fn flood(lab: &Lab, frames: u32) -> (Duration, u64) {
    let node = raw::mac(lab, Role::Node, "up0");
    on(lab, Role::Outside, move || {
        let socket = raw::open("eth0");
        let syn = frame::tcp("20.1.0.0:1024", "10.1.0.2:80", frame::SYN);
        let syn = raw::address(syn, "eth0", node);
        let begin = Instant::now();
        let mut lost = 0;
        for number in 0..frames {
            let mixed = number.wrapping_mul(0x9e37_79b1);
            let [a, b, c, d] = mixed.to_be_bytes();
            let src = std::net::Ipv4Addr::new(20, 1 + a % 100, b, c | 1);
            let port = 1024 + u16::from(d) * 200;
            let one = frame::Frame {
                src: (src, port).into(),
                seq: (mixed, 0),
                ..syn.clone()
            };
            lost += u64::from(socket.send(&one.bytes()).is_err());
        }
        (begin.elapsed(), lost)
    })
}

fn tuples(lab: &Lab, filter: &[&str]) -> BTreeSet<String> {
    flows(lab, filter)
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {}",
                row["src"], row["sport"], row["dst"], row["dport"]
            )
        })
        .collect()
}

#[test]
fn a_flood_of_forged_syns_evicts_no_established_flow_and_connections_go_on() {
    let _alone = alone();
    let lab = lab(
        "flood",
        "\n[conntrack]\nmax_flows = 4096\nmax_half_open = 2048\n",
    );
    // Answers to invented clients have to go somewhere, or the node asks for each one's MAC.
    lab.node()
        .cmd("ip", ["route", "add", "default", "via", "20.0.0.10"])
        .unwrap();
    let outbound = Held::open(&lab, Role::App1, "20.0.0.2:8080", 100);
    let inbound = Held::open(&lab, Role::Client, "10.1.0.2:80", 50);
    let before = tuples(&lab, &["--state", "ESTABLISHED"]);
    assert!(before.len() >= 250, "{}", before.len());
    let made = notes(&lab, "flow_new");
    let flooding = std::thread::scope(|threads| {
        let flooding = threads.spawn(|| flood(&lab, 200_000));
        let mut rounds = 0;
        while !flooding.is_finished() {
            assert_eq!(outbound.ask(), [""; 0], "during the flood");
            assert_eq!(inbound.ask(), [""; 0], "during the flood");
            rounds += 1;
        }
        println!("asked {rounds} times during the flood");
        flooding.join().unwrap()
    });
    println!("200000 SYNs in {:?}, {} not sent", flooding.0, flooding.1);
    assert!(
        notes(&lab, "flow_new") - made > 100_000,
        "the flood has arrived"
    );
    let after = tuples(&lab, &["--state", "ESTABLISHED"]);
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(lost.is_empty(), "evicted: {lost:?}");
    assert_eq!(outbound.ask(), [""; 0]);
    assert_eq!(inbound.ask(), [""; 0]);
    assert_eq!(notes(&lab, "flow_table_full_open"), 0);
    outbound.end();
    inbound.end();
}

#[test]
fn while_flows_come_and_go_the_list_agrees_with_the_table() {
    let _alone = alone();
    let times = "tcp_time_wait_s = 2\ntcp_fin_wait_s = 2\nudp_s = 2\nudp_stream_s = 2\n";
    let lab = lab("agree", &format!("\n[conntrack]\n{times}"));
    let held = Held::open(&lab, Role::App1, "20.0.0.2:8080", 20);
    let begin = Instant::now();
    let mut compared = 0;
    while begin.elapsed() < Duration::from_secs(8) {
        // Short ones, which expire while the others stay.
        Held::open(&lab, Role::App2, "20.0.0.2:8080", 5).end();
        let (list, dump) = (
            flows(&lab, &[]),
            lab.fsm(&["map", "dump", "fsm_xflow"]).unwrap(),
        );
        let dump = dump.as_array().unwrap();
        let is_reply = |entry: &Value| entry["value"]["flow_dir"] == "FLOW_DIR_S2C";
        // What was made or ended between the two may differ; the open ones may not.
        let open: Vec<_> = list.iter().filter(|row| row["src"] == "10.1.0.2").collect();
        assert_eq!(open.len(), 20, "{list:?}");
        for row in open {
            let same = |entry: &&Value| {
                let key = &entry["key"];
                key["saddr"] == row["src"]
                    && key["sport"] == row["sport"]
                    && key["dport"] == row["dport"]
            };
            assert!(
                dump.iter().filter(|e| !is_reply(e)).any(|e| same(&e)),
                "{row} is not in {dump:?}"
            );
        }
        compared += 1;
    }
    assert!(compared >= 3);
    held.end();
    wait_for("all flows have ended", Duration::from_secs(12), || {
        flows(&lab, &["--proto", "tcp"]).is_empty()
    });
    let left = lab.fsm(&["map", "dump", "fsm_xflow"]).unwrap();
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
}
