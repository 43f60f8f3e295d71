//! What a random flow's packet costs in tables of growing size, beside nothing but the look-up in the same map.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use anyhow::{Result, ensure};
use fsm_common::{maps::role, wire::l4::tcp_flag};
use serde::Serialize;

use super::Options;
use crate::{
    asm::{self, Wrapper},
    entries::{self, Headers},
    machine::median,
    packet::frame4,
    sys::{self, ProgramKind},
    world::{HASH, Sandbox, World, default_flags},
};

/// Packets of one sample.
const SAMPLE: u32 = 100_000;

/// ns a packet above the wrapper's, for one number of flows.
#[derive(Serialize)]
pub struct Figure {
    flows: u32,
    packet_ns: Vec<f64>,
    lookup_ns: Vec<f64>,
}

struct Table {
    world: World,
    base: Wrapper,
    program: Wrapper,
    lookup: Wrapper,
    frame: Vec<u8>,
    _headers: Headers,
}

/// Three tables of the same size, with 1000, 100000 and all flows in them, each walked through in random order.
pub fn measure(sandbox: &Sandbox, empty: &OwnedFd, options: &Options) -> Result<Vec<Figure>> {
    let sizes = [1_000, 100_000, options.flows];
    let room = options.room();
    let mut tables = sizes
        .iter()
        .map(|flows| Table::new(sandbox, empty, *flows, room))
        .collect::<Result<Vec<_>>>()?;
    let mut figures = sizes.map(|flows| Figure {
        flows,
        packet_ns: Vec::new(),
        lookup_ns: Vec::new(),
    });
    for _ in 0..options.rounds {
        for (table, figure) in tables.iter_mut().zip(&mut figures) {
            let base = run(&table.base, &table.frame)?;
            figure
                .packet_ns
                .push(run(&table.program, &table.frame)? - base);
            figure
                .lookup_ns
                .push(run(&table.lookup, &table.frame)? - base);
        }
    }
    for table in tables {
        drop(table.world);
    }
    Ok(figures.into())
}

fn run(wrapper: &Wrapper, frame: &[u8]) -> Result<f64> {
    let ran = sys::test_run(&wrapper.program, frame, SAMPLE, None)?;
    ensure!(ran.action == asm::pass(ProgramKind::Tc), "{ran:?}");
    Ok(f64::from(ran.ns))
}

impl Table {
    fn new(sandbox: &Sandbox, empty: &OwnedFd, flows: u32, room: u32) -> Result<Self> {
        let mut world = World::new(&sandbox.root, &format!("n{flows}"), room, 0)?;
        world.place(role::ENDPOINT, &world.settings(default_flags(true), HASH))?;
        let keys = entries::random(flows, 1);
        for part in keys.chunks(20_000) {
            entries::insert_established(&world, part)?;
        }
        let headers = Headers::acks(&keys)?;
        let [program, _] = world.tc()?;
        let lookup = asm::bare_lookup(world.flow4.as_raw_fd())?;
        let wrap = |target: RawFd| {
            let targets = [target; asm::TARGETS];
            Wrapper::new(ProgramKind::Tc, headers.map.as_raw_fd(), flows, targets)
        };
        Ok(Self {
            base: wrap(empty.as_raw_fd())?,
            program: wrap(program.as_raw_fd())?,
            lookup: wrap(lookup.as_raw_fd())?,
            frame: frame4(&keys[0], tcp_flag::ACK),
            world,
            _headers: headers,
        })
    }
}

/// As a table.
pub fn print(figures: &[Figure]) {
    let Some(least) = figures.first() else {
        return;
    };
    let (least_packet, least_lookup) = (median(&least.packet_ns), median(&least.lookup_ns));
    println!(
        "| random flow out of | packet, ns | times | look-up alone, ns | times | packet less look-up, ns |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for figure in figures {
        let (packet, lookup) = (median(&figure.packet_ns), median(&figure.lookup_ns));
        println!(
            "| {} | {packet:.0} | {:.2} | {lookup:.0} | {:.2} | {:.0} |",
            figure.flows,
            packet / least_packet,
            lookup / least_lookup,
            packet - lookup,
        );
    }
    println!();
}
