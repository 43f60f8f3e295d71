//! The lab with the real daemon in it: everything that `lab run` checks, a daemon that dies while
//! traffic flows, and a host that is afterwards as it was before.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::traffic::udp::StreamReport;
use fsm_fastpath::lab::{self, Host, Lab, Opts, Plan, Role};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");

/// One lab at a time: on a small machine two of them would measure each other.
static ONE_LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Options of a lab that no other test and no user has.
fn opts(tag: &str) -> Opts {
    let name = format!("fsmt-{}-{tag}", std::process::id());
    Opts {
        name,
        binary: Some(BINARY.into()),
        ..Opts::default()
    }
}

#[test]
fn lab_run_passes_and_leaves_the_host_as_it_was() {
    let _alone = alone();
    let opts = opts("run");
    let before = host_state(&opts.name);
    let report = lab::run(&opts).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    assert!(report.passed, "{report}");
    assert!(report.rows.len() >= 30, "checks are missing: {report}");
    assert_nothing_new(&before, &opts.name);
}

#[test]
fn connections_survive_daemon_sigkill_and_a_new_daemon_adopts_them() {
    let _alone = alone();
    let mut lab = Lab::up(&opts("kill")).unwrap_or_else(|error| panic!("{error}"));
    let sum = lab.blob_sum().unwrap();

    // 6 MB/s each: 100 MiB last seventeen seconds; 1800 datagrams at 5 ms nine.
    let transfers = [
        transfer(&lab, &lab.app1(), "http://20.0.0.2:8080/blob"),
        transfer(&lab, &lab.app2(), "http://[fd20::2]:8080/blob"),
        transfer(&lab, &lab.client(), "http://10.1.0.2:80/blob"),
        transfer(
            &lab,
            &lab.client(),
            "--interface fd20::11 http://[fd10:1::2]:8081/blob",
        ),
    ];
    let streams = ["20.0.0.2:7777", "[fd20::2]:7777"].map(|to| stream(&lab.app1(), to));
    sleep(Duration::from_secs(2));

    let before = long_flows(&lab);
    assert!(
        before.len() >= 6,
        "transfers and streams are not in the flow list: {before:?}"
    );
    let first_pid = lab.daemon().expect("a daemon").pid;
    lab.kill_daemon();
    assert!(lab.daemon().is_none(), "the daemon outlived SIGKILL");
    sleep(Duration::from_secs(1));
    // Nobody is there, and new connections still find their way.
    let who = lab.app1().cmd(
        "curl",
        ["-sS", "--max-time", "5", "http://20.0.0.2:8080/who"],
    );
    assert!(
        who.expect("a new connection without a daemon")
            .contains("20.0.0.1")
    );

    lab.start_daemon().unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(lab.daemon().expect("a new daemon").pid, first_pid);
    let status = lab.fsm(&["status"]).unwrap();
    assert_eq!(
        status["adopted"], true,
        "the new daemon did not adopt: {status}"
    );
    let after = long_flows(&lab);
    let lost: Vec<_> = before.difference(&after).collect();
    let seen = lab.fsm(&["flow", "list"]).unwrap();
    assert!(
        lost.is_empty(),
        "flows lost by the restart: {lost:?} of {seen:#}"
    );

    let sums = transfers.map(output);
    let reports = streams.map(output);
    for (number, got) in sums.iter().enumerate() {
        let got = got
            .as_ref()
            .map(|text| text.split_whitespace().next().unwrap_or_default());
        assert_eq!(
            got,
            Ok(sum.as_str()),
            "transfer {number}; streams: {reports:?}"
        );
    }
    for report in reports {
        let report: StreamReport = serde_json::from_str(&report.unwrap()).unwrap();
        assert_eq!(report.received, report.sent, "datagrams lost: {report:?}");
    }
}

#[test]
fn down_removes_every_trace() {
    let _alone = alone();
    let opts = opts("down");
    let before = host_state(&opts.name);
    lab::down(&opts).unwrap_or_else(|error| panic!("down of nothing: {error}"));

    lab::up(&opts).unwrap_or_else(|error| panic!("{error}"));
    let again = lab::up(&opts).unwrap_err().to_string();
    assert!(again.contains("lab down"), "{again}");
    assert!(!left_of(&opts.name).is_empty(), "the lab should be there");
    lab::down(&opts).unwrap_or_else(|error| panic!("{error}"));
    assert_nothing_new(&before, &opts.name);

    // Half of one: no state, a host missing, a folder missing, a dead daemon.
    let lab = Lab::up(&opts)
        .unwrap_or_else(|error| panic!("{error}"))
        .keep();
    lab.kill_daemon();
    fs::remove_file(lab.plan().path("state.json")).unwrap();
    fs::remove_dir_all(lab.plan().path("nginx-app1")).unwrap();
    let client = lab.plan().netns(Role::Client);
    lab.node().cmd("ip", ["netns", "del", &client]).unwrap();
    lab::down(&opts).unwrap_or_else(|error| panic!("{error}"));
    assert_nothing_new(&before, &opts.name);

    // As little of one as there can be.
    let plan = Plan::new(&opts.name).unwrap();
    run("ip", &["netns", "add", &plan.netns(Role::Node)]);
    lab::down(&opts).unwrap_or_else(|error| panic!("{error}"));
    assert_nothing_new(&before, &opts.name);
}

