//! Inspection with the real daemon: real programs by workers, what verdicts do to their connections, and what becomes
//! of them when workers fail.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

mod traffic;

#[path = "inspect/events.rs"]
mod events;
#[path = "inspect/failures.rs"]
mod failures;
#[path = "inspect/verdicts.rs"]
mod verdicts;
#[path = "inspect/whole.rs"]
mod whole;

use std::fs;

use fsm_fastpath::lab::{Host, Lab};
use serde_json::Value;

use traffic::lab;

/// `[dpi]` in this mode with this many workers, and more.
fn dpi(mode: &str, workers: usize, more: &str) -> String {
    // Two cores are what the smallest host has; a core may have several workers.
    let cores: Vec<String> = (0..workers).map(|at| at.to_string()).collect();
    format!(
        "\n[dpi]\nmode = \"{mode}\"\ncores = [{}]\n{more}\n",
        cores.join(", ")
    )
}

/// Rows of `status` for the workers.
fn workers(lab: &Lab) -> Vec<Value> {
    let status = lab.fsm(&["status"]).unwrap();
    status["workers"].as_array().cloned().unwrap_or_default()
}

/// Sum of a number of all workers, as `/packets/rx`.
fn sum(workers: &[Value], of: &str) -> u64 {
    workers
        .iter()
        .map(|row| row.pointer(of).and_then(Value::as_u64))
        .map(|number| number.unwrap_or_else(|| panic!("no {of} in {workers:?}")))
        .sum()
}

/// No frame is missing, and none was lost for want of room.
#[track_caller]
fn assert_nothing_lost(lab: &Lab) {
    let workers = workers(lab);
    let lost = ["/lost", "/frames/leaked", "/restarts"].map(|what| sum(&workers, what));
    assert_eq!(lost, [0; 3], "{workers:#?}");
    let drops = lab.fsm(&["status"]).unwrap()["drops"].clone();
    assert_eq!(drops["escalation_lost"], 0, "{drops}");
}

/// Flows by protocol, from `dpi apps`.
fn app_flows(lab: &Lab, app: &str) -> u64 {
    let rows = lab.fsm(&["dpi", "apps"]).unwrap();
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["app"] == app);
    row.map_or(0, |row| row["flows"].as_u64().unwrap())
}

/// Asks a web server who came; what curl said where that failed.
fn who(host: &Host, url: &str) -> Result<String, String> {
    host.cmd("curl", ["-gsS", "--max-time", "2", url])
        .map_err(|error| error.to_string())
}

/// Changes the node's file and has the daemon take it over.
fn reload(lab: &Lab, change: impl FnOnce(String) -> String) {
    let path = lab.plan().config();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
    lab.fsm(&["reload"]).unwrap();
}

/// What becomes of flows when workers fail.
fn set_fail(lab: &Lab, fail: &str) {
    reload(lab, |text| {
        let text = text.replace("fail = \"open\"", &format!("fail = \"{fail}\""));
        text.replace("fail = \"closed\"", &format!("fail = \"{fail}\""))
    });
}
