//! Deny fails closed: without a daemon, and with a part of the data path gone.

use std::process::Stdio;

use fsm_fastpath::lab::{Host, Lab};

use crate::traffic::{alone, drops, lab};

fn who(host: &Host, url: &str) -> Option<String> {
    host.cmd("curl", ["-gsS", "--max-time", "1", url]).ok()
}

/// Both directions, both families; all at once, since each waits for nothing.
fn assert_denied(lab: &Lab, when: &str) {
    let (app, client) = (lab.app1(), lab.client());
    let tries = [
        (&app, "10.1.0.2", "http://20.0.0.66:8080/who"),
        (&app, "fd10:1::2", "http://[fd20::66]:8080/who"),
        (&client, "20.0.0.99", "http://10.1.0.2:80/who"),
        (&client, "fd20::99", "http://[fd10:1::2]:80/who"),
        (&client, "20.0.0.99", "http://10.1.0.2:9998/who"),
    ];
    let running = tries.map(|(host, source, url)| {
        let mut curl = host.command("curl");
        curl.args(["-gsS", "--max-time", "1", "--interface", source, url]);
        let child = curl.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        (source, url, child.unwrap())
    });
    for (source, url, child) in running {
        let answer = child.wait_with_output().unwrap();
        assert!(
            !answer.status.success(),
            "{when}: {source} to {url}: {answer:?}"
        );
    }
}

#[test]
fn a_deny_holds_without_a_daemon() {
    let _alone = alone();
    let mut lab = lab("dead", "");
    assert_denied(&lab, "with a daemon");
    lab.kill_daemon();
    assert_denied(&lab, "after SIGKILL");
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
    lab.start_daemon().unwrap_or_else(|error| panic!("{error}"));
    assert_denied(&lab, "with a new daemon");
    lab.stop_daemon();
    assert_denied(&lab, "after SIGTERM");
}

#[test]
fn a_deny_holds_with_programs_missing_and_what_cannot_be_judged_is_dropped() {
    let _alone = alone();
    let lab = lab("holes", "");
    lab.kill_daemon();
    let pins = lab.plan().path("bpf");
    let empty = |array: &str| {
        let find = format!("find {} -name {array}", pins.display());
        let path = lab.node().cmd("sh", ["-c", &find]).unwrap();
        for slot in 0..8 {
            let words = format!("map delete pinned {} key {slot} 0 0 0", path.trim());
            // Slots that the array does not have, or that are empty, are an error.
            let _ = lab.node().cmd("bpftool", words.split_whitespace());
        }
    };
    for array in ["fsm_prog", "fsm_prog_xdp"] {
        empty(array);
        assert_denied(&lab, array);
    }
    let before = drops(&lab, "internal");
    assert_eq!(who(&lab.app1(), "http://20.0.0.2:8080/who"), None);
    assert_eq!(who(&lab.client(), "http://10.1.0.2:80/who"), None);
    assert!(drops(&lab, "internal") > before, "the drop has its reason");
}
