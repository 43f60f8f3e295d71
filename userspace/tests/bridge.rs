//! An app behind a bridge: routing at the uplink sees only the bridge, so the app's own device steers the
//! first packet and sends it back to the gateway; and TC filters as kernels before 6.6 take them.
//!
//! Needs root.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fsm_fastpath::config::XdpMode;
use fsm_fastpath::loader::attach::{self, TcKind};
use fsm_fastpath::loader::devices::{self, Device};
use fsm_fastpath::loader::objects::{Objects, Sizes};

const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");

fn sh(script: &str) -> Output {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text} (are you root?)");
    output
}

/// client — uplink of the node — bridge — app; all removed in the end.
struct Net {
    name: String,
    dir: PathBuf,
    children: Vec<Child>,
}

impl Net {
    fn new(tag: &str) -> Self {
        let name = format!("fsmb-{}-{tag}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        let (node, app, client) = (
            format!("{name}-n"),
            format!("{name}-a"),
            format!("{name}-c"),
        );
        sh(&format!(
            "for n in {node} {app} {client}; do ip netns add $n; ip -n $n link set lo up; done
             ip -n {node} link add up0 type veth peer name c0 netns {client}
             ip -n {node} link add veth-a type veth peer name eth0 netns {app}
             ip -n {node} link add br0 type bridge
             ip -n {node} link set veth-a master br0
             ip -n {node} addr add 20.0.0.1/24 dev up0
             ip -n {node} addr add 10.9.0.1/24 dev br0
             ip -n {app} addr add 10.9.0.2/24 dev eth0
             ip -n {client} addr add 20.0.0.10/24 dev c0
             for d in up0 veth-a br0; do ip -n {node} link set $d up; done
             ip -n {app} link set eth0 up; ip -n {client} link set c0 up
             ip -n {app} route add default via 10.9.0.1
             ip -n {client} route add 10.9.0.0/24 via 20.0.0.1
             nsenter --net=/run/netns/{node} sysctl -qw net.ipv4.ip_forward=1
             nsenter --net=/run/netns/{client} ethtool -K c0 tx off >/dev/null"
        ));
        Self {
            name,
            dir,
            children: Vec::new(),
        }
    }

    fn spawn(&mut self, host: &str, program: &[&str]) {
        let netns = format!("--net=/run/netns/{}-{host}", self.name);
        let child = Command::new("nsenter")
            .arg(netns)
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        self.children.push(child);
    }

    fn run(&self, host: &str, script: &str) -> String {
        let output = sh(&format!(
            "nsenter --net=/run/netns/{}-{host} {script}",
            self.name
        ));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (name, dir) = (&self.name, self.dir.display());
        let script = format!(
            "for n in n a c; do ip netns del {name}-$n; done; umount {dir}/bpf; rm -rf {dir}"
        );
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

#[test]
fn what_an_app_behind_a_bridge_receives_goes_to_the_gateway_first() {
    let mut net = Net::new("br");
    let dir = net.dir.display().to_string();
    let config = format!(
        "[node]\nbpffs = \"{dir}/bpf\"\napi = \"{dir}/api.sock\"\nmetrics = \"\"\n\
         [[interface]]\nname = \"up0\"\nrole = \"uplink\"\n\
         [[interface]]\nname = \"veth-a\"\nrole = \"endpoint\"\n\
         [gateway]\ninbound = [\"20.0.0.1:15003\"]\nexclude_inbound_ports = [81]\n"
    );
    let file = format!("{dir}/node.toml");
    fs::write(&file, config).unwrap();
    net.spawn(
        "n",
        &[
            "socat",
            "TCP-LISTEN:15003,fork,reuseaddr",
            "SYSTEM:echo gateway $SOCAT_PEERADDR",
        ],
    );
    net.spawn(
        "a",
        &[
            "socat",
            "TCP-LISTEN:80,fork,reuseaddr",
            "SYSTEM:echo app $SOCAT_PEERADDR",
        ],
    );
    net.spawn(
        "a",
        &[
            "socat",
            "TCP-LISTEN:81,fork,reuseaddr",
            "SYSTEM:echo app $SOCAT_PEERADDR",
        ],
    );
    net.spawn("n", &[BINARY, "--config", &file]);
    for _ in 0..100 {
        if PathBuf::from(format!("{dir}/api.sock")).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(300));

    for _ in 0..3 {
        let seen = net.run("c", "timeout 5 socat -T 3 - TCP:10.9.0.2:80 </dev/null");
        assert_eq!(seen.trim(), "gateway 20.0.0.10");
    }
    let seen = net.run("c", "timeout 5 socat -T 3 - TCP:10.9.0.2:81 </dev/null");
    assert_eq!(
        seen.trim(),
        "app 20.0.0.10",
        "an excluded port goes straight to the app"
    );

    let status = net.run("n", &format!("{BINARY} --config {file} -o json status"));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let sent_back = status["notes"]["reinjected"].as_u64().unwrap();
    assert!(
        (1..=6).contains(&sent_back),
        "only first packets are sent back: {sent_back}"
    );
    net.run("n", &format!("{BINARY} --config {file} down"));
}

#[test]
fn clsact_filters_are_replaced_in_place_and_removed_again() {
    let net = Net::new("cls");
    let bpf = net.dir.join("bpf");
    sh(&format!(
        "mkdir -p {0}; mount -t bpf bpf {0}",
        bpf.display()
    ));
    let dir = bpf.join("v1");
    let mut objects = Objects::load(
        &dir,
        Sizes {
            flows: 1024,
            half_open: 1024,
        },
    )
    .unwrap();
    fs::create_dir_all(attach::link_dir(&dir)).unwrap();
    let netns = fs::File::open(format!("/run/netns/{}-n", net.name)).unwrap();
    let ifindex: u32 = net
        .run("n", "ip -o link show up0")
        .split(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // This thread alone, and for good: the harness gives each test its own.
    // SAFETY: a valid descriptor of a network namespace.
    let entered =
        unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&netns), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "setns");
    let device = Device {
        ifindex,
        name: "up0".into(),
        ..Device::default()
    };
    let show = |direction: &str| net.run("n", &format!("tc filter show dev up0 {direction}"));

    assert!(
        attach::ensure_clsact(&device).unwrap(),
        "the device had no clsact before"
    );
    assert!(!attach::ensure_clsact(&device).unwrap(), "now it has");
    for round in 0..2 {
        attach::attach(&mut objects, &dir, &device, XdpMode::Off, TcKind::Clsact).unwrap();
        for (direction, program) in [("ingress", "fsm_tc_ingress"), ("egress", "fsm_tc_egress")] {
            let filters = show(direction);
            assert!(filters.contains(program), "round {round}: {filters}");
            assert_eq!(
                filters.matches("direct-action").count(),
                1,
                "round {round}: {filters}"
            );
        }
    }
    attach::detach_clsact("up0");
    assert!(!show("ingress").contains("fsm_tc") && !show("egress").contains("fsm_tc"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        devices::remove_clsact(&handle, ifindex).await.unwrap();
    });
    let qdiscs = net.run("n", "tc qdisc show dev up0");
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}
