//! One pair of namespaces: an app, and a node with the listeners that its connections end at.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

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
const PORTS: [(&str, u16); 3] = [("tcp", 5201), ("tcp", 9000), ("udp", 9001)];
/// The listener's address, and whom the app thinks it calls.
const LISTENER: &str = "192.168.226.22";
const ELSEWHERE: &str = "20.0.0.2";

/// A pair; removed when dropped.
pub struct Pair {
    /// Its mode.
    pub mode: Mode,
    prefix: String,
    dir: PathBuf,
    children: Vec<Child>,
}

impl Pair {
    /// Makes namespaces, listeners and rules.
    pub fn new(mode: Mode, daemon: &Path) -> Result<Self> {
        let prefix = format!("fsmc-{}-{}", std::process::id(), mode.name());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir)?;
        let mut pair = Self {
            mode,
            prefix,
            dir,
            children: Vec::new(),
        };
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
        let (app, node) = (self.netns("app"), self.netns("node"));
        sh(&format!(
            "ip netns add {app}; ip netns add {node}
             ip -n {node} link add veth-app type veth peer name eth0 netns {app}
             ip -n {node} addr add 10.1.0.1/24 dev veth-app
             ip -n {node} addr add {LISTENER}/32 dev lo
             ip -n {app} addr add 10.1.0.2/24 dev eth0
             for n in {app} {node}; do ip -n $n link set lo up; done
             ip -n {node} link set veth-app up; ip -n {app} link set eth0 up
             ip -n {app} route add default via 10.1.0.1
             nsenter --net=/run/netns/{node} sysctl -qw net.ipv4.ip_forward=1 net.core.somaxconn=4096
             nsenter --net=/run/netns/{app} sysctl -qw net.ipv4.ip_local_port_range='1024 65000'"
        ))
    }

    fn listen(&mut self) -> Result<()> {
        let load = std::env::current_exe()?;
        let load = load.to_string_lossy();
        self.spawn("node", &["iperf3", "-s", "-B", LISTENER])?;
        self.spawn("node", &[&load, "load", "serve", "--listen", LISTENER])?;
        sleep(Duration::from_millis(300));
        Ok(())
    }

    fn nft(&self) -> Result<()> {
        let rules = format!(
            "table ip nat {{ chain pre {{ type nat hook prerouting priority dstnat; \
             iifname \"veth-app\" ip daddr {ELSEWHERE} dnat to {LISTENER}; }}; }}"
        );
        let file = self.dir.join("rules.nft");
        fs::write(&file, rules)?;
        sh(&format!(
            "nsenter --net=/run/netns/{} nft -f {}",
            self.netns("node"),
            file.display()
        ))
    }

    fn daemon(&mut self, daemon: &Path) -> Result<()> {
        let dir = self.dir.display();
        let mut config = format!(
            "[node]\nbpffs = \"{dir}/bpf\"\napi = \"{dir}/api.sock\"\nmetrics = \"\"\nlog = \"warn\"\n\
             [[interface]]\nname = \"veth-app\"\nrole = \"endpoint\"\n"
        );
        for (proto, port) in PORTS {
            config += &format!(
                "[[nat]]\ndirection = \"egress\"\nproto = \"{proto}\"\nto = \"{ELSEWHERE}:{port}\"\n\
                 endpoints = [{{ addr = \"{LISTENER}:{port}\" }}]\n"
            );
        }
        let file = self.dir.join("node.toml");
        fs::write(&file, config)?;
        self.spawn(
            "node",
            &[
                &daemon.to_string_lossy(),
                "--config",
                &file.to_string_lossy(),
            ],
        )?;
        let start = Instant::now();
        while !self.dir.join("api.sock").exists() {
            ensure!(
                start.elapsed() < Duration::from_secs(10),
                "the daemon does not start"
            );
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Everything once.
    pub fn measure(&self, seconds: u32) -> Result<Vec<(&'static str, f64)>> {
        let to = if self.mode == Mode::Direct {
            LISTENER
        } else {
            ELSEWHERE
        };
        let time = seconds.to_string();
        let bulk = self.json(&["iperf3", "-J", "-c", to, "-t", &time])?;
        let bits = bulk["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3")?;
        let load = std::env::current_exe()?;
        let load = load.to_string_lossy();
        let ask = |what: &str| self.json(&[&load, "load", what, "--to", to, "--seconds", &time]);
        let connect = ask("connect")?;
        let trip = ask("trip")?;
        let udp = ask("udp")?;
        let number = |value: &Value, key: &str| {
            value[key]
                .as_f64()
                .with_context(|| format!("{key}: {value}"))
        };
        Ok(vec![
            ("bulk", bits / 1e9),
            ("connections", number(&connect, "per_second")?),
            ("cpu of a connection", number(&connect, "cpu_us")?),
            ("round trip p50", number(&trip, "p50_us")?),
            ("round trip p99", number(&trip, "p99_us")?),
            ("udp 64 bytes", number(&udp, "per_second")?),
        ])
    }

    fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn command(&self, host: &str, program: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns(host)))
            .args(program)
            .stdin(Stdio::null());
        command
    }

    fn spawn(&mut self, host: &str, program: &[&str]) -> Result<()> {
        let log = fs::File::create(self.dir.join("log"))?;
        let child = self
            .command(host, program)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.children
            .push(child.with_context(|| program[0].to_owned())?);
        Ok(())
    }

    fn json(&self, program: &[&str]) -> Result<Value> {
        let output = self
            .command("app", program)
            .output()
            .with_context(|| program[0].to_owned())?;
        if !output.status.success() {
            bail!("{program:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (app, node, dir) = (self.netns("app"), self.netns("node"), self.dir.display());
        let _ = Command::new("sh")
            .args([
                "-c",
                &format!("ip netns del {app}; ip netns del {node}; umount {dir}/bpf; rm -rf {dir}"),
            ])
            .stderr(Stdio::null())
            .status();
    }
}

fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
