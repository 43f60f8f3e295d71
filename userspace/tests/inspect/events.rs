//! The event log of the real daemon.

use std::fs;
use std::path::Path;
use std::time::Duration;

use fsm_fastpath::lab::Role;
use serde_json::Value;

use super::{dpi, lab, who};
use crate::traffic::http::connect;
use crate::traffic::{alone, at, on, wait_for};

/// Records of a kind; every line is one whole object.
fn records(path: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = match text.rfind('\n') {
        Some(end) => &text[..end],
        None => "",
    };
    let parse =
        |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let records = whole.lines().map(parse);
    records
        .filter(|record| record["event_type"] == kind)
        .collect()
}

#[test]
fn events_are_written_and_go_on_in_a_new_file_after_a_rotation() {
    let _alone = alone();
    let dir = std::env::temp_dir().join(format!("fsm-events-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let [path, old] = ["eve.json", "eve.json.1"].map(|name| dir.join(name));
    let policy = "[[dpi.policy]]\nfrom = \"10.1.0.2\"\napps = [\"http\"]\naction = \"violate\"\n";
    let events = format!("{policy}[events]\neve = \"{}\"\n", path.display());
    let lab = lab("events", &dpi("protect", 1, &events));
    who(&lab.app1(), "http://20.0.0.2:8080/who").unwrap();
    wait_for("an HTTP record", Duration::from_secs(5), || {
        !records(&path, "http").is_empty()
    });
    let http = &records(&path, "http")[0];
    assert_eq!(http["http"]["url"], "/who");
    assert_eq!(http["http"]["status"], 200);
    assert_eq!(
        (&http["dest_ip"], &http["dest_port"]),
        (&"20.0.0.2".into(), &8080.into())
    );
    assert_eq!(
        (&http["proto"], &http["app_proto"]),
        (&"TCP".into(), &"http".into())
    );
    wait_for("an alert", Duration::from_secs(5), || {
        !records(&path, "alert").is_empty()
    });
    let alert = &records(&path, "alert")[0];
    assert_eq!(alert["alert"]["action"], "allowed");
    assert_eq!(alert["flow_id"], http["flow_id"]);
    // Opened and closed without a word: over 15 seconds later.
    on(&lab, Role::App1, || {
        drop(connect(at("20.0.0.2:8080")).unwrap())
    });
    wait_for("a flow record", Duration::from_secs(30), || {
        !records(&path, "flow").is_empty()
    });
    let flow = &records(&path, "flow")[0];
    assert_eq!(
        (&flow["flow"]["state"], &flow["dest_port"]),
        (&"closed".into(), &8080.into())
    );
    assert!(
        flow["flow"]["start"].as_str() <= flow["timestamp"].as_str(),
        "{flow}"
    );

    fs::rename(&path, &old).unwrap();
    let pid = lab.daemon().unwrap().pid.to_string();
    lab.node().cmd("kill", ["-HUP", &pid]).unwrap();
    wait_for("a new file", Duration::from_secs(5), || path.exists());
    let before = records(&old, "http").len();
    who(&lab.app1(), "http://20.0.0.2:8080/who").unwrap();
    wait_for("a record in the new file", Duration::from_secs(5), || {
        !records(&path, "http").is_empty()
    });
    assert_eq!(records(&old, "http").len(), before);
    // Switched off and to another place by a reload.
    super::reload(&lab, |text| text.replace("eve.json", "other.json"));
    who(&lab.app1(), "http://20.0.0.2:8080/who").unwrap();
    let other = dir.join("other.json");
    wait_for("a record in another file", Duration::from_secs(5), || {
        !records(&other, "http").is_empty()
    });
    // A place that is not there is refused, and nothing changes.
    let config = lab.plan().config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("/other.json", "/nowhere/eve.json")).unwrap();
    let error = lab.fsm(&["reload"]).unwrap_err().to_string();
    assert!(error.contains("events.eve: there is no folder"), "{error}");
    assert!(lab.fsm(&["check"]).is_err());
    drop(lab);
    fs::remove_dir_all(&dir).unwrap();
}
