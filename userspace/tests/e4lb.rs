//! A load balancer with the real daemon, real servers and real clients: a switch with two clients, two hosts and
//! the node's uplink on it, and an app behind the node.
//!
//! Needs root, nginx, curl and socat.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");
const VIP: &str = "20.0.0.9";
const VIP6: &str = "fd20::9";
/// One client's, and the other's.
const CLIENTS: [(&str, &str); 2] = [("c", "10"), ("d", "11")];

fn try_sh(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).output().unwrap()
}

fn sh(script: &str) -> String {
    let output = try_sh(script);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text} (are you root?)");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `done`, for so many seconds at most; gives how long it took.
fn within(seconds: u64, what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "not in {seconds} s: {what}"
        );
        sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

/// One at a time: on a small machine two would measure each other.
static ONE_NET: Mutex<()> = Mutex::new(());

/// The hosts: `s` the switch, `n` the node, `c` and `d` clients, `h` and `i` servers, `a` the app.
struct Net {
    name: String,
    dir: PathBuf,
    children: Vec<Child>,
    _alone: MutexGuard<'static, ()>,
}

impl Net {
    fn new(tag: &str) -> Self {
        let alone = ONE_NET.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("fsml-{}-{tag}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        let net = Self {
            name: name.clone(),
            dir: dir.clone(),
            children: Vec::new(),
            _alone: alone,
        };
        sh(&format!(
            "for h in s n c d h i a; do ip netns add {name}-$h; ip -n {name}-$h link set lo up; done
             ip -n {name}-s link add br0 type bridge; ip -n {name}-s link set br0 up
             plug() {{
               ip -n {name}-s link add p-$1 type veth peer name $2 netns {name}-$1
               ip -n {name}-s link set p-$1 master br0; ip -n {name}-s link set p-$1 up
               ip -n {name}-$1 addr add 20.0.0.$3/24 dev $2
               ip -n {name}-$1 addr add fd20::$3/64 dev $2 nodad
               ip -n {name}-$1 link set $2 up
               nsenter --net=/run/netns/{name}-$1 ethtool -K $2 tx off >/dev/null
             }}
             plug n up0 1; plug c eth0 10; plug d eth0 11; plug h eth0 51; plug i eth0 52
             ip -n {name}-n link add veth-a type veth peer name eth0 netns {name}-a
             ip -n {name}-n addr add 10.9.0.1/24 dev veth-a
             ip -n {name}-n addr add fd09::1/64 dev veth-a nodad
             ip -n {name}-n link set veth-a up
             ip -n {name}-a addr add 10.9.0.2/24 dev eth0
             ip -n {name}-a addr add fd09::2/64 dev eth0 nodad
             ip -n {name}-a link set eth0 up
             ip -n {name}-a route add default via 10.9.0.1
             ip -n {name}-a route add default via fd09::1
             nsenter --net=/run/netns/{name}-n sysctl -qw net.ipv4.ip_forward=1 \
               net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.up0.rp_filter=1"
        ));
        sh(&format!("truncate -s 40M {}/blob", dir.display()));
        net
    }

    fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}-{host}", self.name))
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Starts a program; gives its place in `children`.
    fn spawn(&mut self, host: &str, program: &[&str]) -> usize {
        let log = self.dir.join(format!("log-{host}"));
        let log = fs::File::options().create(true).append(true).open(log);
        let child = self
            .command(host, program[0])
            .args(&program[1..])
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        self.children.push(child);
        self.children.len() - 1
    }

    fn end(&mut self, child: usize) {
        self.children[child].kill().unwrap();
        self.children[child].wait().unwrap();
    }

    fn try_run(&self, host: &str, script: &str) -> Output {
        try_sh(&format!(
            "nsenter --net=/run/netns/{}-{host} {script}",
            self.name
        ))
    }

    fn run(&self, host: &str, script: &str) -> String {
        sh(&format!(
            "nsenter --net=/run/netns/{}-{host} {script}",
            self.name
        ))
    }

    /// A web server that says its host's name and who asks.
    fn web(&mut self, host: &str, port: u16) -> usize {
        let dir = self.dir.join(format!("web-{host}"));
        fs::create_dir_all(&dir).unwrap();
        let (dir, all) = (dir.display(), self.dir.display());
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/{kind}; "))
            .concat();
        let conf = format!(
            "daemon off; master_process off; user root; pid {dir}/pid; error_log {dir}/error.log;
             events {{ worker_connections 4096; }}
             http {{ {temp} log_format who '$remote_addr'; access_log {dir}/access.log who;
               add_header X-Host {host};
               server {{ listen {port}; listen [::]:{port}; root {all};
                 location = /healthz {{ access_log off; return 200 'ok'; }}
                 location = /who {{ return 200 '{host} $remote_addr'; }}
                 location /echo/ {{ return 200 '$uri'; }} }} }}"
        );
        let file = format!("{dir}/nginx.conf");
        fs::write(&file, conf).unwrap();
        let child = self.spawn(
            host,
            &["nginx", "-e", &format!("{dir}/error.log"), "-c", &file],
        );
        let url = format!("http://127.0.0.1:{port}/healthz");
        within(5, "a web server starts", || {
            self.try_run(host, &format!("curl -sf {url}"))
                .status
                .success()
        });
        child
    }

    fn file(&self) -> String {
        format!("{}/node.toml", self.dir.display())
    }

    fn configure(&self, entries: &str) {
        let dir = self.dir.display();
        let text = format!(
            "[node]\nbpffs = \"{dir}/bpf\"\napi = \"{dir}/api.sock\"\nmetrics = \"127.0.0.1:9478\"\n\
             [[interface]]\nname = \"up0\"\nrole = \"uplink\"\n\
             [[interface]]\nname = \"veth-a\"\nrole = \"endpoint\"\n\
             [conntrack]\nmax_flows = 65536\n{entries}"
        );
        fs::write(self.file(), text).unwrap();
    }

    /// Starts the daemon with these entries.
    fn daemon(&mut self, entries: &str) -> usize {
        self.configure(entries);
        let file = self.file();
        let log = self.dir.join("log-n");
        let ready = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.matches(" ready ").count()
        };
        let before = ready();
        let child = self.spawn("n", &[BINARY, "--config", &file]);
        within(30, "the daemon starts", || ready() > before);
        child
    }

    fn fsm(&self, verb: &str) -> Value {
        let text = self.run(
            "n",
            &format!("{BINARY} --config {} -o json {verb}", self.file()),
        );
        let values: Vec<Value> = serde_json::Deserializer::from_str(&text)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        match values.as_slice() {
            [one] => one.clone(),
            many => Value::from(many.to_vec()),
        }
    }

    /// Health of an endpoint, and whether it takes new flows.
    fn endpoint(&self, addr: &str) -> (Option<String>, bool) {
        let list = self.fsm("nat list");
        let rows = list
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![list.clone()]);
        let endpoint = rows
            .iter()
            .flat_map(|row| row["endpoints"].as_array().unwrap())
            .find(|endpoint| endpoint["addr"] == addr)
            .unwrap_or_else(|| panic!("{addr}: {list}"));
        (
            endpoint["health"].as_str().map(str::to_owned),
            endpoint["active"].as_bool().unwrap(),
        )
    }

    /// What a client reads from a URL, for three seconds at most.
    fn get(&self, host: &str, url: &str) -> String {
        self.run(host, &format!("curl -gsS --max-time 3 '{url}'"))
    }

    /// Starts a download at 4 MB/s, of ten seconds; waits for its head, and gives the host that it is from.
    fn download(&self, url: &str) -> (Child, String) {
        let head = self.dir.join("head");
        let _ = fs::remove_file(&head);
        let child = self
            .command("c", "curl")
            .args(["-gsS", "--limit-rate", "4M", "--max-time", "30", "-o"])
            .args(["/dev/null", "-D", head.to_str().unwrap(), url])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut host = None;
        within(5, "a download begins", || {
            let text = fs::read_to_string(&head).unwrap_or_default();
            host = text
                .lines()
                .find_map(|line| line.strip_prefix("X-Host: "))
                .map(|host| host.trim().to_owned());
            host.is_some()
        });
        (child, host.unwrap())
    }

    fn addresses(&self) -> String {
        self.run("n", "ip -o addr show dev up0")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (name, dir) = (&self.name, self.dir.display());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log-n")).unwrap_or_default();
            eprintln!("the daemon's log:\n{log}");
        }
        let script = format!(
            "for h in c d h i a n s; do ip netns del {name}-$h; done; umount {dir}/bpf; rm -rf {dir}"
        );
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

