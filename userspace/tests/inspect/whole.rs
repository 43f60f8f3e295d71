//! Nothing that works without inspection is changed by it.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use fsm_fastpath::lab::{self, Host, Lab, Opts};

use super::{app_flows, assert_nothing_lost, dpi, lab, sum, who, workers};
use crate::traffic::{BINARY, alone, flows, wait_for};
use std::time::Duration;

#[test]
fn everything_that_works_without_inspection_works_with_it() {
    let _alone = alone();
    let opts = Opts {
        name: format!("fsmi-{}-all", std::process::id()),
        binary: Some(BINARY.into()),
        extra_config: dpi("protect", 2, "inspect = \"all\""),
        ..Opts::default()
    };
    let report = lab::run(&opts).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    // What is trusted goes past the stack once it is judged, so the checks for that hold too.
    assert!(report.passed, "{report}");
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TLS server on the host outside, which answers with a page about the session.
fn tls_server(lab: &Lab) -> Server {
    let dir = lab.plan().path("tls");
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let (key, cert) = (path("key.pem"), path("cert.pem"));
    let made = lab.outside().cmd(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=www.example.test",
            "-keyout",
            &key,
            "-out",
            &cert,
        ],
    );
    made.unwrap();
    let mut server = lab.outside().command("openssl");
    server.args([
        "s_server", "-accept", "8443", "-cert", &cert, "-key", &key, "-www", "-quiet",
    ]);
    let server = server
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Server(server.unwrap())
}

/// Sum of what a host downloads.
fn downloaded(host: &Host, url: &str) -> String {
    let line = format!("curl -gsS --max-time 60 {url} | sha256sum");
    let out = host.cmd("sh", ["-c", &line]).unwrap();
    out.split_whitespace().next().unwrap_or_default().to_owned()
}

/// The offloads of an app's device.
fn offloads(host: &Host) -> String {
    host.cmd("ethtool", ["-k", "eth0"]).unwrap()
}

fn download_tls_and_names(workers_: usize) {
    let _alone = alone();
    let lab = lab(&format!("w{workers_}"), "");
    let before = offloads(&lab.app1());
    // Switched on while the lab runs.
    super::reload(&lab, |text| text + &dpi("protect", workers_, ""));
    assert_eq!(workers(&lab).len(), workers_);
    let blob = lab.blob_sum().unwrap();
    for (host, url) in [
        (lab.app1(), "http://20.0.0.2:8080/blob"),
        (lab.app2(), "http://[fd20::2]:8080/blob"),
        (lab.client(), "http://10.1.0.2:80/blob"),
        (lab.client(), "http://[fd10:1::2]:80/blob"),
    ] {
        assert_eq!(downloaded(&host, url), blob, "{url}");
    }
    let _server = tls_server(&lab);
    let page = |url: &str| {
        let resolve = [
            "www.example.test:8443:20.0.0.2",
            "www.example.test:8443:[fd20::2]",
        ];
        let to = resolve[usize::from(url == "v6")];
        let args = [
            "-ksS",
            "--max-time",
            "5",
            "--resolve",
            to,
            "https://www.example.test:8443/",
        ];
        lab.app1().cmd("curl", args)
    };
    wait_for("a TLS server", Duration::from_secs(5), || {
        page("v4").is_ok()
    });
    for family in ["v4", "v6"] {
        let page = page(family).unwrap();
        assert!(page.contains("TLSv1.3"), "{page}");
    }
    for resolver in ["20.0.0.53", "fd20::53"] {
        let args = [
            &format!("@{resolver}"),
            "lab.test",
            "A",
            "+short",
            "+tries=1",
            "+time=3",
        ];
        let names = lab.app1().cmd("dig", args).unwrap();
        assert_eq!(names.trim(), "20.0.0.2", "{resolver}");
    }
    for i in 0..20 {
        who(&lab.app1(), "http://20.0.0.2:8080/who").unwrap_or_else(|e| panic!("{i}: {e}"));
    }
    assert_eq!(offloads(&lab.app1()), before, "an app's offloads");
    assert_nothing_lost(&lab);
    let rows = workers(&lab);
    if workers_ > 1 {
        assert!(
            rows.iter().all(|row| row["verdicts"]["allow"] != 0),
            "{rows:#?}"
        );
        assert_eq!(sum(&rows, "/hops/in"), sum(&rows, "/hops/out"));
    }
    assert!(app_flows(&lab, "http") >= 20);
    assert!(app_flows(&lab, "tls") >= 2);
    assert!(app_flows(&lab, "dns") >= 2);
    let listed = flows(
        &lab,
        &["--src", "10.1.0.2", "--port", "8080", "--proto", "tcp"],
    );
    let is_http = |row: &serde_json::Value| row["app"] == "http";
    assert!(
        listed.iter().any(is_http),
        "flow list names no app: {listed:#?}"
    );
    // Both directions of each flow at one worker.
    let sessions = lab.fsm(&["dpi", "sessions"]).unwrap();
    let mut ends = BTreeSet::new();
    for row in sessions.as_array().unwrap() {
        let mut pair = [("src", "sport"), ("dst", "dport")]
            .map(|(addr, port)| format!("{} {}", row[addr], row[port]));
        pair.sort();
        assert!(
            ends.insert((row["proto"].to_string(), pair)),
            "at two workers: {row}"
        );
        if row["app"] == "http" || row["app"] == "tls" {
            assert!(
                row["packets"]["orig"] != 0 && row["packets"]["reply"] != 0,
                "{row}"
            );
        }
    }
    assert!(ends.len() > 20);
}

#[test]
fn a_download_a_tls_session_and_names_by_one_worker() {
    download_tls_and_names(1);
}

#[test]
fn a_download_a_tls_session_and_names_by_two_workers() {
    download_tls_and_names(2);
}
