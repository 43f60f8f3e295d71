//! Host A, the node and host B in a row, and what takes packets on the node.

use std::{path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{ours, series};
use crate::{
    hosts::{Hosts, Running, sh},
    kernel::{cpu_time, packet_threads},
};

/// What a packet meets on the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// Forwarding alone.
    Direct,
    /// iptables' NFQUEUE and a consumer; the node forwards.
    Nfqueue,
    /// An AF_PACKET bridge, rings of V2; the node does not forward.
    Tpacket2,
    /// The same, V3.
    Tpacket3,
    /// An AF_XDP bridge between the two devices with libxdp; the node does not forward.
    Bridge,
    /// To a pair of devices, libxdp's loop on its far end, and back; the node forwards.
    Pair,
    /// The daemon's workers, with an engine that never comes to an end; the node forwards.
    Ours,
}

impl Mode {
    /// In the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Nfqueue,
        Self::Tpacket2,
        Self::Tpacket3,
        Self::Bridge,
        Self::Pair,
        Self::Ours,
    ];

    /// Its word in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nfqueue => "nfqueue",
            Self::Tpacket2 => "tpacket v2",
            Self::Tpacket3 => "tpacket v3",
            Self::Bridge => "xdpsock bridge",
            Self::Pair => "xdpsock pair",
            Self::Ours => "ours",
        }
    }

    /// Whether its consumer is a wire: A and B are each other's neighbours.
    const fn is_wire(self) -> bool {
        matches!(self, Self::Tpacket2 | Self::Tpacket3 | Self::Bridge)
    }
}

/// What a loop of libxdp does with what it gets on a pair of devices; nothing is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alone {
    /// Receives.
    Rx,
    /// Receives and sends back.
    RxTx,
}

impl Alone {
    /// In the order of the table.
    pub const ALL: [Self; 2] = [Self::Rx, Self::RxTx];

    /// Its word in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rx => "xdpsock rx",
            Self::RxTx => "xdpsock rx+tx",
        }
    }
}

/// CPU of A and B: sender, and both ends of the echo. What a packet does by itself, it does where it was sent.
pub const ENDS: usize = 0;
/// CPU of whatever consumes.
pub const CONSUMER: usize = 1;
/// Address of B.
const B: &str = "10.2.0.2";
/// Port of the datagrams that are counted.
const PORT: u16 = 9001;
/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: u64 = 42;
/// Last byte of the MAC that the node has towards A.
pub const TOWARDS_A: u8 = 1;
/// MACs: A, the node towards A and towards B, B.
const MACS: [&str; 4] = [
    "02:00:00:00:00:0a",
    "02:00:00:00:00:01",
    "02:00:00:00:00:02",
    "02:00:00:00:00:0b",
];

/// Packets that have come through.
#[derive(Serialize)]
pub struct Through {
    /// While they were sent.
    pub per_second: f64,
    /// Sent a second.
    pub sent_per_second: f64,
}

/// What a packet costs when there are not too many.
#[derive(Serialize)]
pub struct Cost {
    /// CPU time of the sender, nanoseconds, with what a packet does by itself.
    pub sender_ns: f64,
    /// Of the consumer, with what its packets do by themselves, and of `ksoftirqd`.
    pub consumer_ns: f64,
    /// Of those sent.
    pub arrived_share: f64,
}

/// The three hosts; removed when dropped.
pub struct Row {
    hosts: Hosts,
    /// Datagrams that leave together.
    train: u32,
}

impl Row {
    /// Hosts, devices and the consumer.
    pub fn new(mode: Mode, train: u32, xdpsock: &Path, daemon: &Path) -> Result<Self> {
        let hosts = Hosts::new(&mode.name().replace(' ', "-"), &["a", "node", "b"])?;
        let mut row = Self { hosts, train };
        row.build(mode.is_wire(), true)?;
        let cpu = CONSUMER.to_string();
        let program = xdpsock.to_string_lossy();
        match mode {
            Mode::Direct => {}
            Mode::Nfqueue => {
                row.node("iptables -A FORWARD -p udp -j NFQUEUE --queue-num 0")?;
                row.through(&["nfqueue", "--queue", "0", "--cpu", &cpu])?;
            }
            Mode::Tpacket2 => row.through(&["tpacket", "v2", "up0", "down0", "--cpu", &cpu])?,
            Mode::Tpacket3 => row.through(&["tpacket", "v3", "up0", "down0", "--cpu", &cpu])?,
            Mode::Bridge => {
                row.hosts
                    .spawn("node", &[&program, "bridge", &cpu, "0", "up0", "down0"])?;
            }
            Mode::Pair => {
                row.pair()?;
                row.hosts
                    .spawn("node", &[&program, "echo", &cpu, "0", "dpi1"])?;
                row.through(&["pair", "up0", "down0", "dpi0"])?;
            }
            Mode::Ours => row
                .hosts
                .daemon("node", daemon, &ours::config(ours::Dpi::Passing))?,
        }
        // All of them are there by then.
        sleep(Duration::from_millis(400));
        Ok(row)
    }

