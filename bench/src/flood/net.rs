//! A client, a node and an app in a row; the client's calls to the app end at the node's own listener.

use std::{path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    hosts::{Hosts, Running, sh},
    load,
};

/// What the node translates with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// nft's DNAT with conntrack.
    Nft,
    /// Our programs.
    Ours,
    /// Our programs, with `[[protect]]`.
    Guarded,
}

impl Mode {
    /// Its word in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ours => "ours",
            Self::Guarded => "ours, protected",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ours => "ours",
            Self::Guarded => "guard",
        }
    }
}

/// Whom clients call, and where that ends.
pub const APP: &str = "10.1.0.2";
const LISTENER: &str = "192.168.226.22";
/// MACs: the wire's ends, node and client; the app.
const MACS: [&str; 3] = [
    "02:00:00:00:00:01",
    "02:00:00:00:00:02",
    "02:00:00:00:00:03",
];
/// New flows a second that `[[protect]]` lets through: above what the real clients make.
pub const PROTECT_RATE: u32 = 1000;

/// The three hosts; removed when dropped.
pub struct Row {
    hosts: Hosts,
    mode: Mode,
}

impl Row {
    /// Makes hosts, listener and rules.
    pub fn new(mode: Mode, daemon: &Path) -> Result<Self> {
        let hosts = Hosts::new(mode.label(), &["client", "node", "app"])?;
        let mut row = Self { hosts, mode };
        row.build()?;
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        row.hosts
            .spawn("client", &[&*own, "load", "wire", "--device", "eth0"])?;
        row.listen()?;
        match mode {
            Mode::Nft => row.nft()?,
            Mode::Ours | Mode::Guarded => {
                row.hosts
                    .daemon("node", daemon, &config(mode == Mode::Guarded))?;
            }
        }
        Ok(row)
    }

    /// Whether this build knows `[[protect]]`.
    pub fn can_protect(daemon: &Path) -> Result<bool> {
        let hosts = Hosts::new("check", &["node"])?;
        anyhow::ensure!(
            hosts.accepts("node", daemon, &config(false))?,
            "the daemon does not take this benchmark's configuration"
        );
        hosts.accepts("node", daemon, &config(true))
    }

    /// The client plays the wire: whole frames with complete checksums. What redirected frames arrive at needs
    /// NAPI, which GRO switches on.
    fn build(&self) -> Result<()> {
        let [client, node, app] = ["client", "node", "app"].map(|host| self.hosts.netns(host));
        let [node_mac, client_mac, app_mac] = MACS;
        // As a network card has them.
        let queues = std::thread::available_parallelism()?;
        sh(&format!(
            "ip -n {node} link add up0 numrxqueues {queues} numtxqueues {queues} address {node_mac} type veth \
                peer name eth0 numrxqueues {queues} numtxqueues {queues} address {client_mac} netns {client}
             ip -n {node} link add veth-app type veth peer name eth0 address {app_mac} netns {app}
             ip -n {node} addr add 20.0.0.1/24 dev up0
             ip -n {node} addr add 10.1.0.1/24 dev veth-app
             ip -n {node} addr add {LISTENER}/32 dev lo
             ip -n {client} addr add 20.0.0.10/24 dev eth0
             ip -n {app} addr add {APP}/24 dev eth0
             nsenter --net=/run/netns/{client} ethtool -K eth0 tx off tso off gso off gro on
             nsenter --net=/run/netns/{node} ethtool -K up0 gro on
             ip -n {node} link set up0 up; ip -n {node} link set veth-app up
             ip -n {client} link set eth0 up; ip -n {app} link set eth0 up
             ip -n {client} route add default via 20.0.0.1
             ip -n {app} route add default via 10.1.0.1
             ip -n {node} neigh add {APP} lladdr {app_mac} dev veth-app nud permanent
             ip -n {node} route add 198.18.0.0/15 via 20.0.0.10"
        ))?;
        self.hosts.sysctl(
            "node",
            "net.ipv4.ip_forward=1 net.core.somaxconn=4096 net.ipv4.conf.all.rp_filter=0",
        )
    }

