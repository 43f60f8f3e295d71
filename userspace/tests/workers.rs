//! Workers at work: frames go into `dpi0` as the data path sends them, and come out where they were taken. Each
//! test has a network namespace of its own.

#[path = "workers/faults.rs"]
mod faults;
#[path = "../../common/tests/support/frame.rs"]
#[allow(dead_code, reason = "the tests of other crates use the rest")]
mod frame;
#[path = "workers/round.rs"]
mod round;
#[path = "workers/speed.rs"]
mod speed;
#[path = "workers/stage.rs"]
mod stage;
#[path = "workers/verdicts.rs"]
mod verdicts;
