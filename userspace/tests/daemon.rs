//! Changes while traffic flows: rules, listeners, flags, files, devices. The daemon and all programs are real;
//! the hosts are those of the lab.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::{Host, Lab, Opts};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");

/// One lab at a time: on a small machine two of them would measure each other.
static ONE_LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lab(tag: &str, extra_config: &str) -> Lab {
    let opts = Opts {
        name: format!("fsmd-{}-{tag}", std::process::id()),
        binary: Some(BINARY.into()),
        extra_config: extra_config.to_owned(),
        ..Opts::default()
    };
    Lab::up(&opts).unwrap_or_else(|error| panic!("{error}"))
}

/// Asks a server who it talks to, for two seconds at most; `None` where nothing comes back.
fn who(host: &Host, url: &str) -> Option<String> {
    host.cmd("curl", ["-gsS", "--max-time", "2", url]).ok()
}

fn drops(lab: &Lab, reason: &str) -> u64 {
    lab.fsm(&["status"]).unwrap()["drops"][reason]
        .as_u64()
        .unwrap()
}

/// A download of the big file at 5 MB/s, which takes 20 s.
fn slow_download(lab: &Lab, host: &Host) -> Child {
    // Made by the first who asks for it.
    lab.blob_sum().unwrap_or_else(|error| panic!("{error}"));
    host.command("curl")
        .args([
            "-sS",
            "--limit-rate",
            "5M",
            "--speed-limit",
            "1",
            "--speed-time",
            "3",
        ])
        .args([
            "--max-time",
            "40",
            "-o",
            "/dev/null",
            "http://20.0.0.2:8080/blob",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn flow_count(lab: &Lab, filter: &[&str]) -> u64 {
    let mut args = vec!["flow", "list"];
    args.extend(filter);
    lab.fsm(&args)
        .unwrap()
        .as_array()
        .map_or(0, |flows| flows.len() as u64)
}

#[test]
fn a_deny_ends_a_live_flow_at_its_next_packet_and_taking_it_back_lets_new_ones_through() {
    let _alone = alone();
    let lab = lab("deny", "");
    let mut download = slow_download(&lab, &lab.app1());
    sleep(Duration::from_secs(2));
    assert!(
        download.try_wait().unwrap().is_none(),
        "the download should be running"
    );

    lab.fsm(&[
        "acl", "add", "20.0.0.2", "--proto", "tcp", "--action", "deny",
    ])
    .unwrap();
    let start = Instant::now();
    while drops(&lab, "acl_deny") == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "none of its packets was denied"
        );
    }
    // What the app's socket holds by then, up to 32 MB, is read at 5 MB/s; undenied it would succeed after 20 s.
    let ended = loop {
        if let Some(status) = download.try_wait().unwrap() {
            break status;
        }
        assert!(
            start.elapsed() < Duration::from_secs(35),
            "the denied download goes on"
        );
        sleep(Duration::from_millis(100));
    };
    assert!(!ended.success(), "the denied download has succeeded");
    println!("ended after {:?}", start.elapsed());
    assert_eq!(who(&lab.app1(), "http://20.0.0.2:8080/who"), None);

    lab.fsm(&["acl", "del", "20.0.0.2", "--proto", "tcp"])
        .unwrap();
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
}

#[test]
fn a_flow_that_a_change_does_not_touch_is_not_disturbed() {
    let _alone = alone();
    let lab = lab("calm", "");
    let mut download = slow_download(&lab, &lab.app1());
    sleep(Duration::from_secs(1));
    for i in 1..=20 {
        let addr = format!("20.0.9.{i}");
        lab.fsm(&["acl", "add", &addr, "--action", "deny"]).unwrap();
        lab.fsm(&[
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "tcp",
            "--to",
            &addr,
        ])
        .expect_err("an entry without endpoints must be refused");
    }
    lab.fsm(&["reload"]).unwrap();
    assert!(
        download.try_wait().unwrap().is_none(),
        "the download was disturbed"
    );
    let _ = download.kill();
    let _ = download.wait();
}

#[test]
fn a_nat_entry_added_live_takes_new_connections_and_goes_with_the_next_reload() {
    let _alone = alone();
    let lab = lab("nat", "");
    // Straight to the client's own server: nobody listens there, so the connection is refused at once.
    let steer = [
        "nat",
        "add",
        "--direction",
        "egress",
        "--proto",
        "tcp",
        "--to",
        "20.0.0.2:8080",
    ];
    let endpoint = ["--endpoint", "192.168.226.22:9"];
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
    lab.fsm(&[steer.as_slice(), endpoint.as_slice()].concat())
        .unwrap();
    assert_eq!(who(&lab.app1(), "http://20.0.0.2:8080/who"), None);
    assert!(
        who(&lab.app1(), "http://20.0.0.3:8080/who").is_some(),
        "another destination is as before"
    );
    lab.fsm(&["reload"]).unwrap();
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
}

#[test]
fn a_broken_file_is_refused_and_the_old_state_goes_on() {
    let _alone = alone();
    let lab = lab("reload", "");
    let path = lab.plan().path("node.toml");
    let good = fs::read_to_string(&path).unwrap();
    let before = lab.fsm(&["status"]).unwrap();
    fs::write(&path, format!("{good}\n[nonsense]\n")).unwrap();
    let pid = before["pid"].to_string();
    lab.node().cmd("kill", ["-HUP", &pid]).unwrap();
    sleep(Duration::from_millis(500));
    let refused = lab.fsm_command(&["reload"]).output().unwrap();
    assert!(!refused.status.success());
    fs::write(&path, &good).unwrap();
    let after = lab.fsm(&["status"]).unwrap();
    assert_eq!(before["pid"], after["pid"], "the daemon has ended");
    assert_eq!(before["config_hash"], after["config_hash"]);
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());

    let changed = good.replace("same_node = true", "same_node = false") + "\n# changed\n";
    fs::write(&path, changed).unwrap();
    lab.node().cmd("kill", ["-HUP", &pid]).unwrap();
    sleep(Duration::from_millis(800));
    assert_ne!(
        lab.fsm(&["status"]).unwrap()["config_hash"],
        before["config_hash"]
    );
}