/// Starts a slow download of the big file; its output is the file's sum.
fn transfer(lab: &Lab, host: &Host, what: &str) -> Child {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = lab.plan().path(&format!("transfer-{number}"));
    let line = format!(
        "curl -gsS --max-time 60 --limit-rate 6M -o {file} {what} && sha256sum < {file}",
        file = file.display()
    );
    spawn(host.command("sh").args(["-c", &line]))
}

/// Starts a stream of datagrams, one each 5 ms; its output is a [`StreamReport`].
fn stream(host: &Host, to: &str) -> Child {
    let args = ["lab", "stream", to, "--count", "1800", "--pace-ms", "5"];
    spawn(host.command(BINARY).args(args))
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program of the lab")
}

/// What a child printed, or what it said when it failed.
fn output(child: Child) -> Result<String, String> {
    let output = child.wait_with_output().expect("a child's output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{}: {}", output.status, text(&output.stderr))),
    }
}

/// The flows of transfers and streams, by both ends; short ones come and go.
fn long_flows(lab: &Lab) -> BTreeSet<String> {
    let flows = lab.fsm(&["flow", "list"]).unwrap();
    let long = |flow: &&Value| {
        let is_stream = flow["proto"] == "udp" && flow["dport"] == 7777;
        is_stream
            || flow["state"]
                .as_str()
                .is_some_and(|s| s.eq_ignore_ascii_case("established"))
    };
    let ends = |flow: &Value| {
        format!(
            "{} {} {} {}",
            flow["src"], flow["sport"], flow["dst"], flow["dport"]
        )
    };
    flows
        .as_array()
        .expect("a list of flows")
        .iter()
        .filter(long)
        .map(ends)
        .collect()
}

/// What a lab could leave behind on the host: devices, programs on them, pins; and whatever bears
/// its name. Other things of other names may come and go meanwhile.
fn host_state(name: &str) -> BTreeSet<String> {
    let mut all = left_of(name);
    let links: Value = serde_json::from_str(&run("ip", &["-j", "link"])).expect("JSON");
    for link in links.as_array().expect("a list of links") {
        all.insert(format!("device {} {}", link["ifname"], link["ifindex"]));
    }
    all.insert(format!(
        "programs {}",
        run("bpftool", &["-j", "net"]).trim()
    ));
    list_folder(Path::new("/sys/fs/bpf"), &mut all);
    all
}

/// Everything on the host that bears a lab's name.
fn left_of(name: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut add = |kind: &str, line: &str| {
        if line.contains(name) {
            all.insert(format!("{kind} {line}"));
        }
    };
    run("ip", &["netns"])
        .lines()
        .for_each(|line| add("netns", line));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for mount in mounts.lines() {
        add("mount", mount);
        if let Some((point, _)) = mount.split_once(" - cgroup2 ") {
            let root = point.split_whitespace().nth(4).unwrap_or_default();
            names_in(Path::new(root)).for_each(|child| add("cgroup", &child));
        }
    }
    names_in(Path::new("/run")).for_each(|file| add("file", &file));
    for pid in names_in(Path::new("/proc")).filter(|file| file.parse::<u32>().is_ok()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        add(
            "process",
            &String::from_utf8_lossy(&line).replace('\0', " "),
        );
    }
    all
}

/// Waits a little for what the kernel removes later, then insists.
fn assert_nothing_new(before: &BTreeSet<String>, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let after = host_state(name);
        let new: Vec<_> = after.difference(before).collect();
        if new.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {new:#?}");
        sleep(Duration::from_millis(200));
    }
}

fn list_folder(folder: &Path, all: &mut BTreeSet<String>) {
    for name in names_in(folder) {
        let path = folder.join(name);
        all.insert(format!("pin {}", path.display()));
        list_folder(&path, all);
    }
}

fn names_in(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