    /// Hosts and a pair for a loop alone.
    pub fn alone(what: Alone, train: u32, xdpsock: &Path) -> Result<Self> {
        let mut row = Self {
            hosts: Hosts::new(&what.name().replace([' ', '+'], "-"), &["a", "node", "b"])?,
            train,
        };
        row.build(false, true)?;
        row.pair()?;
        if what == Alone::RxTx {
            let (cpu, program) = (CONSUMER.to_string(), xdpsock.to_string_lossy());
            row.hosts
                .spawn("node", &[&program, "echo", &cpu, "0", "dpi1"])?;
        }
        row.through(&["take", "up0", "dpi0"])?;
        sleep(Duration::from_millis(400));
        Ok(row)
    }

    /// Hosts for bulk TCP: B is an app with all the offloads that there are, A somebody behind a network card.
    pub fn bulk(dpi: ours::Dpi, daemon: &Path) -> Result<Self> {
        let mut row = Self {
            hosts: Hosts::new(&format!("bulk-{}", dpi.name()), &["a", "node", "b"])?,
            train: 1,
        };
        row.build(false, false)?;
        row.hosts.daemon("node", daemon, &ours::config(dpi))?;
        row.hosts.spawn("b", &["iperf3", "-s", "-B", B])?;
        sleep(Duration::from_millis(300));
        Ok(row)
    }

    /// Ends that send whole frames, as a network card's other end does; NAPI on all devices, which GRO switches on.
    fn build(&self, is_wire: bool, is_plain: bool) -> Result<()> {
        let [a, node, b] = ["a", "node", "b"].map(|host| self.hosts.netns(host));
        let [mac_a, mac_up, mac_down, mac_b] = MACS;
        let (from_a, from_b) = if is_wire {
            (mac_b, mac_a)
        } else {
            (mac_up, mac_down)
        };
        for host in ["a", "node", "b"] {
            self.hosts.sysctl(
                host,
                "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
            )?;
        }
        sh(&format!(
            "ip -n {node} link add up0 numrxqueues 1 numtxqueues 1 address {mac_up} type veth \
                peer name eth0 numrxqueues 1 numtxqueues 1 address {mac_a} netns {a}
             ip -n {node} link add down0 numrxqueues 1 numtxqueues 1 address {mac_down} type veth \
                peer name eth0 numrxqueues 1 numtxqueues 1 address {mac_b} netns {b}
             ip -n {node} addr add 10.1.0.1/24 dev up0; ip -n {node} addr add 10.2.0.1/24 dev down0
             ip -n {a} addr add 10.1.0.2/24 dev eth0; ip -n {b} addr add {B}/24 dev eth0
             for host in {a} {b}; do nsenter --net=/run/netns/$host ethtool -K eth0 gro on; done
             for device in up0 down0; do nsenter --net=/run/netns/{node} ethtool -K $device gro on; done
             ip -n {node} link set up0 up; ip -n {node} link set down0 up
             ip -n {a} link set eth0 up; ip -n {b} link set eth0 up
             ip -n {a} neigh add 10.1.0.1 lladdr {from_a} dev eth0
             ip -n {b} neigh add 10.2.0.1 lladdr {from_b} dev eth0
             ip -n {node} neigh add 10.1.0.2 lladdr {mac_a} dev up0
             ip -n {node} neigh add {B} lladdr {mac_b} dev down0
             ip -n {a} route add default via 10.1.0.1; ip -n {b} route add default via 10.2.0.1"
        ))?;
        // XDP on up0 cannot know of a checksum that is still to be made.
        let plain = if is_plain { format!("{a} {b}") } else { a };
        sh(&format!(
            "for host in {plain}; do
                nsenter --net=/run/netns/$host ethtool -K eth0 tx off tso off gso off
             done"
        ))?;
        let forwards = u8::from(!is_wire);
        self.hosts
            .sysctl("node", &format!("net.ipv4.ip_forward={forwards}"))
    }

    /// `dpi0` and `dpi1`.
    fn pair(&self) -> Result<()> {
        self.node(
            "ip link add dpi0 numrxqueues 1 numtxqueues 1 type veth \
                peer name dpi1 numrxqueues 1 numtxqueues 1
             ethtool -K dpi0 tx off tso off gso off gro on
             ip link set dpi0 up; ip link set dpi1 up",
        )
    }