#[test]
fn flags_act_at_once() {
    let _alone = alone();
    let lab = lab("flags", "");
    for (flag, reason) in [
        ("deny_all", "deny_all"),
        ("tcp_proto_deny_all", "proto_deny"),
    ] {
        lab.fsm(&["cfg", "set", "ipv4", flag, "on"]).unwrap();
        assert_eq!(who(&lab.app1(), "http://20.0.0.2:8080/who"), None, "{flag}");
        assert!(drops(&lab, reason) > 0, "{flag}");
        let v6 = who(&lab.app1(), "http://[fd20::2]:8080/who");
        assert!(v6.is_some(), "{flag} of IPv4 must leave IPv6 alone");
        lab.fsm(&["cfg", "set", "ipv4", flag, "off"]).unwrap();
        assert!(
            who(&lab.app1(), "http://20.0.0.2:8080/who").is_some(),
            "{flag}"
        );
    }
    let direct = who(&lab.app1(), "http://20.0.0.3:8080/who").unwrap();
    assert!(direct.contains("20.0.0.1"), "through the gateway: {direct}");
    lab.fsm(&["cfg", "set", "ipv4", "tcp_nat_all_off", "on"])
        .unwrap();
    let direct = who(&lab.app1(), "http://20.0.0.3:8080/who").unwrap();
    assert!(direct.contains("10.1.0.2"), "without the gateway: {direct}");
}

#[test]
fn a_device_that_matches_is_taken_when_it_appears_and_let_go_when_it_goes() {
    let _alone = alone();
    let lab = lab("glob", "");
    let node = lab.node();
    let names = |lab: &Lab| -> Vec<String> {
        let status = lab.fsm(&["status"]).unwrap();
        let list = status["interfaces"].as_array().unwrap().clone();
        list.iter()
            .map(|i| i["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let wait = |what: &str, there: bool| {
        let start = Instant::now();
        while names(&lab).iter().any(|n| n == what) != there {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{what}: {there} not within 5 s"
            );
            sleep(Duration::from_millis(50));
        }
    };
    node.cmd(
        "ip",
        [
            "link",
            "add",
            "veth-late",
            "type",
            "veth",
            "peer",
            "name",
            "late0",
        ],
    )
    .unwrap();
    node.cmd("ip", ["link", "set", "veth-late", "up"]).unwrap();
    wait("veth-late", true);
    node.cmd("ip", ["link", "del", "veth-late"]).unwrap();
    wait("veth-late", false);
}

#[test]
fn metrics_tell_what_the_maps_count() {
    let _alone = alone();
    let lab = lab("metrics", "");
    let path = lab.plan().path("node.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("metrics = \"\"", "metrics = \"127.0.0.1:9478\"");
    assert!(
        text.contains("9478"),
        "the lab's configuration has another shape"
    );
    fs::write(&path, text).unwrap();
    let mut lab = lab;
    lab.stop_daemon();
    lab.start_daemon().unwrap_or_else(|error| panic!("{error}"));
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
    assert_eq!(who(&lab.app1(), "http://20.0.0.66:8080/who"), None);
    sleep(Duration::from_millis(1500));
    let text = lab
        .node()
        .cmd(
            "curl",
            ["-sS", "--max-time", "5", "http://127.0.0.1:9478/metrics"],
        )
        .unwrap();
    let value = |line: &str| -> f64 {
        let found = text
            .lines()
            .find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("{line} is missing:\n{text}"))
    };
    assert!(value("fsm_drops_total{reason=\"acl_deny\"}") >= 1.0);
    assert!(value("fsm_flow_new_total") >= 1.0);
    assert!(value("fsm_nat_total") >= 1.0);
    assert!(value("fsm_map_max_entries{map=\"fsm_xnat\"}") > 0.0);
    let packets =
        "fsm_packets_total{dir=\"ingress\",hook=\"tc\",iface=\"veth-app1\",verdict=\"nat\"}";
    assert!(value(packets) >= 1.0);
    assert!(value("fsm_map_entries{map=\"fsm_xflow\"}") >= 1.0);
}