    fn listen(&mut self) -> Result<()> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        let args = [
            &*own,
            "load",
            "serve",
            "--listen",
            LISTENER,
            "--workers",
            "32",
        ];
        self.hosts.spawn("node", &args)?;
        sleep(Duration::from_millis(300));
        Ok(())
    }

    fn nft(&self) -> Result<()> {
        let (tcp, udp) = (load::TCP, load::UDP);
        let rules = format!(
            "table ip nat {{ chain pre {{ type nat hook prerouting priority dstnat; \
             iifname \"up0\" ip daddr {APP} tcp dport {tcp} dnat to {LISTENER}; \
             iifname \"up0\" ip daddr {APP} udp dport {udp} dnat to {LISTENER}; }}; }}"
        );
        self.hosts.nft("node", &rules)
    }

    /// Connections that send so much together, for so long.
    pub fn hold(&self, connections: u32, mbit: u32, seconds: f64) -> Result<Running> {
        let [connections, mbit] = [connections, mbit].map(|number| number.to_string());
        let seconds = seconds.to_string();
        self.hosts.start_load(
            "client",
            &[
                "hold",
                "--to",
                APP,
                "--connections",
                &connections,
                "--mbit",
                &mbit,
                "--seconds",
                &seconds,
            ],
        )
    }

    /// New connections.
    pub fn probe(&self, rate: u32, seconds: f64) -> Result<Running> {
        let [rate, seconds] = [rate.to_string(), seconds.to_string()];
        self.hosts.start_load(
            "client",
            &["probe", "--to", APP, "--rate", &rate, "--seconds", &seconds],
        )
    }

    /// A flood, until it has ended.
    pub fn flood(&self, kind: &str, rate: u64, seconds: u32) -> Result<Value> {
        let port = if kind == "syn" { load::TCP } else { load::UDP };
        let to = format!("{APP}:{port}");
        let [rate, seconds] = [rate.to_string(), seconds.to_string()];
        self.hosts.load(
            "client",
            &[
                "flood",
                "--device",
                "eth0",
                "--mac",
                MACS[0],
                "--kind",
                kind,
                "--to",
                &to,
                "--rate",
                &rate,
                "--seconds",
                &seconds,
            ],
        )
    }

    /// Packets of the flood that have arrived at the node: those that the wire has taken from XDP.
    pub fn arrived(&self) -> Result<u64> {
        let output = self
            .hosts
            .command("client", &["ethtool", "-S", "eth0"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let counters = text.lines().filter_map(|line| line.trim().split_once(": "));
        let sent = counters
            .filter(|(name, _)| name.starts_with("tx_queue_") && name.ends_with("_xdp_xmit"));
        sent.map(|(_, count)| count.parse::<u64>().context("ethtool -S"))
            .sum()
    }

    /// What the connection table says of itself.
    pub fn table(&self, daemon: &Path) -> Result<Value> {
        if self.mode == Mode::Nft {
            let args = ["sysctl", "-n", "net.netfilter.nf_conntrack_count"];
            let count = self.hosts.json("node", &args)?;
            let output = self
                .hosts
                .command("node", &["cat", "/proc/net/stat/nf_conntrack"])
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            return Ok(json!({ "connections": count, "stat": statistics(&text) }));
        }
        let file = self.hosts.dir.join("node.toml");
        let args = [
            &*daemon.to_string_lossy(),
            "--config",
            &file.to_string_lossy(),
            "-o",
            "json",
            "status",
        ];
        let status = self.hosts.json("node", &args)?;
        Ok(json!({ "drops": status["drops"], "notes": status["notes"] }))
    }
}

/// Sums over the CPUs of the counters in `/proc/net/stat/nf_conntrack` that tell of losses.
fn statistics(text: &str) -> Value {
    let mut lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let names = lines.next().unwrap_or_default();
    let rows: Vec<_> = lines.collect();
    let mut sums = serde_json::Map::new();
    for wanted in ["insert_failed", "drop", "early_drop", "clash_resolve"] {
        let Some(at) = names.iter().position(|name| *name == wanted) else {
            continue;
        };
        let values = rows.iter().filter_map(|row| row.get(at));
        let sum: u64 = values
            .filter_map(|hex| u64::from_str_radix(hex, 16).ok())
            .sum();
        sums.insert(wanted.to_owned(), sum.into());
    }
    Value::Object(sums)
}

fn config(protect: bool) -> String {
    let mut config = "[[interface]]\nname = \"up0\"\nrole = \"uplink\"\n\
         [[interface]]\nname = \"veth-app\"\nrole = \"endpoint\"\n"
        .to_owned();
    for (proto, port) in [("tcp", load::TCP), ("udp", load::UDP)] {
        config += &format!(
            "[[nat]]\ndirection = \"ingress\"\nproto = \"{proto}\"\nto = \"{APP}:{port}\"\n\
             endpoints = [{{ addr = \"{LISTENER}:{port}\" }}]\n"
        );
        if protect {
            config += &format!(
                "[[protect]]\nto = \"{APP}:{port}\"\nproto = \"{proto}\"\nnew_per_s = {PROTECT_RATE}\n"
            );
        }
    }
    config
}
