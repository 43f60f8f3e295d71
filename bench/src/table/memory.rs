//! Kernel memory of a connection: ours, IPv4 and IPv6, and netfilter's.

use std::{
    os::fd::AsRawFd as _,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use fsm_common::{
    flow::{FlowKey, nf},
    maps::name,
};
use serde::Serialize;

use crate::{
    ctnetlink, entries, kernel,
    packet::{TCP, key6},
    sys,
    world::World,
};

/// Bytes.
#[derive(Serialize, Default)]
pub struct Figures {
    flows: u32,
    /// Size of a connection, the extensions for NAT and the like not included; and how many there are.
    netfilter_slab_object: Option<(u64, u64)>,
    netfilter_slab_bytes: i64,
    netfilter_insert_s: f64,
    /// For how many IPv4 flows the maps are.
    capacity: u64,
    /// By map, preallocated.
    maps: Vec<(&'static str, u64)>,
    ipv6_flows: u32,
    ipv6_map_bytes: i64,
    ipv6_slab_bytes: i64,
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The difference that `change` makes to the slabs.
fn slab_difference(change: impl FnOnce() -> Result<()>) -> Result<i64> {
    let before = kernel::slab_bytes()?;
    change()?;
    Ok(signed(kernel::slab_bytes()?) - signed(before))
}

/// Fills netfilter's table in this namespace, looks, and empties it.
pub fn netfilter(flows: u32) -> Result<Figures> {
    let mut figures = Figures {
        flows,
        ..Figures::default()
    };
    let keys = entries::random(flows, 0);
    let start = Instant::now();
    figures.netfilter_slab_bytes = slab_difference(|| ctnetlink::insert_established(&keys))?;
    figures.netfilter_insert_s = start.elapsed().as_secs_f64();
    figures.netfilter_slab_object = kernel::slab("nf_conntrack")?;
    let objects = figures.netfilter_slab_object.map_or(0, |slab| slab.0);
    ensure!(
        objects >= u64::from(flows),
        "netfilter has only {objects} connections"
    );
    ctnetlink::flush()?;
    // They go after a grace period.
    sleep(Duration::from_millis(500));
    Ok(figures)
}

impl Figures {
    /// Looks at our maps, and at IPv6 by filling its table and emptying it again.
    pub fn ours(&mut self, world: &mut World, flows: u32) -> Result<()> {
        self.capacity = u64::from(world.maps.max_entries(name::FSM_XFLOW)? / 2);
        for name in [
            name::FSM_XFLOW,
            name::FSM_XOPT,
            name::FSM_HALF,
            name::FSM_XOPT_HALF,
            name::FSM_XFLOW6,
            name::FSM_HALF6,
        ] {
            let map = sys::pinned(&world.maps.dir.join(name))?;
            self.maps.push((name, kernel::map_bytes(map.as_raw_fd())?));
        }
        let map = sys::pinned(&world.maps.dir.join(name::FSM_XFLOW6))?;
        let keys: Vec<_> = (0..flows)
            .map(|i| {
                let key = key6(TCP, i.to_be_bytes(), 40000, [20, 0, 0, 2], 8080);
                let to = key6(TCP, i.to_be_bytes(), 40000, [192, 168, 226, 22], 15001);
                (key, to)
            })
            .collect();
        let before = kernel::map_bytes(map.as_raw_fd())?;
        self.ipv6_flows = flows;
        self.ipv6_slab_bytes = slab_difference(|| {
            for part in keys.chunks(20_000) {
                insert6(map.as_raw_fd(), part)?;
            }
            Ok(())
        })?;
        self.ipv6_map_bytes = signed(kernel::map_bytes(map.as_raw_fd())?) - signed(before);
        for (key, to) in &keys {
            world.maps.flow6.remove(key)?;
            world.maps.flow6.remove(&to.reversed())?;
        }
        Ok(())
    }

    fn map(&self, wanted: &str) -> u64 {
        let found = self.maps.iter().find(|(name, _)| *name == wanted);
        found.map_or(0, |(_, bytes)| *bytes)
    }

    /// As a table.
    pub fn print(&self) {
        let (flows, capacity) = (f64::from(self.flows), self.capacity as f64);
        let main = (self.map(name::FSM_XFLOW) + self.map(name::FSM_XOPT)) as f64;
        println!("| kernel memory | bytes a connection | in all, MB |");
        println!("|---|---:|---:|");
        println!(
            "| IPv4: fsm_xflow and fsm_xopt, for {capacity} flows, taken at the start | {:.0} | {:.0} |",
            main / capacity,
            main / 1e6
        );
        println!(
            "| of this without origins | {:.0} | |",
            self.map(name::FSM_XFLOW) as f64 / capacity
        );
        let [map, slab] = [self.ipv6_map_bytes, self.ipv6_slab_bytes].map(|bytes| bytes as f64);
        println!(
            "| IPv6: entries of fsm_xflow6, by its fdinfo | {:.0} | {:.0} |",
            map / flows,
            map / 1e6
        );
        println!(
            "| the same by the slabs' growth | {:.0} | {:.0} |",
            slab / flows,
            slab / 1e6
        );
        let half = [name::FSM_HALF, name::FSM_XOPT_HALF, name::FSM_HALF6];
        let half: u64 = half.map(|name| self.map(name)).iter().sum();
        println!(
            "| half-open tables, both families | | {:.0} |",
            half as f64 / 1e6
        );
        let slab = self.netfilter_slab_bytes as f64;
        println!(
            "| netfilter, with DNAT, by the slabs' growth | {:.0} | {:.0} |",
            slab / flows,
            slab / 1e6
        );
        if let Some((objects, bytes)) = self.netfilter_slab_object {
            println!(
                "| of this nf_conntrack, {objects} objects | {bytes} | {:.0} |",
                (objects * bytes) as f64 / 1e6
            );
        }
        println!();
    }
}

type Key6 = FlowKey<[u8; 16]>;

/// Flows from tuple to tuple, each with its answer.
fn insert6(map: i32, keys: &[(Key6, Key6)]) -> Result<()> {
    let forward: Vec<_> = keys
        .iter()
        .map(|(key, to)| entries::translated(key, to, nf::ALLOW | nf::XNAT))
        .collect();
    let (answers, back): (Vec<_>, Vec<_>) = keys
        .iter()
        .map(|(key, to)| {
            let answer = to.reversed();
            let bits = nf::ALLOW | nf::XNAT | nf::REPLY;
            (answer, entries::translated(&answer, &key.reversed(), bits))
        })
        .unzip();
    let keys: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    sys::insert_all(map, &keys, &forward)?;
    Ok(sys::insert_all(map, &answers, &back)?)
}
