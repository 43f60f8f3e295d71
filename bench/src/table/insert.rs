//! Connections a second that the programs can take: SYN, SYN-ACK and ACK of each, until it is in the main table.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Result, ensure};
use fsm_common::{Reason, maps::role};
use serde::Serialize;

use crate::{
    asm::{self, Wrapper},
    entries::{self, Headers},
    machine::median,
    packet::{Segment, frame4},
    sys::{self, ProgramKind},
    world::{HASH, World, default_flags},
};

/// Connections of one sample.
const SAMPLE: usize = 20_000;
/// Where the keys of the flows made here are.
pub const NET: u8 = 0;

/// ns a connection, in the order in which the table was filled.
#[derive(Serialize)]
pub struct Figures {
    ns_per_connection: Vec<f64>,
}

/// Makes `flows` flows with origins in an empty table.
pub fn measure(world: &mut World, empty: &OwnedFd, flows: u32) -> Result<Figures> {
    world.place(role::ENDPOINT, &world.settings(default_flags(true), HASH))?;
    let keys = entries::random(flows, NET);
    let [from_app, to_app] = world.tc()?;
    let frame = frame4(&keys[0], Segment::HANDSHAKE[0]);
    let before = world.reason(Reason::FlowNew)?;
    let mut figures = Figures {
        ns_per_connection: Vec::new(),
    };
    for keys in keys.chunks(SAMPLE) {
        let headers = Headers::new(&entries::handshakes(keys))?;
        let (map, count) = (headers.map.as_raw_fd(), headers.count);
        let empty = empty.as_raw_fd();
        let base = Wrapper::new(ProgramKind::Tc, map, count, [empty; asm::TARGETS])?;
        let program = Wrapper::new(
            ProgramKind::Tc,
            map,
            count,
            [from_app.as_raw_fd(), to_app.as_raw_fd()],
        )?;
        let base = sys::test_run(&base.program, &frame, count, None)?.ns;
        let ns = sys::test_run(&program.program, &frame, count, None)?.ns;
        figures
            .ns_per_connection
            .push(3.0 * (f64::from(ns) - f64::from(base)));
    }
    let made = world.reason(Reason::FlowNew)? - before;
    ensure!(
        made == u64::from(flows),
        "{made} of {flows} flows were made"
    );
    for key in keys.iter().step_by(9973) {
        let there = world.maps.flow4.get(key, 0).is_ok()
            && world.maps.flow4.get(&entries::answer(key), 0).is_ok()
            && world.maps.xopt.get(&entries::origin(key), 0).is_ok();
        ensure!(there, "{key:?} has not settled");
    }
    Ok(figures)
}

impl Figures {
    /// As a table.
    pub fn print(&self) {
        let all = &self.ns_per_connection;
        let tenth = (all.len() / 10).max(1);
        println!(
            "| connections made by the programs (SYN, SYN-ACK, ACK, origin) | ns | a second, one core |"
        );
        println!("|---|---:|---:|");
        for (name, part) in [
            ("all", &all[..]),
            ("the first tenth", &all[..tenth]),
            ("the last tenth", &all[all.len() - tenth..]),
        ] {
            let ns = median(part);
            println!("| {name} | {ns:.0} | {:.0} |", 1e9 / ns);
        }
        println!();
    }
}
