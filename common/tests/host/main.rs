//! Host tests of the packet logic: properties against etherparse and against plain references, and the
//! golden packets.

#[path = "../support/frame.rs"]
#[expect(dead_code, reason = "prog_run uses the rest")]
mod frame;
#[path = "../fuzz/mod.rs"]
mod fuzz;
#[path = "../support/golden.rs"]
mod golden;

mod any;
mod checksum;
mod cookie;
mod corpus;
mod flow;
mod guard;
mod lists;
mod maglev;
mod nat;
mod packets;
mod parse;
mod parse_bad;
mod policy;
mod quoted;
mod rewrite;
mod track;
mod track_faults;
