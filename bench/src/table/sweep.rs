//! What the daemon's sweep over a big table costs: packets meanwhile, and a pass.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use fsm_common::{flow::FlowKey, maps::role, wire::l4::tcp_flag};
use fsm_fastpath::{
    config::{self, Conntrack},
    control::sweep::{Sweep, now_ns},
    maps::Maps,
};
use serde::Serialize;

use super::{Options, insert};
use crate::{
    asm::{self, Wrapper},
    entries::{self, Headers},
    machine::{self, median},
    packet::{TCP, frame4, key4},
    sys::{self, ProgramKind},
    world::{HASH, World, default_flags, peer},
};

/// Packets of one sample.
const SAMPLE: u32 = 200_000;
/// How often the daemon sweeps a slice.
const EVERY_S: f64 = 0.5;
/// What the sweeping thread does.
const REST: u8 = 0;
const SWEEP: u8 = 1;
const END: u8 = 2;

/// ns a packet above the wrapper's, and passes.
#[derive(Serialize)]
pub struct Figures {
    /// Names, then samples without and with the sweep.
    packets: Vec<(&'static str, [Vec<f64>; 2])>,
    /// Slices that were swept meanwhile, back to back; the daemon does two a second.
    slices_meanwhile: u64,
    /// A pass in which all flows stay: slices, entries, seconds of CPU.
    pass: Pass,
    /// One in which all go.
    ending: Pass,
}

#[derive(Serialize)]
struct Pass {
    slices: u32,
    entries: usize,
    seconds: f64,
    slowest_slice_s: f64,
}

/// The table must hold the flows that `insert` made; afterwards it is empty.
pub fn measure(world: &mut World, empty: &OwnedFd, options: &Options) -> Result<Figures> {
    world.place(role::ENDPOINT, &world.settings(default_flags(true), HASH))?;
    let conntrack = conntrack()?;
    let bpffs = world.bpffs()?;
    let one = key4(TCP, [10, 9, 9, 9], 40000, peer::NONE, 8080);
    entries::insert_established(world, &[one])?;
    let all = entries::random(options.flows, insert::NET);
    let paths = [("one flow", vec![one]), ("all flows in random order", all)]
        .into_iter()
        .map(|(name, keys)| Ok((name, Walk::new(world, empty, &keys)?)))
        .collect::<Result<Vec<_>>>()?;

    let (order, slices) = (AtomicU8::new(REST), AtomicU64::new(0));
    let mut packets: Vec<_> = paths
        .iter()
        .map(|(name, _)| (*name, [Vec::new(), Vec::new()]))
        .collect();
    let other_cpu = usize::from(options.cpu == 0);
    thread::scope(|scope| -> Result<()> {
        let sweeper =
            scope.spawn(|| sweep_on_order(&bpffs, &conntrack, other_cpu, &order, &slices));
        let sampled = (|| -> Result<()> {
            for _ in 0..options.rounds {
                for ((_, walk), (_, samples)) in paths.iter().zip(&mut packets) {
                    for (turn, order_now) in [REST, SWEEP].into_iter().enumerate() {
                        order.store(order_now, Ordering::Relaxed);
                        // A slice that was begun goes on for some milliseconds.
                        thread::sleep(Duration::from_millis(50));
                        samples[turn].push(walk.sample()?);
                    }
                }
            }
            Ok(())
        })();
        order.store(END, Ordering::Relaxed);
        sweeper
            .join()
            .map_err(|_| anyhow::anyhow!("the sweeping thread has died"))??;
        sampled
    })?;
    // `one` has an answer too.
    let expected = 2 * options.flows as usize + 2;
    let staying = pass(&bpffs, &conntrack, now_ns(), expected)?;
    ensure!(
        staying.entries >= expected,
        "{} of {expected} entries",
        staying.entries
    );
    let later = now_ns() + 1_000_000_000 * (u64::from(conntrack.tcp_established_s) + 1);
    let ending = pass(&bpffs, &conntrack, later, expected)?;
    for key in entries::random(options.flows, insert::NET)
        .iter()
        .step_by(9973)
    {
        ensure!(
            world.maps.flow4.get(key, 0).is_err(),
            "{key:?} has not ended"
        );
    }
    Ok(Figures {
        packets,
        slices_meanwhile: slices.load(Ordering::Relaxed),
        pass: staying,
        ending,
    })
}

/// The defaults, with so much room that nothing is evicted.
fn conntrack() -> Result<Conntrack> {
    let text =
        "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n[conntrack]\nmax_flows = 16777216\n";
    let config = config::parse(text, "node.toml".as_ref());
    Ok(config
        .map_err(|errors| anyhow::anyhow!("{errors}"))?
        .conntrack)
}

fn sweep_on_order(
    bpffs: &std::path::Path,
    conntrack: &Conntrack,
    cpu: usize,
    order: &AtomicU8,
    slices: &AtomicU64,
) -> Result<()> {
    machine::pin(cpu).with_context(|| format!("CPU {cpu} for the sweep"))?;
    let mut maps = Maps::open(bpffs)?;
    let mut sweep = Sweep::new(&maps.dir)?;
    loop {
        match order.load(Ordering::Relaxed) {
            REST => thread::sleep(Duration::from_millis(1)),
            SWEEP => {
                sweep.step(&mut maps, conntrack, now_ns(), false);
                slices.fetch_add(1, Ordering::Relaxed);
            }
            _ => return Ok(()),
        }
    }
}

/// Steps through the tables once: until so many entries have been seen, or the last slice was empty.
fn pass(
    bpffs: &std::path::Path,
    conntrack: &Conntrack,
    now_ns: u64,
    entries: usize,
) -> Result<Pass> {
    let mut maps = Maps::open(bpffs)?;
    let mut sweep = Sweep::new(&maps.dir)?;
    let mut pass = Pass {
        slices: 0,
        entries: 0,
        seconds: 0.0,
        slowest_slice_s: 0.0,
    };
    loop {
        let start = Instant::now();
        let swept = sweep.step(&mut maps, conntrack, now_ns, false);
        let took = start.elapsed().as_secs_f64();
        pass.slices += 1;
        pass.entries += swept.seen;
        pass.seconds += took;
        pass.slowest_slice_s = pass.slowest_slice_s.max(took);
        ensure!(pass.slices < 10_000, "a pass that does not end");
        if pass.entries >= entries || (swept.seen == 0 && pass.entries > 0) {
            return Ok(pass);
        }
    }
}

/// Packets of established flows, one after the other.
struct Walk {
    base: Wrapper,
    program: Wrapper,
    frame: Vec<u8>,
    _headers: Headers,
}

impl Walk {
    fn new(world: &mut World, empty: &OwnedFd, keys: &[FlowKey<[u8; 4]>]) -> Result<Self> {
        let headers = Headers::acks(keys)?;
        let [program, _] = world.tc()?;
        let wrap = |target: &OwnedFd| {
            let targets = [target.as_raw_fd(); asm::TARGETS];
            Wrapper::new(
                ProgramKind::Tc,
                headers.map.as_raw_fd(),
                headers.count,
                targets,
            )
        };
        Ok(Self {
            base: wrap(empty)?,
            program: wrap(&program)?,
            frame: frame4(&keys[0], tcp_flag::ACK),
            _headers: headers,
        })
    }

