//! `doctor`: what will work here, and what to do about the rest.
//!
//! Looks only: nothing is loaded, mounted or set. Facts come from `/proc` and `/sys`; what they mean is
//! decided by functions that take their text, so that tests can be other machines.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::out::Out;
use super::{Failure, Global};
use crate::loader::syn_cookie::Sysctls;
use crate::view::Row;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    /// `ok`; `warn`: works with less; `fail`: does not work.
    result: &'static str,
    found: String,
    /// What to do, where something is to do.
    advice: &'static str,
}

impl Row for Finding {
    const HEAD: &'static [&'static str] = &["WHAT", "RESULT", "FOUND", "ADVICE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.what.into(),
            self.result.into(),
            self.found.clone(),
            self.advice.into(),
        ]
    }
}

pub fn run(global: &Global) -> Result<(), Failure> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mounts = read("/proc/self/mounts");
    let findings = vec![
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        privileges(&read("/proc/self/status")),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        jit(read("/proc/sys/net/core/bpf_jit_enable").trim()),
        bpffs(&mounts, &read("/proc/filesystems"), &global.bpffs()?),
        cgroup2(&mounts),
        forwarding(
            "ipv4 forwarding",
            read("/proc/sys/net/ipv4/ip_forward").trim(),
        ),
        forwarding(
            "ipv6 forwarding",
            read("/proc/sys/net/ipv6/conf/all/forwarding").trim(),
        ),
        rp_filter(read("/proc/sys/net/ipv4/conf/all/rp_filter").trim()),
        syn_cookies(&Sysctls::read()),
        af_xdp(crate::xsk::is_there().err()),
    ];
    let failed = findings.iter().any(|finding| finding.result == "fail");
    Out::new(global.output).rows(findings)?;
    if failed {
        Err(Failure::Said("something that is needed is missing".into()))
    } else {
        Ok(())
    }
}

const fn finding(
    what: &'static str,
    result: &'static str,
    found: String,
    advice: &'static str,
) -> Finding {
    Finding {
        what,
        result,
        found,
        advice,
    }
}

/// The oldest kernel with each feature: memory accounted by cgroup (5.11), TCX links (6.6).
fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (result, advice) = if version >= (6, 6) {
        ("ok", "")
    } else if version >= (5, 11) {
        (
            "warn",
            "TC programs are attached by clsact, since TCX needs 6.6",
        )
    } else {
        (
            "warn",
            "older than 5.11: raise the limit of locked memory (LimitMEMLOCK=infinity)",
        )
    };
    finding("kernel", result, release.to_owned(), advice)
}

/// The capabilities that loading, attaching and mounting take.
fn privileges(status: &str) -> Finding {
    const NEEDED: [(u32, &str); 3] = [(12, "net_admin"), (21, "sys_admin"), (39, "bpf")];
    const SYS_ADMIN: u32 = 21;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    // CAP_SYS_ADMIN includes CAP_BPF.
    let has = |bit: u32| bits & (1 << bit) != 0 || (bit == 39 && bits & (1 << SYS_ADMIN) != 0);
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| !has(*bit))
        .map(|(_, name)| *name)
        .collect();
    match missing.is_empty() {
        true => finding("privileges", "ok", "net_admin, sys_admin, bpf".into(), ""),
        false => finding(
            "privileges",
            "fail",
            format!("without {}", missing.join(", ")),
            "run it as root",
        ),
    }
}

fn btf(exists: bool) -> Finding {
    match exists {
        true => finding("BTF", "ok", "/sys/kernel/btf/vmlinux".into(), ""),
        false => finding(
            "BTF",
            "warn",
            "none".into(),
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

fn jit(enabled: &str) -> Finding {
    match enabled {
        "1" | "2" => finding("BPF JIT", "ok", "on".into(), ""),
        // Without the switch the kernel has no interpreter, so the JIT is always on.
        "" => finding("BPF JIT", "ok", "always on, or not to be seen".into(), ""),
        _ => finding(
            "BPF JIT",
            "warn",
            "off".into(),
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
    }
}

/// Mount points of a file system.
fn mounted<'t>(mounts: &'t str, kind: &str) -> Vec<&'t str> {
    let of_kind = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, point, found) = (words.next()?, words.next()?, words.next()?);
        (found == kind).then_some(point)
    });
    of_kind.collect()
}

