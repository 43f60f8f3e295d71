//! Real traffic for tests over the lab: sockets and raw frames of any host, from threads that have entered
//! its namespace.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "../../../common/tests/support/frame.rs"]
pub mod frame;
pub mod http;
pub mod raw;

use std::fs::File;
use std::io::{Error, Result};
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use fsm_fastpath::lab::{Lab, Opts, Role, Wire};
use serde_json::Value;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");

/// One lab at a time: on a small machine two of them would measure each other.
static ONE_LAB: Mutex<()> = Mutex::new(());

/// Waits for its turn.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab of its own; `extra` is appended to the node's configuration.
pub fn lab(tag: &str, extra: &str) -> Lab {
    lab_over(None, tag, extra)
}

/// The same, over a bad wire.
pub fn lab_over(wire: Option<Wire>, tag: &str, extra: &str) -> Lab {
    let opts = Opts {
        name: format!("fsmf-{}-{tag}", std::process::id()),
        binary: Some(BINARY.into()),
        extra_config: extra.to_owned(),
        wire,
        ..Opts::default()
    };
    Lab::up(&opts).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether the long tests are asked for (`scripts/soak`).
pub fn is_soak() -> bool {
    std::env::var_os("FSM_SOAK").is_some_and(|value| value == "1")
}

/// Runs something on a thread inside a network namespace.
pub fn spawn_inside<T: Send + 'static>(
    netns: &Path,
    task: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let netns = netns.to_owned();
    thread::spawn(move || {
        let file = File::open(&netns).unwrap_or_else(|e| panic!("{}: {e}", netns.display()));
        // SAFETY: a valid descriptor of a network namespace; this thread alone enters it, and for good.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "setns: {}", Error::last_os_error());
        task()
    })
}

/// Runs something inside a host of the lab, on a thread of its own.
pub fn spawn_on<T: Send + 'static>(
    lab: &Lab,
    role: Role,
    task: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    spawn_inside(&lab.plan().netns_path(role), task)
}

/// Runs something inside a host of the lab and waits for it.
pub fn on<T: Send + 'static>(
    lab: &Lab,
    role: Role,
    task: impl FnOnce() -> T + Send + 'static,
) -> T {
    done(spawn_on(lab, role, task))
}

/// The result of a thread; its panic is the test's.
pub fn done<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An address from its text.
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A drop's counter.
pub fn drops(lab: &Lab, reason: &str) -> u64 {
    counter(lab, "drops", reason)
}

/// A note's counter.
pub fn notes(lab: &Lab, reason: &str) -> u64 {
    counter(lab, "notes", reason)
}

fn counter(lab: &Lab, kind: &str, reason: &str) -> u64 {
    let status = lab.fsm(&["status"]).unwrap();
    status[kind][reason]
        .as_u64()
        .unwrap_or_else(|| panic!("no {kind}.{reason}: {status}"))
}

/// The rows of `flow list` for a filter.
pub fn flows(lab: &Lab, filter: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["flow", "list"].iter().chain(filter).copied().collect();
    match lab.fsm(&args).unwrap() {
        Value::Array(rows) => rows,
        other => panic!("not a list: {other}"),
    }
}

/// Waits until something holds.
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(100));
    }
}

/// Sets a socket option that is a number.
pub fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: pointer and length describe `value`.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, length) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Reads a socket option that is a number.
pub fn option(socket: &impl AsRawFd, level: i32, option: i32) -> Result<i32> {
    let (mut value, mut length) = (0_i32, size_of::<i32>() as libc::socklen_t);
    let pointer = (&raw mut value).cast();
    // SAFETY: pointer and length describe `value`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, pointer, &raw mut length) };
    match result {
        0 => Ok(value),
        _ => Err(Error::last_os_error()),
    }
}

/// A fixed stream of bytes that repeats at no offset of a segment: what is changed, lost or swapped shows.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