#[test]
fn idle_flows_end_and_flush_ends_the_chosen_ones() {
    let _alone = alone();
    let lab = lab(
        "sweep",
        "\n[conntrack]\ntcp_time_wait_s = 1\ntcp_fin_wait_s = 1\nudp_stream_s = 1\nudp_s = 1\n",
    );
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
    assert!(who(&lab.app1(), "http://[fd20::2]:8080/who").is_some());
    assert!(flow_count(&lab, &["--dst", "20.0.0.2"]) > 0);
    let origins = |lab: &Lab| {
        lab.fsm(&["opt", "list"])
            .unwrap()
            .as_array()
            .map_or(0, Vec::len)
    };
    assert!(
        origins(&lab) > 0,
        "the gateway's original destinations are recorded"
    );
    let start = Instant::now();
    while flow_count(&lab, &["--state", "TIME_WAIT"]) > 0 || origins(&lab) > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "ended flows stay in the table"
        );
        sleep(Duration::from_millis(200));
    }

    let mut download = slow_download(&lab, &lab.app1());
    sleep(Duration::from_secs(1));
    assert!(flow_count(&lab, &["--src", "10.1.0.2", "--proto", "tcp"]) > 0);
    lab.fsm(&["flow", "flush", "--src", "10.1.0.2", "--proto", "tcp"])
        .unwrap();
    let _ = download.kill();
    let _ = download.wait();
}

#[test]
fn flow_list_has_the_fields_of_the_contract() {
    let _alone = alone();
    let lab = lab("list", "");
    assert!(who(&lab.app1(), "http://20.0.0.2:8080/who").is_some());
    let flows = lab
        .fsm(&["flow", "list", "--src", "10.1.0.2", "--dst", "20.0.0.2"])
        .unwrap();
    let flow: &Value = &flows[0];
    for field in [
        "src", "sport", "dst", "dport", "proto", "family", "state", "dir", "nat", "packets",
        "bytes", "app", "verdict", "age_s", "idle_s", "iface",
    ] {
        assert!(flow.get(field).is_some(), "{field} is missing: {flow}");
    }
    assert_eq!(flow["nat"]["dst"], "192.168.226.22");
    assert_eq!(flow["nat"]["dport"], 15001);
    assert_eq!(flow["verdict"], "nat");
    assert!(flow["packets"]["reply"].as_u64().unwrap() > 0);
    let sport = flow["sport"].as_u64().unwrap();
    let peer = format!("10.1.0.2:{sport}");
    let origin = lab.fsm(&["opt", "get", &peer]).unwrap().to_string();
    assert!(
        origin.contains("20.0.0.2") && origin.contains("8080"),
        "{origin}"
    );
}

