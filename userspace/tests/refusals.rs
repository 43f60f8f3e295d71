//! What the host may lack or have in the way: each is one clear sentence, and nothing is replaced silently.
//!
//! Needs root: each case is made in a network (and, for BTF, mount) namespace of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_fsm-fastpath");

/// A namespace with a dummy uplink `up0`, and a folder for configuration and bpffs.
struct Place {
    name: String,
    dir: PathBuf,
}

impl Place {
    fn new(tag: &str) -> Self {
        let name = format!("fsmr-{}-{tag}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        sh(&format!("ip netns add {name}"));
        let place = Self { name, dir };
        place.sh(
            "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up",
        );
        place.config("[[interface]]\nname = \"up0\"\nrole = \"uplink\"\n");
        place
    }

    fn config(&self, text: &str) {
        let dir = self.dir.display();
        let node =
            format!("[node]\nbpffs = \"{dir}/bpf\"\napi = \"{dir}/api.sock\"\nmetrics = \"\"\n");
        fs::write(self.dir.join("node.toml"), node + text).unwrap();
    }

    fn sh(&self, script: &str) -> Output {
        sh(&format!(
            "nsenter --net=/run/netns/{} sh -ec '{script}'",
            self.name
        ))
    }

    /// Runs the daemon, which is expected to refuse within five seconds.
    fn refused(&self, wrap: &str) -> String {
        // A copy: the build's folder may be closed to other users.
        let (toml, copy) = (self.dir.join("node.toml"), self.dir.join("fsm-fastpath"));
        fs::copy(BINARY, &copy).unwrap();
        let daemon = format!("timeout 5 {} --config {}", copy.display(), toml.display());
        let script = format!("nsenter --net=/run/netns/{} {wrap} {daemon}", self.name);
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "should be refused: {text}");
        let errors: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(errors.len(), 1, "one sentence: {text}");
        errors[0].to_owned()
    }

