//! Inspection with the real daemon: every flow of the lab by a worker, what verdicts do to real connections, and what
//! becomes of them when workers fail.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

mod traffic;

use fsm_fastpath::lab::{self, Opts};
use serde_json::Value;

use traffic::{BINARY, alone};

/// `[dpi]` in this mode with this many workers, and more.
fn dpi(mode: &str, workers: usize, more: &str) -> String {
    // Two cores are what the smallest host has; a core may have several workers.
    let cores: Vec<String> = (0..workers).map(|at| (at % 2).to_string()).collect();
    format!(
        "\n[dpi]\nmode = \"{mode}\"\ncores = [{}]\n{more}\n",
        cores.join(", ")
    )
}

fn opts(tag: &str, extra: String) -> Opts {
    Opts {
        name: format!("fsmi-{}-{tag}", std::process::id()),
        binary: Some(BINARY.into()),
        extra_config: extra,
        ..Opts::default()
    }
}

#[test]
fn everything_that_works_without_inspection_works_with_it() {
    let _alone = alone();
    let report = lab::run(&opts("all", dpi("protect", 1, "")))
        .unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    assert!(report.passed, "{report}");
}
