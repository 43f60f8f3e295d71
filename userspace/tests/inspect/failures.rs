//! Workers that fail, and daemons that come and go.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::traffic::udp::StreamReport;
use fsm_fastpath::lab::{Host, Lab, Role};

use super::{dpi, lab, set_fail, sum, who, workers};
use crate::traffic::http::{ask, connect};
use crate::traffic::{BINARY, alone, at, done, drops, notes, spawn_on};

const URLS: [&str; 2] = ["http://20.0.0.2:8080/who", "http://[fd20::2]:8080/who"];

/// New connections within a second of now: all of them work, or none.
#[track_caller]
fn within_a_second(lab: &Lab, works: bool, when: &str) {
    let begin = Instant::now();
    let all = || {
        URLS.map(|url| {
            let args = ["-gsS", "--max-time", "0.4", url];
            lab.app1().cmd("curl", args).is_ok()
        })
    };
    let mut last = all();
    while last != [works; 2] {
        assert!(begin.elapsed() < Duration::from_secs(1), "{when}: {last:?}");
        last = all();
    }
}

#[test]
fn a_hung_daemon_does_what_fail_says_within_a_second() {
    let _alone = alone();
    let lab = lab("hung", &dpi("protect", 1, ""));
    let daemon = lab.daemon().unwrap().pid.to_string();
    for (fail, works) in [("open", true), ("closed", false)] {
        set_fail(&lab, fail);
        let mut held = Held::open(&lab);
        within_a_second(&lab, true, "before");
        lab.node().cmd("kill", ["-STOP", &daemon]).unwrap();
        within_a_second(&lab, works, fail);
        // What was judged does not notice.
        assert_eq!(held.ask(), Ok(()));
        sleep(Duration::from_millis(600));
        assert_eq!(who(&lab.app1(), URLS[0]).is_ok(), works, "{fail}, later");
        lab.node().cmd("kill", ["-CONT", &daemon]).unwrap();
        within_a_second(&lab, true, "going on");
        held.end();
    }
    assert!(notes(&lab, "dpi_no_worker_open") > 0);
    assert!(drops(&lab, "dpi_no_worker") > 0);
    assert_eq!(sum(&workers(&lab), "/frames/leaked"), 0);
}

#[test]
fn a_killed_daemon_does_what_fail_says_at_once() {
    let _alone = alone();
    let mut lab = lab("killed", &dpi("protect", 2, ""));
    for (fail, works) in [("open", true), ("closed", false)] {
        set_fail(&lab, fail);
        let mut held = Held::open(&lab);
        lab.kill_daemon();
        within_a_second(&lab, works, fail);
        assert_eq!(held.ask(), Ok(()));
        let app = lab.app1();
        let first = std::thread::spawn(move || {
            while app
                .cmd("curl", ["-gsS", "--max-time", "0.4", URLS[0]])
                .is_err()
            {}
            Instant::now()
        });
        lab.start_daemon().unwrap();
        let ready = Instant::now();
        let first = done(first);
        assert!(first < ready, "workers come first, and programs after them");
        within_a_second(&lab, true, "a new daemon");
        assert_eq!(held.ask(), Ok(()));
        held.end();
        assert_nothing_lost_now(&lab);
    }
}

#[track_caller]
fn assert_nothing_lost_now(lab: &Lab) {
    let workers = workers(lab);
    assert_eq!(
        ["/lost", "/frames/leaked"].map(|what| sum(&workers, what)),
        [0; 2]
    );
}

/// A connection that was judged, to be asked from the test.
struct Held {
    ask: std::sync::mpsc::Sender<()>,
    answers: std::sync::mpsc::Receiver<Result<(), String>>,
    thread: std::thread::JoinHandle<()>,
}

impl Held {
    fn open(lab: &Lab) -> Self {
        let (ask_it, asked) = std::sync::mpsc::channel::<()>();
        let (answer, answers) = std::sync::mpsc::channel();
        let thread = spawn_on(lab, Role::App1, move || {
            let mut stream = connect(at("20.0.0.2:8080")).unwrap();
            while asked.recv().is_ok() {
                let said = ask(&mut stream, "/who")
                    .map(drop)
                    .map_err(|e| e.to_string());
                answer.send(said).unwrap();
            }
        });
        let mut held = Self {
            ask: ask_it,
            answers,
            thread,
        };
        for _ in 0..3 {
            assert_eq!(held.ask(), Ok(()));
        }
        held
    }

    fn ask(&mut self) -> Result<(), String> {
        self.ask.send(()).unwrap();
        self.answers.recv().unwrap()
    }

    fn end(self) {
        drop(self.ask);
        done(self.thread);
    }
}

fn transfer(host: &Host, url: &str) -> Child {
    let line = format!("curl -gsS --limit-rate 12M --max-time 60 {url} | sha256sum");
    let mut command = host.command("sh");
    command.args(["-c", &line]).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn stream(lab: &Lab, to: &str) -> Child {
    let mut command = lab.app1().command(BINARY);
    command.args(["lab", "stream", to, "--count", "1600", "--pace-ms", "5"]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn output(child: Child) -> String {
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_restart_in_mode_protect_loses_no_connection_and_no_packet_of_a_judged_flow() {
    let _alone = alone();
    let mut lab = lab("restart", &dpi("protect", 1, ""));
    let blob = lab.blob_sum().unwrap();
    let transfers = [
        transfer(&lab.app1(), "http://20.0.0.2:8080/blob"),
        transfer(&lab.app2(), "http://[fd20::2]:8080/blob"),
        transfer(&lab.client(), "http://10.1.0.2:80/blob"),
    ];
    let streams = ["20.0.0.2:7777", "[fd20::2]:7777"].map(|to| stream(&lab, to));
    // One that nobody has judged, for it has said nothing yet.
    let (go_on, told) = std::sync::mpsc::channel::<()>();
    let silent = spawn_on(&lab, Role::App1, move || {
        let mut stream = connect(at("20.0.0.2:8080")).unwrap();
        told.recv().unwrap();
        ask(&mut stream, "/who")
            .map(drop)
            .map_err(|e| e.to_string())
    });
    sleep(Duration::from_secs(1));
    for round in 0..2 {
        if round == 0 {
            lab.stop_daemon();
        } else {
            lab.kill_daemon();
        }
        lab.start_daemon().unwrap();
        assert_eq!(lab.fsm(&["status"]).unwrap()["adopted"], true);
        assert!(who(&lab.app1(), URLS[0]).is_ok());
        sleep(Duration::from_millis(500));
    }
    go_on.send(()).unwrap();
    assert_eq!(done(silent), Ok(()), "a connection under inspection");
    for (number, child) in transfers.into_iter().enumerate() {
        let sum = output(child);
        assert_eq!(
            sum.split_whitespace().next(),
            Some(blob.as_str()),
            "{number}"
        );
    }
    for child in streams {
        let text = output(child);
        let report: StreamReport =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(
            report.received, report.sent,
            "datagrams of a judged flow: {report:?}"
        );
    }
    // What is on its way when a daemon dies is lost with it, and sent again.
    assert_nothing_lost_now(&lab);
}
