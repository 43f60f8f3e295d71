//! Floods from the wire against a protected port, while real clients connect and open connections go on. The
//! daemon, all programs and the gateway are real; the hosts are those of the lab.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

#[path = "../../common/tests/support/frame.rs"]
#[expect(dead_code, reason = "prog_run uses the rest")]
mod frame;

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use frame::{Frame, L4, SYN, tcp, udp};
use fsm_fastpath::{
    lab::{Host, Lab, Opts, Role},
    loader::sys::{AttachType, Link, XDP_NATIVE},
};
use serde_json::Value;

/// One lab at a time: on a small machine two of them would measure each other.
static ONE_LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// App1's web port and a UDP port, at most 100 new flows a second each.
const PROTECT: &str = r#"
[[protect]]
to = ":80"
proto = "tcp"
new_per_s = 100
[[protect]]
to = "any"
proto = "udp"
new_per_s = 100
"#;

/// MSS 1460, SACK permitted, timestamp, window scale 7.
const OPTIONS: [u8; 20] = [
    2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
];

fn lab(tag: &str, syncookies: u8, timestamps: u8) -> Lab {
    let opts = Opts {
        name: format!("fsmf-{}-{tag}", std::process::id()),
        binary: Some(env!("CARGO_BIN_EXE_fsm-fastpath").into()),
        extra_config: PROTECT.to_owned(),
        ..Opts::default()
    };
    let lab = Lab::up(&opts).unwrap_or_else(|error| panic!("{error}"));
    for setting in [
        format!("net.ipv4.tcp_syncookies={syncookies}"),
        format!("net.ipv4.tcp_timestamps={timestamps}"),
    ] {
        lab.node().cmd("sysctl", ["-qw", &setting]).unwrap();
    }
    // The daemon looks at the settings again.
    lab.fsm(&["reload"]).unwrap();
    // Answers to the spoofed clients need a way, or the stack drops their SYNs at once.
    for (family, net, via) in [
        ("-4", "198.18.0.0/15", "20.0.0.10"),
        ("-6", "fd66::/16", "fd20::10"),
    ] {
        lab.node()
            .cmd("ip", [family, "route", "add", net, "via", via])
            .unwrap();
    }
    lab
}

fn counted(lab: &Lab, kind: &str, reason: &str) -> u64 {
    lab.fsm(&["status"]).unwrap()[kind][reason]
        .as_u64()
        .unwrap()
}

/// A counter of a host's own TCP.
fn stack_counted(host: &Host, name: &str) -> u64 {
    let text = host.cmd("nstat", ["-asz", name]).unwrap();
    let words = text.split_whitespace().skip_while(|word| *word != name);
    words.skip(1).find_map(|word| word.parse().ok()).unwrap()
}

/// Answers that the uplink's driver could not send.
fn unsent(lab: &Lab) -> u64 {
    let text = lab.node().cmd("ethtool", ["-S", "up0"]).unwrap();
    let of_queues = text
        .lines()
        .filter_map(|line| line.split_once("_xdp_tx_errors: "));
    of_queues
        .map(|(_, count)| count.trim().parse::<u64>().unwrap())
        .sum()
}