fn bpffs(mounts: &str, filesystems: &str, pins: &Path) -> Finding {
    let known = filesystems
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "bpf");
    let around = mounted(mounts, "bpf")
        .into_iter()
        .find(|point| pins.starts_with(point));
    match (around, known) {
        (Some(point), _) => finding("bpffs", "ok", format!("mounted at {point}"), ""),
        (None, true) => {
            let found = format!("none around {}", pins.display());
            finding("bpffs", "ok", found, "nothing: the daemon mounts it")
        }
        (None, false) => finding(
            "bpffs",
            "fail",
            "unknown".into(),
            "use a kernel with CONFIG_BPF_SYSCALL",
        ),
    }
}

fn cgroup2(mounts: &str) -> Finding {
    match mounted(mounts, "cgroup2").first() {
        Some(point) => finding("cgroup v2", "ok", format!("mounted at {point}"), ""),
        None => finding(
            "cgroup v2",
            "warn",
            "not mounted".into(),
            "gateway.original_dst needs it: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn forwarding(what: &'static str, switch: &str) -> Finding {
    match switch {
        "1" => finding(what, "ok", "on".into(), ""),
        _ => finding(
            what,
            "warn",
            "off".into(),
            "apps behind this node need it: sysctl net.*.forwarding",
        ),
    }
}

fn rp_filter(switch: &str) -> Finding {
    let what = "rp_filter";
    match switch {
        "1" => finding(
            what,
            "ok",
            "strict".into(),
            "answers of a load balancer's endpoint that come by another device than its route are dropped: \
             sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        "2" => finding(what, "ok", "loose".into(), ""),
        _ => finding(what, "ok", "off, or by device".into(), ""),
    }
}

/// What `[[protect]]` needs for TCP.
fn syn_cookies(sysctls: &Sysctls) -> Finding {
    let found = format!(
        "tcp_syncookies {}, tcp_timestamps {}",
        sysctls.syncookies, sysctls.timestamps
    );
    match (sysctls.lack(), sysctls.shortcoming()) {
        (Some(lack), _) => finding("SYN cookies", "warn", found, lack),
        (None, Some(less)) => finding("SYN cookies", "ok", found, less),
        (None, None) => finding("SYN cookies", "ok", found, ""),
    }
}

/// What `[dpi]` needs.
fn af_xdp(error: Option<std::io::Error>) -> Finding {
    let lack = match error.as_ref().and_then(std::io::Error::raw_os_error) {
        Some(libc::EAFNOSUPPORT) => "inspection needs a kernel with CONFIG_XDP_SOCKETS",
        Some(libc::EPERM) => "inspection needs CAP_NET_RAW: run as root",
        _ => "",
    };
    match error {
        None => finding("AF_XDP", "ok", "there".into(), ""),
        Some(error) => finding("AF_XDP", "warn", error.to_string(), lack),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_version() {
        let results = ["6.18.44-x", "6.6.0", "6.1.0-13-amd64", "5.4.0", ""]
            .map(|release| kernel(release).result);
        assert_eq!(results, ["ok", "ok", "warn", "warn", "warn"]);
        assert!(kernel("6.1.0").advice.contains("clsact"));
        assert!(kernel("5.4.0").advice.contains("MEMLOCK"));
    }

    #[test]
    fn sys_admin_includes_bpf() {
        let with = |bits: u64| privileges(&format!("Name:\tx\nCapEff:\t{bits:016x}\n"));
        assert_eq!(with(1 << 12 | 1 << 21).result, "ok");
        assert_eq!(with(1 << 21 | 1 << 39).found, "without net_admin");
        assert_eq!(privileges("").result, "fail");
    }

    #[test]
    fn a_bpffs_counts_if_it_is_around_the_pins() {
        let mounts = "bpf /sys/fs/bpf bpf rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(
            bpffs(mounts, "", "/sys/fs/bpf/fsm".as_ref()).found,
            "mounted at /sys/fs/bpf"
        );
        assert_eq!(
            bpffs(mounts, "nodev\tbpf\n", "/run/fsm".as_ref()).result,
            "ok"
        );
        assert_eq!(
            bpffs("", "nodev\tproc\n", "/run/fsm".as_ref()).result,
            "fail"
        );
        assert_eq!(cgroup2(mounts).result, "ok");
        assert_eq!(cgroup2("").result, "warn");
    }
}
