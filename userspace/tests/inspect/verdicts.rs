//! What a policy does to live connections.

use std::io::Read;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::Role;

use super::{app_flows, assert_nothing_lost, dpi, lab, reload, who};
use crate::traffic::http::{ask, connect};
use crate::traffic::{alone, at, drops, notes, on, spawn_on, wait_for};

const NO_HTTP: &str = r#"
[[dpi.policy]]
from = "10.1.0.2"
apps = ["http"]
action = "deny"
[[dpi.policy]]
from = "fd10:1::2"
apps = ["http"]
action = "deny"
"#;

#[test]
fn a_denied_protocol_is_reset_at_both_ends() {
    let _alone = alone();
    let lab = lab("deny", &dpi("protect", 1, NO_HTTP));
    for to in ["20.0.0.2:8080", "[fd20::2]:8080"] {
        let begin = Instant::now();
        let told = on(&lab, Role::App1, move || {
            let mut stream = connect(at(to)).unwrap();
            ask(&mut stream, "/who").unwrap_err()
        });
        assert_eq!(
            told.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{to}: {told}"
        );
        assert!(begin.elapsed() < Duration::from_secs(1), "{to}");
        // Another app may.
        let other = lab.app2();
        assert!(who(&other, &format!("http://{to}/who")).is_ok());
    }
    let open = || {
        let args = [
            "-tnH",
            "state",
            "established",
            "src",
            "192.168.226.22",
            "dst",
            "10.1.0.2",
        ];
        lab.node().cmd("ss", args).unwrap()
    };
    assert_eq!(open(), "", "the gateway's end is still open");
    assert_nothing_lost(&lab);
}

#[test]
fn a_denied_peer_is_refused_at_once() {
    let _alone = alone();
    let policy = "[[dpi.policy]]\nto = \"20.0.0.2\"\nports = [\"tcp/8080\"]\naction = \"deny\"\n";
    let lab = lab("peer", &dpi("protect", 1, policy));
    let begin = Instant::now();
    let told = on(&lab, Role::App1, || {
        connect(at("20.0.0.2:8080")).unwrap_err()
    });
    assert_eq!(told.kind(), std::io::ErrorKind::ConnectionRefused, "{told}");
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(who(&lab.app1(), "http://[fd20::2]:8080/who").is_ok());
}

#[test]
fn a_change_of_policy_reaches_live_connections_and_only_those_it_is_about() {
    let _alone = alone();
    let lab = lab("live", &dpi("protect", 1, ""));
    let held = [Role::App1, Role::App2].map(|role| {
        let (ask_again, asked) = std::sync::mpsc::channel::<()>();
        let (answer, answers) = std::sync::mpsc::channel();
        let thread = spawn_on(&lab, role, move || {
            let mut stream = connect(at("20.0.0.2:8080")).unwrap();
            while asked.recv().is_ok() {
                let said = ask(&mut stream, "/who").map(drop).map_err(|e| e.kind());
                answer.send(said).unwrap();
            }
        });
        (ask_again, answers, thread)
    });
    let all = || {
        held.each_ref().map(|(ask, answers, _)| {
            ask.send(()).unwrap();
            answers.recv().unwrap()
        })
    };
    for _ in 0..3 {
        assert_eq!(all(), [Ok(()), Ok(())]);
    }
    let allowed = notes(&lab, "dpi_allowed");
    assert!(allowed >= 4, "both directions of both: {allowed}");
    // Not about inspection: nobody is asked again.
    let rx = || super::sum(&super::workers(&lab), "/packets/rx");
    let before = rx();
    reload(&lab, |text| {
        text + "\n[[acl]]\naddr = \"20.0.0.77\"\naction = \"deny\"\n"
    });
    assert_eq!(all(), [Ok(()), Ok(())]);
    assert_eq!(rx(), before, "an offloaded flow came back");
    reload(&lab, |text| text + NO_HTTP);
    let reset = Err(std::io::ErrorKind::ConnectionReset);
    assert_eq!(all(), [reset, Ok(())]);
    for (ask, _, thread) in held {
        drop(ask);
        crate::traffic::done(thread);
    }
    assert_nothing_lost(&lab);
}

#[test]
fn copies_teach_and_never_make_a_packet_wait() {
    let _alone = alone();
    for mode in ["learn", "monitor"] {
        let lab = lab(mode, &dpi(mode, 1, NO_HTTP));
        super::set_fail(&lab, "closed");
        for url in ["http://20.0.0.2:8080/who", "http://[fd20::2]:8080/who"] {
            who(&lab.app1(), url).unwrap();
        }
        wait_for("both are recognised", Duration::from_secs(3), || {
            app_flows(&lab, "http") >= 2
        });
        let daemon = lab.daemon().unwrap().pid.to_string();
        lab.node().cmd("kill", ["-STOP", &daemon]).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        for url in ["http://20.0.0.2:8080/who", "http://[fd20::2]:8080/who"] {
            who(&lab.app1(), url).unwrap_or_else(|e| panic!("{mode}: {url}: {e}"));
        }
        lab.node().cmd("kill", ["-CONT", &daemon]).unwrap();
        assert_eq!(
            (drops(&lab, "dpi_no_worker"), drops(&lab, "dpi_deny")),
            (0, 0)
        );
        let sum = lab.blob_sum().unwrap();
        let line = "curl -gsS --max-time 60 http://20.0.0.2:8080/blob | sha256sum";
        let out = lab.app1().cmd("sh", ["-c", line]).unwrap();
        assert_eq!(out.split_whitespace().next(), Some(sum.as_str()));
        let status = lab.fsm(&["status"]).unwrap();
        assert_eq!(
            status["workers"][0]["packets"]["tx"], 0,
            "copies end at the worker"
        );
    }
}

#[test]
fn the_mode_is_shown_and_changed_while_traffic_flows() {
    let _alone = alone();
    let lab = lab("mode", &dpi("monitor", 1, NO_HTTP));
    let mode = || lab.fsm(&["dpi", "mode"]).unwrap()["message"].clone();
    assert_eq!(mode(), "monitor");
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_ok());
    lab.fsm(&["dpi", "mode", "protect"]).unwrap();
    assert_eq!(mode(), "protect");
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_err());
    lab.fsm(&["dpi", "mode", "off"]).unwrap();
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_ok());
    let left = lab.node().cmd("ip", ["-br", "link"]).unwrap();
    assert!(!left.contains("dpi0"), "{left}");
    lab.fsm(&["dpi", "mode", "protect", "--save"]).unwrap();
    let mut text = String::new();
    let mut file = std::fs::File::open(lab.plan().config()).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert!(text.contains("mode = \"protect\""), "{text}");
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_err());
}
