//! User space of fsm-fastpath: configuration, loader, control, command line, lab.
#![warn(missing_docs)]

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod dpi;
pub mod eve;
pub mod lab;
pub mod loader;
pub mod maps;
pub mod model;
pub mod pcap;
pub mod view;
pub mod worker;
pub mod xsk;

/// Frames for unit tests.
#[cfg(test)]
#[allow(dead_code, reason = "the tests of other crates use the rest")]
#[path = "../../common/tests/support/frame.rs"]
mod frame;