fn mac(host: &Host, device: &str) -> [u8; 6] {
    let text = host
        .cmd("ip", ["-j", "link", "show", "dev", device])
        .unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let bytes = all[0]["address"].as_str().unwrap().split(':');
    let bytes: Vec<u8> = bytes.map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Moves this thread into a namespace.
fn enter(netns: &File) {
    // SAFETY: for this thread only, with an open descriptor.
    let result = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Sends frames from the client's device until told to stop, or until so many are out.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    /// `frame(n)` is the n-th frame, without MACs.
    fn start(lab: &Lab, most: u64, frame: impl Fn(u64) -> Frame + Send + 'static) -> Self {
        let (to, from) = (mac(&lab.node(), "up0"), mac(&lab.client(), "eth0"));
        let netns = File::open(lab.plan().netns_path(Role::Client)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            enter(&netns);
            let wire = Wire::open("eth0");
            let mut sent = 0;
            while sent < most && !told.load(Ordering::Relaxed) {
                let frame = Frame {
                    dmac: to,
                    smac: from,
                    ..frame(sent)
                };
                wire.send(&frame.bytes());
                sent += 1;
            }
            sent
        });
        Self { stop, thread }
    }

    /// Waits for the end, or makes one; gives the number of frames.
    fn end(self, now: bool) -> u64 {
        self.stop.store(now, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// An XDP program on the wire's end of the node's uplink. A veth hands over what native XDP sends back
/// (`XDP_TX`) only where the far end has a program of its own; a NIC's far end is a wire.
struct FarEnd {
    _link: Link,
}

impl FarEnd {
    fn open(lab: &Lab) -> Self {
        let netns = File::open(lab.plan().netns_path(Role::Wire)).unwrap();
        let attach = move || {
            enter(&netns);
            let link = Link::create(&pass_all(), index("w-node"), AttachType::Xdp, XDP_NATIVE);
            Self {
                _link: link.unwrap_or_else(|e| panic!("w-node: {e}")),
            }
        };
        thread::spawn(attach).join().unwrap()
    }
}

/// `return XDP_PASS`, by hand.
fn pass_all() -> OwnedFd {
    const PROG_LOAD: i64 = 5;
    const XDP: u32 = 6;
    // r0 = 2; exit (`struct bpf_insn`)
    let program: [u64; 2] = [0xb7 | 2 << 32, 0x95];
    let license = c"Apache-2.0";
    // The front of `union bpf_attr`: type, number of instructions, instructions, license.
    let attr: [u64; 6] = [
        u64::from(XDP) | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the attributes and what they point to live through the call; a new descriptor is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, PROG_LOAD, attr.as_ptr(), size_of_val(&attr));
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    }
}

fn index(device: &str) -> u32 {
    let name = std::ffi::CString::new(device).unwrap();
    // SAFETY: a string that ends with zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// A packet socket on one device.
struct Wire {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Wire {
    fn open(device: &str) -> Self {
        // SAFETY: a new descriptor that nobody else has; zero is a value of a struct of integers.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = index(device) as i32;
            Self {
                socket: OwnedFd::from_raw_fd(fd),
                to,
            }
        }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: the frame and the address live through the call, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        let full = io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
        assert!(sent > 0 || full, "{}", io::Error::last_os_error());
    }
}

/// The n-th spoofed client's SYN to an app's web port.
fn spoofed_syn(n: u64, v6: bool) -> Frame {
    let (low, port) = (n & 0xffff, 1024 + n % 60000);
    let mut frame = if v6 {
        tcp(&format!("[fd66::{low:x}]:{port}"), "[fd10:1::2]:80", SYN)
    } else {
        let client = format!("198.18.{}.{}:{port}", low >> 8, low & 0xff);
        tcp(&client, "10.1.0.2:80", SYN)
    };
    if let L4::Tcp { options, .. } = &mut frame.l4 {
        *options = OPTIONS.to_vec();
    }
    frame
}

/// Asks app1 who it talks to.
fn who(lab: &Lab, v6: bool) -> Result<String, String> {
    let url = if v6 {
        "http://[fd10:1::2]/who"
    } else {
        "http://10.1.0.2/who"
    };
    // A SYN that is lost is sent again after one second.
    let args = ["-gsS", "--max-time", "8", url];
    lab.client().cmd("curl", args).map_err(|e| e.to_string())
}

/// A download of the big file from app1 at 2 MB/s; it ends with an error where it stands for three seconds.
fn slow_download(lab: &Lab) -> Child {
    lab.blob_sum().unwrap_or_else(|error| panic!("{error}"));
    lab.client()
        .command("curl")
        .args(["-sS", "--limit-rate", "2M", "--speed-limit", "1"])
        .args(["--speed-time", "3", "--max-time", "60", "-o", "/dev/null"])
        .arg("http://10.1.0.2/blob")
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Window scales (sending, receiving) of the connections to or from a port, as a host's sockets have them.
fn scales(host: &Host, filter: &str) -> Vec<String> {
    let text = host
        .cmd("ss", ["-tinH", "state", "established", filter])
        .unwrap();
    let words = text.split_whitespace();
    words
        .filter_map(|w| w.strip_prefix("wscale:").map(str::to_owned))
        .collect()
}

#[test]
fn clients_get_through_a_syn_flood_and_open_connections_go_on() {
    let _alone = alone();
    let lab = lab("syn2", 2, 2);
    let _far_end = FarEnd::open(&lab);
    let mut before = slow_download(&lab);
    sleep(Duration::from_millis(500));
    let mut all_cookies = 0;
    for v6 in [false, true] {
        let cookies = counted(&lab, "notes", "syn_cookie_sent");
        let accepted = stack_counted(&lab.node(), "TcpExtSyncookiesRecv");
        let failed = stack_counted(&lab.node(), "TcpExtSyncookiesFailed");
        let flood = Flood::start(&lab, 200_000, move |n| spoofed_syn(n, v6));
        sleep(Duration::from_millis(200));
        let start = Instant::now();
        let mut during = None;
        for i in 0..20 {
            let answer = who(&lab, v6).unwrap_or_else(|e| panic!("client {i}, IPv6 {v6}: {e}"));
            assert!(answer.contains("client"), "{answer}");
            if i == 0 && !v6 {
                during = Some(slow_download(&lab));
            }
        }
        let took = start.elapsed();
        if let Some(mut during) = during {
            // A connection that came by a cookie has all its options.
            let [there, here] = [
                scales(&lab.client(), "( dport = :80 )"),
                scales(&lab.node(), "( sport = :15003 )"),
            ];
            println!("window scales: client {there:?}, node {here:?}");
            let mirrored = |s: &String| s.split_once(',').map(|(a, b)| format!("{b},{a}"));
            let mut there: Vec<_> = there.iter().filter_map(mirrored).collect();
            let mut here = here;
            there.sort();
            here.sort();
            assert_eq!((there.len(), &there), (2, &here));
            assert!(during.try_wait().unwrap().is_none(), "it has ended");
            let _ = during.kill();
            let _ = during.wait();
        }
        let sent = flood.end(false);
        let cookies = counted(&lab, "notes", "syn_cookie_sent") - cookies;
        let accepted = stack_counted(&lab.node(), "TcpExtSyncookiesRecv") - accepted;
        let failed = stack_counted(&lab.node(), "TcpExtSyncookiesFailed") - failed;
        println!(
            "IPv6 {v6}: {sent} SYNs, {cookies} cookies, {accepted} taken back, {failed} refused; \
             20 clients in {took:?}"
        );
        // On a busy machine the wire's ring drops some of the flood before anybody sees it.
        assert!(cookies > sent / 4, "{cookies} cookies for {sent} SYNs");
        all_cookies += cookies;
        assert!(accepted >= 15, "{accepted} clients came by a cookie");
        assert_eq!(failed, 0, "cookies that the stack did not believe");
        assert!(
            before.try_wait().unwrap().is_none(),
            "the open download ended"
        );
    }
    // A veth has room for 256 frames.
    assert!(
        unsent(&lab) < 2000,
        "{} answers did not leave",
        unsent(&lab)
    );
    let again = stack_counted(&lab.client(), "TcpExtTCPSynRetrans");
    assert!(again < 5, "{again} SYNs of clients had to be sent again");
    let rows = lab.fsm(&["status"]).unwrap()["protect"].clone();
    let sum = |what: &str| -> u64 {
        let rows = rows.as_array().unwrap().iter();
        let tcp = rows.filter(|row| row["to"] == ":80" && row["proto"] == "tcp");
        tcp.map(|row| row[what].as_u64().unwrap()).sum()
    };
    // CPUs may overwrite each other's counts.
    assert!(sum("over") > all_cookies * 9 / 10, "{all_cookies}: {rows}");
    assert!(sum("passed") > 0, "{rows}");
    let _ = before.kill();
    let _ = before.wait();
}

#[test]
fn with_the_hosts_own_settings_xdp_answers_once_the_listeners_queue_is_full() {
    let _alone = alone();
    let lab = lab("syn1", 1, 1);
    let _far_end = FarEnd::open(&lab);
    let flood = Flood::start(&lab, 200_000, |n| spoofed_syn(n, false));
    let start = Instant::now();
    while counted(&lab, "notes", "syn_cookie_sent") == 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "no cookie");
        sleep(Duration::from_millis(20));
    }
    for i in 0..20 {
        who(&lab, false).unwrap_or_else(|e| panic!("client {i}: {e}"));
    }
    let sent = flood.end(false);
    let cookies = counted(&lab, "notes", "syn_cookie_sent");
    let left = counted(&lab, "notes", "syn_cookie_none");
    let accepted = stack_counted(&lab.node(), "TcpExtSyncookiesRecv");
    println!("{sent} SYNs, {cookies} cookies, {left} left to the stack, {accepted} taken back");
    assert!(cookies > sent / 4, "{cookies} cookies for {sent} SYNs");
    // A veth has room for 256 frames.
    assert!(
        unsent(&lab) < 2000,
        "{} answers did not leave",
        unsent(&lab)
    );
    assert!(accepted > 0);
    assert_eq!(stack_counted(&lab.node(), "TcpExtSyncookiesFailed"), 0);
}

#[test]
fn a_flood_of_datagrams_stays_outside_and_those_of_a_flow_pass() {
    let _alone = alone();
    let lab = lab("udp", 2, 1);
    let flood = Flood::start(&lab, 200_000, |n| {
        let (low, port) = (n & 0xffff, 1024 + n % 60000);
        let client = format!("198.18.{}.{}:{port}", low >> 8, low & 0xff);
        udp(&client, "10.1.0.2:9999")
    });
    sleep(Duration::from_millis(200));
    // App1 asks; the answers belong to its flow.
    let script = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n\
        s.connect((\"20.0.0.2\", 7777))\n\
        for i in range(50):\n    s.send(b\"x\"); assert s.recv(9) == b\"x\"\n\
        print(\"all\")";
    let answer = lab.app1().cmd("python3", ["-c", script]).unwrap();
    assert_eq!(answer.trim(), "all");
    let sent = flood.end(false);
    let dropped = counted(&lab, "drops", "flood_udp");
    println!("{sent} datagrams, {dropped} dropped");
    assert!(dropped > sent * 9 / 10, "{dropped} of {sent} dropped");
    let flows = counted(&lab, "notes", "flow_new");
    assert!(flows < sent / 10, "{flows} flows for {sent} datagrams");
}