    fn nothing_attached(&self) {
        let net = String::from_utf8(self.sh("bpftool net").stdout).unwrap();
        assert!(!net.contains("fsm_"), "programs are attached: {net}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let dir = self.dir.display();
        let script = format!("ip netns del {}; umount {dir}/bpf; rm -rf {dir}", self.name);
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

fn sh(script: &str) -> Output {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text} (are you root?)");
    output
}

#[test]
fn without_root_it_says_what_it_needs() {
    let place = Place::new("user");
    sh(&format!("chmod 755 {}", place.dir.display()));
    let error = place.refused("setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all");
    assert!(
        error.contains("root") && error.contains("CAP_BPF"),
        "{error}"
    );
    place.nothing_attached();
}

#[test]
fn without_btf_it_names_the_kernel_option() {
    let place = Place::new("btf");
    fs::write(
        place.dir.join("hide"),
        "#!/bin/sh\nmount -t tmpfs none /sys/kernel/btf && exec \"$@\"\n",
    )
    .unwrap();
    let error = place.refused(&format!(
        "unshare -m sh {}",
        place.dir.join("hide").display()
    ));
    assert!(
        error.contains("/sys/kernel/btf/vmlinux") && error.contains("CONFIG_DEBUG_INFO_BTF"),
        "{error}"
    );
    place.nothing_attached();
}

#[test]
fn a_missing_interface_is_named_with_its_place_in_the_file() {
    let place = Place::new("iface");
    place.config("[[interface]]\nname = \"eth7\"\nrole = \"uplink\"\n");
    let error = place.refused("");
    assert!(
        error.contains("eth7") && error.contains("node.toml:6:"),
        "{error}"
    );
    place.nothing_attached();
}

#[test]
fn a_foreign_pin_under_our_name_is_left_alone() {
    let place = Place::new("pin");
    let bpf = place.dir.join("bpf");
    sh(&format!(
        "mkdir -p {0}; mount -t bpf bpf {0}; mkdir -p {0}/v1; \
         bpftool map create {0}/v1/fsm_xacl type hash key 4 value 4 entries 8 name other",
        bpf.display()
    ));
    let error = place.refused("");
    assert!(
        error.contains("fsm_xacl") && error.contains("another map"),
        "{error}"
    );
    assert!(
        error.contains("key 4 bytes") && error.contains("down"),
        "{error}"
    );
    let there = sh(&format!(
        "bpftool map show pinned {}/v1/fsm_xacl",
        bpf.display()
    ));
    assert!(String::from_utf8_lossy(&there.stdout).contains("other"));
    place.nothing_attached();
}

#[test]
fn another_xdp_program_stays_and_is_named() {
    let place = Place::new("xdp");
    // Any XDP program will do; ours, pinned by hand, is at hand.
    place.sh(&format!(
        "(timeout 20 {BINARY} --config {0}/node.toml >/dev/null 2>{0}/log </dev/null &)",
        place.dir.display()
    ));
    wait_for(&place, "status", "running");
    let toml = place.dir.join("node.toml").display().to_string();
    let id = String::from_utf8(
        place.sh("ip -j link show up0 | grep -o \"\\\"xdp\\\":{[^}]*}\" | grep -o \"\\\"id\\\":[0-9]*\" | cut -d: -f2").stdout,
    )
    .unwrap();
    let id = id.trim().to_owned();
    place.sh(&format!(
        "bpftool prog pin id {id} {dir}/bpf/foreign; {BINARY} --config {toml} down; \
         mkdir -p {dir}/keep; mount -t bpf bpf {dir}/keep 2>/dev/null || true",
        dir = place.dir.display()
    ));
    place.sh(&format!(
        "bpftool net attach xdp pinned {}/bpf/foreign dev up0",
        place.dir.display()
    ));
    let error = place.refused("");
    let _ = Command::new("umount").arg(place.dir.join("keep")).output();
    assert!(
        error.contains("up0") && error.contains(&format!("id {id}")),
        "{error}"
    );
    assert!(error.contains("xdp off"), "{error}");
    let net = String::from_utf8(place.sh("ip link show up0").stdout).unwrap();
    assert!(
        net.contains(&format!("prog/xdp id {id}")),
        "the other program was replaced: {net}"
    );
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() {
    let place = Place::new("two");
    place.sh(&format!(
        "(timeout 10 {BINARY} --config {0}/node.toml >/dev/null 2>{0}/log </dev/null &)",
        place.dir.display()
    ));
    wait_for(&place, "status", "running");
    let error = place.refused("");
    assert!(error.contains("another daemon"), "{error}");
    place.sh(&format!(
        "{BINARY} --config {}/node.toml down",
        place.dir.display()
    ));
    place.nothing_attached();
}

#[test]
fn a_folder_that_is_no_cgroup_v2_is_refused_with_the_place_of_one() {
    let place = Place::new("cgroup");
    place.config(
        "[[interface]]\nname = \"up0\"\nrole = \"uplink\"\n\
         [gateway]\noutbound = [\"10.0.0.1:15001\"]\noriginal_dst = \"/tmp\"\n",
    );
    let error = place.refused("");
    assert!(
        error.contains("original_dst") && error.contains("cgroup v2"),
        "{error}"
    );
    place.nothing_attached();
}

#[test]
fn what_is_not_built_yet_is_refused_with_its_place() {
    let place = Place::new("later");
    place.config("[[interface]]\nname = \"up0\"\nrole = \"uplink\"\n[dpi]\nmode = \"monitor\"\n[dpi.meter]\nsyn_flood_pps = 1\n");
    let error = place.refused("");
    assert!(
        error.contains("not built yet") && error.contains("node.toml:10:"),
        "{error}"
    );
    place.nothing_attached();
}

fn wait_for(place: &Place, verb: &str, word: &str) {
    // Loading takes a second, on a busy machine ten.
    for _ in 0..600 {
        let toml = place.dir.join("node.toml");
        let output = Command::new(BINARY)
            .args(["--config"])
            .arg(&toml)
            .arg(verb)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains(word) && !text.contains("not running") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let log = fs::read_to_string(place.dir.join("log")).unwrap_or_default();
    panic!("the daemon does not come up: {log}");
}