    fn node(&self, script: &str) -> Result<()> {
        let output = self
            .hosts
            .command("node", &["sh", "-ec", script])
            .output()?;
        ensure!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn through(&mut self, args: &[&str]) -> Result<()> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        let program: Vec<&str> = [&*own, "load", "through"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.hosts.spawn("node", &program)
    }

    fn sink(&self, host: &str, device: &str, seconds: u32) -> Result<Running> {
        let seconds = (f64::from(seconds) + 0.8).to_string();
        let port = PORT.to_string();
        self.hosts.start_load(
            host,
            &[
                "sink",
                "--device",
                device,
                "--port",
                &port,
                "--seconds",
                &seconds,
            ],
        )
    }

    fn blast(&self, payload: u32, rate: u64, seconds: u32) -> Result<Value> {
        let [payload, rate, train] = [
            payload.to_string(),
            rate.to_string(),
            self.train.to_string(),
        ];
        let [seconds, port, cpu] = [seconds.to_string(), PORT.to_string(), ENDS.to_string()];
        self.hosts.load(
            "a",
            &[
                "blast",
                "--to",
                B,
                "--port",
                &port,
                "--payload",
                &payload,
                "--rate",
                &rate,
                "--train",
                &train,
                "--seconds",
                &seconds,
                "--cpu",
                &cpu,
            ],
        )
    }

    /// As fast as A can, counted at B.
    pub fn flood(&self, payload: u32, seconds: u32) -> Result<Through> {
        let sink = self.sink("b", "eth0", seconds)?;
        self.counted(sink, payload, seconds)
    }

    /// The same for a loop alone.
    pub fn loop_alone(
        &self,
        what: Alone,
        xdpsock: &Path,
        payload: u32,
        seconds: u32,
    ) -> Result<Through> {
        let counter = match what {
            Alone::RxTx => self.sink("node", "dpi0", seconds)?,
            Alone::Rx => {
                let (cpu, program) = (CONSUMER.to_string(), xdpsock.to_string_lossy());
                let whole = (seconds + 1).to_string();
                self.hosts
                    .start("node", &[&program, "drop", &cpu, &whole, "dpi1"])?
            }
        };
        self.counted(counter, payload, seconds)
    }

    fn counted(&self, counter: Running, payload: u32, seconds: u32) -> Result<Through> {
        sleep(Duration::from_millis(300));
        let blast = self.blast(payload, 0, seconds)?;
        let samples = series::read(&counter.end()?, HEADERS + u64::from(payload))?;
        let (start, end) = series::times(&blast)?;
        let sent = blast["sent"].as_f64().context("sent")?;
        let per_second = series::rate(&samples, start, end)?;
        ensure!(per_second > 0.0, "nothing came: {}", self.log());
        Ok(Through {
            per_second,
            sent_per_second: sent * 1e9 / (end - start) as f64,
        })
    }

    /// At a rate that all can bear.
    pub fn cost(&self, payload: u32, rate: u64, seconds: u32) -> Result<Cost> {
        let sink = self.sink("b", "eth0", seconds)?;
        sleep(Duration::from_millis(300));
        let before = self.cpu_time()?;
        let blast = self.blast(payload, rate, seconds)?;
        sleep(Duration::from_millis(20));
        let spent = self.cpu_time()? - before;
        let samples = series::read(&sink.end()?, HEADERS + u64::from(payload))?;
        let arrived = samples.last().map_or(0.0, |(_, packets)| *packets as f64);
        let number = |key: &str| blast[key].as_f64().context("blast");
        ensure!(arrived > 0.0, "nothing came: {}", self.log());
        Ok(Cost {
            sender_ns: number("cpu_ns")? / arrived,
            consumer_ns: spent.as_nanos() as f64 / arrived,
            arrived_share: arrived / number("sent")?,
        })
    }

    /// Of consumers, and of the kernel where it has come to that.
    fn cpu_time(&self) -> Result<Duration> {
        let own = self.hosts.cpu_time()?;
        let kernel: Result<Duration> = packet_threads()?.into_iter().map(cpu_time).sum();
        Ok(own + kernel?)
    }

    /// There and back, one at a time; `rest_us` in between. Microseconds, p50 and p99.
    pub fn trips(&self, payload: u32, count: u32, rest_us: u64) -> Result<[f64; 2]> {
        let [payload, count, rest] = [payload.to_string(), count.to_string(), rest_us.to_string()];
        let cpu = ENDS.to_string();
        let echo = self
            .hosts
            .start_load("b", &["echo", "--listen", B, "--cpu", &cpu])?;
        sleep(Duration::from_millis(150));
        let args = [
            "ping",
            "--to",
            B,
            "--payload",
            &payload,
            "--count",
            &count,
            "--rest-us",
            &rest,
            "--cpu",
            &cpu,
        ];
        let trips = self.hosts.load("a", &args).with_context(|| self.log())?;
        drop(echo);
        let number = |key: &str| trips[key].as_f64().context("trips");
        Ok([number("p50_us")?, number("p99_us")?])
    }

    /// Bulk TCP from A to B, Gbit/s.
    pub fn tcp(&self, seconds: u32) -> Result<f64> {
        let [time, most] = [seconds, seconds + 10].map(|seconds| seconds.to_string());
        let args = [
            "timeout", "-s", "KILL", &most, "iperf3", "-J", "-c", B, "-t", &time,
        ];
        let result = self.hosts.json("a", &args).with_context(|| self.log())?;
        let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("iperf3")? / 1e9)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.hosts.dir.join("log")).unwrap_or_default()
    }
}