/// Entries for both families and protocols, to these hosts; `more` goes into each.
fn entries(hosts: &[(&str, &str)], more: &str) -> String {
    let mut text = String::new();
    for (proto, port) in [("tcp", 80), ("udp", 53)] {
        for (vip, v6) in [(VIP.to_owned(), false), (format!("[{VIP6}]"), true)] {
            let endpoints: Vec<String> = hosts
                .iter()
                .map(|(v4_addr, v6_addr)| {
                    let addr = if v6 {
                        format!("[{v6_addr}]")
                    } else {
                        (*v4_addr).to_owned()
                    };
                    format!("{{ addr = \"{addr}:8080\" }}")
                })
                .collect();
            text += &format!(
                "[[nat]]\nsystem = \"e4lb\"\nproto = \"{proto}\"\nto = \"{vip}:{port}\"\n{more}\n\
                 endpoints = [{}]\n",
                endpoints.join(", ")
            );
        }
    }
    text
}

const APP: (&str, &str) = ("10.9.0.2", "fd09::2");
const H: (&str, &str) = ("20.0.0.51", "fd20::51");
const I: (&str, &str) = ("20.0.0.52", "fd20::52");

/// A UDP server that says who asks. It reads first: a program that has ended before its input comes loses the answer.
fn udp_server(net: &mut Net, host: &str) {
    net.spawn(
        host,
        &[
            "socat",
            "UDP4-RECVFROM:8080,fork",
            "SYSTEM:read x; echo $SOCAT_PEERADDR",
        ],
    );
    net.spawn(
        host,
        &[
            "socat",
            "UDP6-RECVFROM:8080,fork,ipv6only",
            "SYSTEM:read x; echo $SOCAT_PEERADDR",
        ],
    );
    sleep(Duration::from_millis(200));
}

fn ask_udp(net: &Net, client: &str, to: &str) -> String {
    let kind = if to.contains(':') { "UDP6" } else { "UDP4" };
    let to = if to.contains(':') {
        format!("[{to}]")
    } else {
        to.to_owned()
    };
    let answer = net.run(
        client,
        &format!("sh -c 'echo x | timeout 8 socat -t 1 - {kind}:{to}:53'"),
    );
    answer.trim().to_owned()
}

/// socat writes IPv6 addresses in full.
fn short(addr: &str) -> String {
    addr.trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .unwrap_or_else(|_| panic!("{addr:?}"))
        .to_string()
}