    fn sample(&self) -> Result<f64> {
        let run = |wrapper: &Wrapper| sys::test_run(&wrapper.program, &self.frame, SAMPLE, None);
        let base = run(&self.base)?.ns;
        Ok(f64::from(run(&self.program)?.ns) - f64::from(base))
    }
}

impl Figures {
    /// As tables.
    pub fn print(&self) {
        println!(
            "| packets while the sweep runs back to back on another core | without, ns | with, ns | times |"
        );
        println!("|---|---:|---:|---:|");
        for (name, [without, with]) in &self.packets {
            let (without, with) = (median(without), median(with));
            println!(
                "| {name} | {without:.0} | {with:.0} | {:.2} |",
                with / without
            );
        }
        println!(
            "\n| one pass of the sweep | entries | slices | CPU, s | slowest slice, ms | by the daemon's clock, s |"
        );
        println!("|---|---:|---:|---:|---:|---:|");
        for (name, pass) in [
            ("nothing ends", &self.pass),
            ("everything ends", &self.ending),
        ] {
            println!(
                "| {name} | {} | {} | {:.2} | {:.1} | {:.0} |",
                pass.entries,
                pass.slices,
                pass.seconds,
                pass.slowest_slice_s * 1e3,
                f64::from(pass.slices) * EVERY_S + pass.seconds,
            );
        }
        println!();
    }
}