#[test]
fn an_icmp_error_about_a_steered_flow_reaches_the_app_as_if_about_its_own() {
    let _alone = alone();
    let lab = lab("icmp", "");
    for (to, gateway) in [("20.0.0.2", "192.168.226.22"), ("fd20::2", "[fd22::22]")] {
        let bracketed = if to.contains(':') {
            format!("[{to}]:9")
        } else {
            format!("{to}:9")
        };
        // Nobody listens there, so the gateway's host answers "port unreachable" about its own address.
        let endpoint = format!("{gateway}:9");
        let steer = [
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "udp",
            "--to",
            &bracketed,
        ];
        lab.fsm(&[steer.as_slice(), &["--endpoint", &endpoint]].concat())
            .unwrap();
        let family = if to.contains(':') {
            "AF_INET6"
        } else {
            "AF_INET"
        };
        let script = format!(
            "import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(2)\n\
             s.connect((\"{to}\", 9)); s.send(b\"x\")\n\
             try: s.recv(1)\n\
             except ConnectionRefusedError: print(\"refused\")\n\
             except TimeoutError: print(\"nothing\")"
        );
        let answer = lab.app1().cmd("python3", ["-c", &script]).unwrap();
        assert_eq!(answer.trim(), "refused", "{to}");
    }
    let status = lab.fsm(&["status"]).unwrap();
    assert!(
        status["notes"]["icmp_translated"].as_u64().unwrap() >= 2,
        "{}",
        status["notes"]
    );
}

/// Sends datagrams from a new port each, until `stop` exists; says how many.
fn datagrams(host: &Host, addr: &str, stop: &std::path::Path) -> Child {
    let script = format!(
        "n=0; while [ ! -e {} ]; do echo x > /dev/udp/{addr}/9 && n=$((n+1)); sleep 0.01; done; echo $n",
        stop.display()
    );
    host.command("bash")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_reload_of_a_long_list_is_never_seen_half_way_by_traffic() {
    let _alone = alone();
    let lab = lab("list", "");
    let path = lab.plan().path("node.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("acl_files = [\"list.txt\"]\n{good}")).unwrap();
    // Both deny 20.0.0.3 and let 20.0.0.2 through, each by other kinds of entry.
    let list = |front: &str, net: u8| {
        let mut text = front.to_owned();
        for i in 0..50_000u32 {
            let [_, b, c, d] = i.to_be_bytes();
            text += &format!("{net}.{b}.{c}.{d}\n");
        }
        for i in 0..20_000u32 {
            let [_, _, b, c] = i.to_be_bytes();
            text += &format!("{}.{b}.{c}.0/24 deny tcp 1-1023\n", net + 100);
        }
        text
    };
    let lists = [
        list("20.0.0.3 deny # by its address\n", 30),
        list("20.0.0.0/30 deny\n20.0.0.2 audit any 0 7\n", 31),
    ];
    let (denied, allowed) = ("20.0.0.3", "20.0.0.2");
    fs::write(lab.plan().path("list.txt"), &lists[0]).unwrap();
    lab.fsm(&["reload"]).unwrap();
    let rules = lab.fsm(&["acl", "list"]).unwrap();
    assert!(rules.as_array().is_some_and(|rules| rules.len() > 70_000));

    let (stop, before) = (lab.plan().path("stop"), drops(&lab, "acl_deny"));
    let senders = [denied, allowed].map(|addr| datagrams(&lab.app1(), addr, &stop));
    let (start, mut reloads) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(15) {
        fs::write(lab.plan().path("list.txt"), &lists[(reloads + 1) % 2]).unwrap();
        lab.fsm(&["reload"]).unwrap();
        reloads += 1;
    }
    fs::write(&stop, "").unwrap();
    let sent = senders.map(|sender| {
        let output = sender.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse::<u64>()
            .unwrap()
    });
    // What is denied is dropped, each of them and nothing else; it has no flow, and what passes has one.
    let dropped = drops(&lab, "acl_deny") - before;
    let flows = [denied, allowed].map(|addr| flow_count(&lab, &["--dst", addr, "--port", "9"]));
    assert!(
        reloads >= 4 && sent[0] > 100 && sent[1] > 100,
        "{reloads} reloads, {sent:?} sent"
    );
    assert_eq!(dropped, sent[0], "{reloads} reloads, {sent:?} sent");
    assert!(flows[0] == 0 && flows[1] > 100, "{flows:?}");

    // A rule of the list is taken out until the next reload; the file is not the daemon's to write.
    fs::write(lab.plan().path("list.txt"), &lists[0]).unwrap();
    lab.fsm(&["reload"]).unwrap();
    let refused = lab
        .fsm_command(&["acl", "del", denied, "--save"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("list.txt:1"),
        "{said}"
    );
    assert_eq!(who(&lab.app1(), "http://20.0.0.3:8080/who"), None);
    lab.fsm(&["acl", "del", denied]).unwrap();
    assert!(who(&lab.app1(), "http://20.0.0.3:8080/who").is_some());

    fs::write(lab.plan().path("list.txt"), "20.0.0.3\n20.0.0.4 dny\n").unwrap();
    let refused = lab.fsm_command(&["reload"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("list.txt:2:10: action: unknown action `dny`"),
        "{said}"
    );
}
