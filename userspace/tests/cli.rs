//! The command line as users meet it: exit codes, help, and one clear sentence where nothing is loaded.
//! Needs no privileges and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VERBS: [&str; 15] = [
    "run", "check", "doctor", "status", "acl", "nat", "cfg", "flow", "opt", "trace", "map",
    "reload", "down", "lab", "pcap",
];

fn fsm(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsm-fastpath"));
    command.args(args).output().expect("fsm-fastpath starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../configs")
        .join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// A file of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fsm-cli-{}-{name}", std::process::id()));
        fs::write(&path, text).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn help_mentions_every_verb() {
    let help = fsm(&["--help"]);
    assert_eq!(code(&help), 0);
    let text = stdout(&help);
    for verb in VERBS {
        assert!(
            text.lines().any(|line| line.trim_start().starts_with(verb)),
            "{verb} in {text}"
        );
        let own = fsm(&[verb, "--help"]);
        assert_eq!(code(&own), 0, "{verb}");
        assert!(!own.stdout.is_empty(), "{verb}");
    }
    let families = [
        ("acl", ["list", "add", "del"]),
        ("nat", ["list", "add", "del"]),
        ("trace", ["list", "add", "del"]),
        ("cfg", ["list", "get", "set"]),
        ("flow", ["list", "count", "flush"]),
        ("lab", ["up", "run", "down"]),
    ];
    for (verb, subs) in families {
        let text = stdout(&fsm(&[verb, "--help"]));
        for sub in subs {
            assert!(
                text.lines().any(|line| line.trim_start().starts_with(sub)),
                "{verb} {sub} in {text}"
            );
        }
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let wrong: [&[&str]; 20] = [
        &[],
        &["fly"],
        &["acl"],
        &["status", "-o", "yaml"],
        &["acl", "add", "10.0.0.1"],
        &["acl", "add", "10.0.0.1/8", "--action", "deny"],
        &["acl", "add", "10.0.0.1", "--action", "dny"],
        &[
            "acl", "add", "10.0.0.1", "--action", "deny", "--port", "70000",
        ],
        &[
            "acl", "add", "10.0.0.1", "--action", "deny", "--proto", "icmp", "--port", "8",
        ],
        &[
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "tcp",
            "--to",
            "any",
        ],
        &[
            "nat",
            "add",
            "--direction",
            "up",
            "--proto",
            "tcp",
            "--to",
            "any",
            "--endpoint",
            "10.0.0.1:1",
        ],
        &[
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "tcp",
            "--to",
            "any",
            "--endpoint",
            "10.0.0.1",
        ],
        &["cfg", "set", "ipv4", "acl_chek_on", "on"],
        &["cfg", "set", "ipv5", "acl_check_on", "on"],
        &["cfg", "set", "ipv4", "acl_check_on", "maybe"],
        &["flow", "list", "--state", "open"],
        &["flow", "list", "--older", "long"],
        &["opt", "get", "10.0.0.1"],
        &["trace", "add"],
        &["map", "dump", "fsm_nothing"],
    ];
    for args in wrong {
        let output = fsm(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_wrong_word_gets_its_neighbour() {
    let text = stderr(&fsm(&["cfg", "get", "ipv4", "acl_chek_on"]));
    assert!(text.contains("did you mean `acl_check_on`?"), "{text}");
}

#[test]
fn check_accepts_a_good_configuration() {
    for name in ["minimal.toml", "full.toml", "ipv6.toml"] {
        let output = fsm(&["check", "--config", &example(name), "-o", "json"]);
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(summary["ok"], true);
        assert_eq!(summary["config_hash"].as_str().map(str::len), Some(16));
        assert!(
            summary["interfaces"]
                .as_array()
                .is_some_and(|list| !list.is_empty()),
            "{summary}"
        );
    }
    let output = fsm(&["check", "--config", &example("minimal.toml")]);
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("INTERFACE"));
    assert!(
        !stdout(&output).contains('\u{1b}'),
        "no colour without a terminal"
    );
}

#[test]
fn check_refuses_a_broken_configuration_with_every_place() {
    let text = "[[interface]]\nname = \"eth0\"\nrole = \"uplnk\"\n[node]\nbpfs = \"/x\"\n";
    let file = Scratch::new("broken.toml", text);
    for verb in [&["check"][..], &["run"], &[], &["status"], &["down"]] {
        let output = fsm(&[verb, &["--config", file.path()]].concat());
        assert_eq!(code(&output), 2, "{verb:?}");
        let errors = stderr(&output);
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(lines.len(), 2, "{errors}");
        assert!(
            lines[0].starts_with(&format!("{}:3:", file.path())),
            "{errors}"
        );
        assert!(
            lines[1].starts_with(&format!("{}:5:1: node.bpfs: ", file.path())),
            "{errors}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let output = fsm(&["--config", "/nonexistent/node.toml"]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).starts_with("/nonexistent/node.toml: cannot be read"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn reading_needs_something_loaded() {
    let verbs: [&[&str]; 11] = [
        &["status"],
        &["acl", "list"],
        &["nat", "list"],
        &["cfg", "list"],
        &["cfg", "get", "ipv4", "acl_check_on"],
        &["flow", "list"],
        &["flow", "count"],
        &["flow", "flush"],
        &["opt", "get", "10.0.0.1:80"],
        &["trace", "list"],
        &["map", "dump", "fsm_xflow"],
    ];
    for verb in verbs {
        let output = fsm(&[
            verb,
            &["--bpffs", "/nonexistent/bpffs", "--api", "/nonexistent/api"],
        ]
        .concat());
        assert_eq!(code(&output), 1, "{verb:?}");
        let text = stderr(&output);
        assert!(
            text.starts_with("error: nothing is loaded under /nonexistent/bpffs/v"),
            "{verb:?}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(output.stdout.is_empty(), "{verb:?}");
    }
}

#[test]
fn changing_needs_the_daemon() {
    let egress = ["--direction", "egress", "--proto", "tcp", "--to", "any"];
    let nat_add = [
        &["nat", "add"],
        &egress[..],
        &["--endpoint", "10.0.0.1:15001@3"],
    ]
    .concat();
    let nat_del = [&["nat", "del"], &egress[..]].concat();
    let verbs: [&[&str]; 8] = [
        &[
            "acl",
            "add",
            "10.0.0.1",
            "--port",
            "8000-8099",
            "--proto",
            "tcp",
            "--action",
            "deny",
            "--id",
            "7",
        ],
        &["acl", "del", "fd00::/8", "--save"],
        &nat_add,
        &nat_del,
        &["cfg", "set", "ipv4", "acl_check_on", "off"],
        &["trace", "add", "--ip", "10.0.0.1"],
        &["trace", "del", "--port", "80"],
        &["reload"],
    ];
    for verb in verbs {
        let output = fsm(&[verb, &["--api", "/nonexistent/api"]].concat());
        assert_eq!(code(&output), 1, "{verb:?}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(
            text.starts_with("error: /nonexistent/api: no daemon answers"),
            "{verb:?}: {text}"
        );
    }
}

#[test]
fn doctor_always_has_an_answer() {
    let output = fsm(&["doctor", "--bpffs", "/sys/fs/bpf/fsm", "-o", "json"]);
    assert!(matches!(code(&output), 0 | 1), "{}", stderr(&output));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        findings.as_array().is_some_and(|list| list.len() >= 6),
        "{findings}"
    );
}

#[test]
fn a_log_whose_folder_is_not_there_is_refused_with_its_place() {
    let text = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n[events]\neve = \"/nowhere/eve.json\"\n";
    let file = Scratch::new("eve.toml", text);
    let output = fsm(&["check", "--config", file.path()]);
    assert_eq!(code(&output), 2);
    let want = format!(
        "{}:5:7: events.eve: there is no folder /nowhere; allowed: a file in a folder that is there, or \"\" for off\n",
        file.path()
    );
    assert_eq!(stderr(&output), want);
}
