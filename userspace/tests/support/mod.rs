//! Harness of `prog_run`: a node of its own for each test, frames, and what a program did with them.

#[path = "../../../common/tests/support/frame.rs"]
pub mod frame;
#[path = "../../../common/tests/support/golden.rs"]
pub mod golden;
pub mod model;
pub mod node;
pub mod rules;
pub mod seen;
pub mod stage;
pub mod table;
pub mod wiring;

pub use node::{Hook, LO, Node};
pub use stage::{alone, alone_with};