#[test]
fn a_virtual_address_is_announced_keeps_the_client_and_goes_without_a_daemon_too() {
    let mut net = Net::new("app");
    net.web("a", 8080);
    udp_server(&mut net, "a");
    // What the clients believed before.
    let wrong = "02:00:00:00:00:99";
    for (addr, host) in [(VIP, "c"), (VIP6, "c"), (VIP, "d"), (VIP6, "d")] {
        net.run(
            host,
            &format!("ip neigh replace {addr} lladdr {wrong} dev eth0 nud stale"),
        );
    }
    let daemon = net.daemon(&entries(&[APP], "announce_s = 0"));
    let link = net.run("n", "ip -o link show up0");
    let mac = link
        .split("link/ether ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let mac = mac.unwrap_or_else(|| panic!("{link}"));
    for addr in [VIP, VIP6] {
        within(3, "the announcement at the start is believed", || {
            net.run("c", &format!("ip neigh show {addr}")).contains(mac)
        });
    }
    let shown = net.addresses();
    assert!(
        shown.contains("20.0.0.9/32") && shown.contains("fd20::9/128"),
        "{shown}"
    );

    for (client, number) in CLIENTS {
        let (v4, v6) = (format!("20.0.0.{number}"), format!("fd20::{number}"));
        for (vip, addr) in [(VIP.to_owned(), &v4), (format!("[{VIP6}]"), &v6)] {
            assert_eq!(
                net.get(client, &format!("http://{vip}/who")),
                format!("a {addr}")
            );
        }
        assert_eq!(short(&ask_udp(&net, client, VIP)), v4);
        assert_eq!(short(&ask_udp(&net, client, VIP6)), v6);
    }
    let size = net.run(
        "c",
        &format!("curl -sS --max-time 20 -o /dev/null -w '%{{size_download}}' http://{VIP}/blob"),
    );
    assert_eq!(size, "41943040");

    net.run(
        "d",
        &format!("ip neigh replace {VIP} lladdr {wrong} dev eth0 nud stale"),
    );
    let announced = net.fsm(&format!("arp announce {VIP}"));
    assert_eq!(
        announced[0]["vip"].as_str().or(announced["vip"].as_str()),
        Some(VIP)
    );
    within(2, "an announcement by hand is believed", || {
        net.run("d", &format!("ip neigh show {VIP}")).contains(mac)
    });
    // Link down and up: IPv6 has lost the address then.
    net.run("n", "ip link set up0 down");
    net.run("n", "ip link set up0 up");
    within(5, "the addresses are there again", || {
        let shown = net.addresses();
        shown.contains("20.0.0.9/32") && shown.contains("fd20::9/128")
    });

    net.end(daemon);
    assert!(
        net.addresses().contains(VIP),
        "the data path outlives its daemon"
    );
    assert_eq!(net.get("c", &format!("http://{VIP}/who")), "a 20.0.0.10");
    net.run("n", &format!("{BINARY} --config {} down", net.file()));
    let shown = net.addresses();
    assert!(
        !shown.contains("20.0.0.9/") && !shown.contains("fd20::9/"),
        "{shown}"
    );
}

#[test]
fn an_address_that_was_there_before_stays_when_the_data_path_goes() {
    let mut net = Net::new("own");
    net.web("a", 8080);
    net.run("n", &format!("ip addr add {VIP}/24 dev up0"));
    net.daemon(&entries(&[APP], ""));
    assert_eq!(net.get("c", &format!("http://{VIP}/who")), "a 20.0.0.10");
    let shown = net.addresses();
    assert!(
        shown.contains("20.0.0.9/24") && !shown.contains("20.0.0.9/32"),
        "{shown}"
    );
    // An entry that is taken back takes its address with it.
    net.configure("");
    net.fsm("reload");
    assert!(!net.addresses().contains("fd20::9/"), "{}", net.addresses());
    net.run("n", &format!("{BINARY} --config {} down", net.file()));
    assert!(net.addresses().contains("20.0.0.9/24"));
}

#[test]
fn a_host_on_the_clients_own_network_answers_and_two_clients_never_cross() {
    let mut net = Net::new("full");
    net.web("h", 8080);
    udp_server(&mut net, "h");
    net.daemon(&entries(&[H], ""));
    for (client, _) in CLIENTS {
        assert_eq!(
            net.get(client, &format!("http://{VIP}/who")),
            format!("h {VIP}")
        );
        assert_eq!(
            net.get(client, &format!("http://[{VIP6}]/who")),
            format!("h {VIP6}")
        );
        assert_eq!(short(&ask_udp(&net, client, VIP)), VIP);
        assert_eq!(short(&ask_udp(&net, client, VIP6)), VIP6);
    }
    // The same source ports at the same time from both, each asking for what is its own.
    let clients: Vec<Child> = CLIENTS
        .iter()
        .map(|(client, _)| {
            let script = format!(
                "for i in $(seq 400); do \
                   a=$(curl -sS --max-time 5 --local-port $((20000+i)) http://{VIP}/echo/{client}/$i); \
                   [ \"$a\" = /echo/{client}/$i ] || {{ echo \"{client} $i: $a\" >&2; exit 1; }}; \
                 done"
            );
            net.command(client, "sh")
                .args(["-c", &script])
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in clients {
        assert!(
            child.wait().unwrap().success(),
            "a client got another's answer, or none"
        );
    }
    let size = net.run(
        "d",
        &format!(
            "curl -gsS --max-time 20 -o /dev/null -w '%{{size_download}}' http://[{VIP6}]/blob"
        ),
    );
    assert_eq!(size, "41943040");
    let status = net.fsm("status");
    assert_eq!(status["drops"]["nat_no_port"].as_u64(), Some(0), "{status}");
    net.run("n", &format!("{BINARY} --config {} down", net.file()));
}

/// Where a hundred new connections go, each of which succeeds.
fn hundred(net: &Net) -> Vec<String> {
    let urls = format!("http://{VIP}/who?[1-100]");
    let text = net.run(
        "c",
        &format!("curl -sS --fail --max-time 3 -H 'Connection: close' -w '\\n' '{urls}'"),
    );
    let hosts: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect();
    assert_eq!(hosts.len(), 100, "{text}");
    hosts
}

#[test]
fn a_dead_endpoint_is_taken_out_and_comes_back_while_others_go_on() {
    const HEALTH: &str =
        "health = { kind = \"http\", interval_s = 1, timeout_s = 1, rise = 2, fall = 2 }";
    let mut net = Net::new("health");
    let servers = [
        ("h", H.0, net.web("h", 8080)),
        ("i", I.0, net.web("i", 8080)),
    ];
    let daemon = net.daemon(&entries(&[H, I], HEALTH));
    let url = format!("http://{VIP}/blob");
    let (mut download, from) = net.download(&url);
    let other = usize::from(servers[0].0 == from);
    let (name, addr, child) = servers[other];
    let endpoint = format!("{addr}:8080");
    assert_eq!(net.endpoint(&endpoint), (Some("up".into()), true));
    let both = hundred(&net);
    assert!(both.contains(&"h".to_owned()) && both.contains(&"i".to_owned()));
    let generation = net.fsm("status")["generation"].clone();

    net.end(child);
    let took = within(3, "a dead endpoint is taken out", || {
        net.endpoint(&endpoint) == (Some("down".into()), false)
    });
    // fall × interval, and a probe that was under way; `nat list` by a process takes its time too.
    assert!(took < Duration::from_millis(2700), "{took:?}");
    assert!(hundred(&net).iter().all(|host| *host == from));
    let metrics = net.run("n", "curl -sS http://127.0.0.1:9478/metrics");
    let line = metrics.lines().find(|line| {
        line.contains("endpoint_up{") && line.contains(&endpoint) && line.contains("\"tcp\"")
    });
    assert!(line.is_some_and(|line| line.ends_with(" 0")), "{line:?}");
    assert_eq!(
        net.fsm("status")["generation"],
        generation,
        "nobody is judged again for it"
    );

    // A reload knows what is down; so does the next daemon.
    net.fsm("reload");
    assert_eq!(net.endpoint(&endpoint), (Some("down".into()), false));
    net.end(daemon);
    net.daemon(&entries(&[H, I], HEALTH));
    assert_eq!(net.endpoint(&endpoint), (Some("down".into()), false));

    net.web(name, 8080);
    within(4, "an endpoint that is back is taken in", || {
        net.endpoint(&endpoint) == (Some("up".into()), true)
    });
    assert!(hundred(&net).contains(&name.to_owned()));
    let status: ExitStatus = download.wait().unwrap();
    assert!(
        status.success(),
        "the download from {from} was disturbed: {status}"
    );
    let log = fs::read_to_string(net.dir.join("log-n")).unwrap();
    for word in ["endpoint down", "endpoint up"] {
        // Once for each of the entries, of which two are IPv4's.
        let lines = log
            .lines()
            .filter(|l| l.contains(word) && l.contains(&endpoint));
        assert_eq!(lines.count(), 2, "{word}: {log}");
    }
    net.run("n", &format!("{BINARY} --config {} down", net.file()));
}

#[test]
fn a_drained_endpoint_keeps_its_flows_and_one_that_is_reset_does_not() {
    let mut net = Net::new("drain");
    net.web("h", 8080);
    net.web("i", 8080);
    net.web("a", 8080);
    let entry = |endpoints: &str| {
        format!(
            "[[nat]]\nsystem = \"e4lb\"\nproto = \"tcp\"\nto = \"{VIP}:80\"\non_removed = \"reset\"\n\
             endpoints = [{endpoints}]\n"
        )
    };
    let all =
        ["20.0.0.51", "20.0.0.52", "10.9.0.2"].map(|addr| format!("{{ addr = \"{addr}:8080\" }}"));
    net.daemon(&entry(&all.join(", ")));
    let url = format!("http://{VIP}/blob");
    let (mut download, from) = net.download(&url);
    let at = ["h", "i", "a"]
        .iter()
        .position(|host| *host == from)
        .unwrap();
    for drained in [", active = false }", ", weight = 0 }"] {
        let mut some = all.clone();
        some[at] = some[at].replace(" }", drained);
        net.configure(&entry(&some.join(", ")));
        net.fsm("reload");
        assert!(!hundred(&net).contains(&from), "{drained}");
    }
    sleep(Duration::from_secs(1));
    assert!(
        download.try_wait().unwrap().is_none(),
        "a drained flow has ended"
    );

    let mut rest = all.to_vec();
    rest.remove(at);
    net.configure(&entry(&rest.join(", ")));
    net.fsm("reload");
    let start = Instant::now();
    // What the client has in its buffer is read first, at its own pace.
    let status = download.wait().unwrap();
    assert_eq!(status.code(), Some(56), "curl: the connection was reset");
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert!(net.fsm("status")["drops"]["nat_target_gone"].as_u64() > Some(0));
    assert!(!hundred(&net).contains(&from));

    // By hand, and with what is there no more: as in the file.
    let added = format!("nat add --system e4lb --proto tcp --to {VIP}:80 --endpoint 10.9.0.2:8080");
    net.fsm(&added);
    assert!(hundred(&net).iter().all(|host| host == "a"));
    net.fsm(&format!("nat del --system e4lb --proto tcp --to {VIP}:80"));
    assert!(!net.addresses().contains("20.0.0.9/"));
    net.run("n", &format!("{BINARY} --config {} down", net.file()));
}
