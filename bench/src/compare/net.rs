//! One pair of namespaces: an app, and a node with the listeners that its connections end at.

use std::{os::fd::AsRawFd as _, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use fsm_common::{
    flow::Address as _,
    maps::{Origin, name},
};
use fsm_fastpath::maps::pin_dir;
use serde_json::Value;

use crate::{
    entries,
    hosts::{Hosts, sh},
    load, sys,
};

/// How the app's connections get to the listener.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It calls the listener itself.
    Direct,
    /// It calls somebody else; nft's DNAT with conntrack.
    Nft,
    /// The same, by our programs.
    Ours,
}

impl Mode {
    /// In the order of the table.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Nft, Self::Ours];

    /// Its word in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nft => "nft",
            Self::Ours => "ours",
        }
    }
}

/// Ports of the listeners: iperf3, TCP, UDP.
const PORTS: [(&str, u16); 3] = [("tcp", 5201), ("tcp", load::TCP), ("udp", load::UDP)];
/// The listener's address, and whom the app thinks it calls.
const LISTENER: &str = "192.168.226.22";
const ELSEWHERE: &str = "20.0.0.2";

/// A pair; removed when dropped.
pub struct Pair {
    /// Its mode.
    pub mode: Mode,
    hosts: Hosts,
}

impl Pair {
    /// Makes namespaces, listeners and rules.
    pub fn new(mode: Mode, daemon: &Path) -> Result<Self> {
        let hosts = Hosts::new(mode.name(), &["app", "node"])?;
        let mut pair = Self { mode, hosts };
        pair.build()?;
        pair.listen()?;
        match mode {
            Mode::Direct => {}
            Mode::Nft => pair.nft()?,
            Mode::Ours => pair.daemon(daemon)?,
        }
        Ok(pair)
    }

    fn build(&self) -> Result<()> {
        let [app, node] = ["app", "node"].map(|host| self.hosts.netns(host));
        sh(&format!(
            "ip -n {node} link add veth-app type veth peer name eth0 netns {app}
             ip -n {node} addr add 10.1.0.1/24 dev veth-app
             ip -n {node} addr add {LISTENER}/32 dev lo
             ip -n {app} addr add 10.1.0.2/24 dev eth0
             ip -n {node} link set veth-app up; ip -n {app} link set eth0 up
             ip -n {app} route add default via 10.1.0.1"
        ))?;
        self.hosts
            .sysctl("node", "net.ipv4.ip_forward=1 net.core.somaxconn=4096")?;
        self.hosts
            .sysctl("app", "net.ipv4.ip_local_port_range='1024 65000'")
    }

    fn listen(&mut self) -> Result<()> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        self.hosts
            .spawn("node", &["iperf3", "-s", "-B", LISTENER])?;
        self.hosts
            .spawn("node", &[&own, "load", "serve", "--listen", LISTENER])?;
        sleep(Duration::from_millis(300));
        Ok(())
    }

    fn nft(&self) -> Result<()> {
        let rules = format!(
            "table ip nat {{ chain pre {{ type nat hook prerouting priority dstnat; \
             iifname \"veth-app\" ip daddr {ELSEWHERE} dnat to {LISTENER}; }}; }}"
        );
        self.hosts.nft("node", &rules)
    }

    fn daemon(&mut self, daemon: &Path) -> Result<()> {
        let mut config = "[[interface]]\nname = \"veth-app\"\nrole = \"endpoint\"\n".to_owned();
        for (proto, port) in PORTS {
            config += &format!(
                "[[nat]]\ndirection = \"egress\"\nproto = \"{proto}\"\nto = \"{ELSEWHERE}:{port}\"\n\
                 endpoints = [{{ addr = \"{LISTENER}:{port}\" }}]\n"
            );
        }
        self.hosts.daemon("node", daemon, &config)
    }

    /// Fills the connection table with this many established, translated connections of others, origins
    /// included; what is there already stays.
    pub fn fill(&self, flows: std::ops::Range<u32>) -> Result<()> {
        match self.mode {
            Mode::Direct => Ok(()),
            Mode::Nft => {
                let [from, to] = [flows.start, flows.end].map(|n| n.to_string());
                self.hosts
                    .load("node", &["fill", "--from", &from, "--to", &to])
                    .map(drop)
            }
            Mode::Ours => {
                let dir = pin_dir(&self.hosts.dir.join("bpf"));
                let [table, origins] = [name::FSM_XFLOW, name::FSM_XOPT]
                    .map(|name| sys::pinned(&dir.join(name)).with_context(|| name.to_owned()));
                let (table, origins) = (table?, origins?);
                for keys in load::others(flows).chunks(20_000) {
                    entries::insert_into(table.as_raw_fd(), keys)?;
                    let (seen, asked): (Vec<_>, Vec<_>) = keys
                        .iter()
                        .map(|key| {
                            let asked = Origin {
                                daddr: key.daddr.widen(),
                                saddr: key.saddr.widen(),
                                dport: key.dport,
                                sport: key.sport,
                                proto: key.proto,
                                v6: 0,
                                pad: [0; 2],
                            };
                            (entries::origin(key), asked)
                        })
                        .unzip();
                    sys::insert_all(origins.as_raw_fd(), &seen, &asked)?;
                }
                Ok(())
            }
        }
    }

    fn to(&self) -> &'static str {
        if self.mode == Mode::Direct {
            LISTENER
        } else {
            ELSEWHERE
        }
    }

    fn ask(&self, what: &str, seconds: u32) -> Result<Value> {
        let time = seconds.to_string();
        self.hosts
            .load("app", &[what, "--to", self.to(), "--seconds", &time])
    }

    /// Connections a second, and their CPU.
    pub fn connections(&self, seconds: u32) -> Result<Vec<(&'static str, f64)>> {
        let connect = self.ask("connect", seconds)?;
        Ok(vec![
            ("connections", number(&connect, "per_second")?),
            ("cpu of a connection", number(&connect, "cpu_us")?),
        ])
    }

    /// Everything once.
    pub fn measure(&self, seconds: u32) -> Result<Vec<(&'static str, f64)>> {
        let time = seconds.to_string();
        let bulk = self
            .hosts
            .json("app", &["iperf3", "-J", "-c", self.to(), "-t", &time])?;
        let bits = bulk["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3")?;
        let mut figures = vec![("bulk", bits / 1e9)];
        figures.extend(self.connections(seconds)?);
        let trip = self.ask("trip", seconds)?;
        let udp = self.ask("udp", seconds)?;
        figures.extend([
            ("round trip p50", number(&trip, "p50_us")?),
            ("round trip p99", number(&trip, "p99_us")?),
            ("udp 64 bytes", number(&udp, "per_second")?),
        ]);
        Ok(figures)
    }
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .with_context(|| format!("{key}: {value}"))
}
