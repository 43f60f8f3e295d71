//! `lab up` and `lab down`: what is made, in which order, and how every trace of it goes.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result, file};
use super::handle::{Lab, WIRE_STATS};
use super::plan::{Family, Plan, Role, at, port};
use super::programs::{self, Spec};
use super::state::{self, State};
use super::wire::Wire;
use super::{Opts, cgroup, shell, texts, topology};

/// Programs that every lab needs.
const TOOLS: [&str; 13] = [
    "ip",
    "ethtool",
    "sysctl",
    "nsenter",
    "timeout",
    "sh",
    "umount",
    "curl",
    "dig",
    "sha256sum",
    "haproxy",
    "nginx",
    "dnsmasq",
];

/// Builds a lab and starts everything in it. What was begun is removed again when it fails.
pub(super) fn up(opts: &Opts) -> Result<(Plan, State)> {
    let plan = Plan::new(&opts.name)?;
    check_host(&plan)?;
    build(opts, &plan).inspect_err(|_| {
        if let Err(error) = down(&plan) {
            tracing::error!("lab {}: {error}", plan.name);
        }
    })
}

/// Removes whatever of a lab exists: programs, BPF file system, namespaces, cgroup, files.
/// Each step is tried even if one before it failed; the first failure is reported.
pub(super) fn down(plan: &Plan) -> Result<()> {
    require_root()?;
    let hosts = topology::existing(plan);
    let ours = state::is_lab(plan);
    if hosts.is_empty() && !ours {
        return Ok(());
    }
    let mut result = programs::stop_all(plan, &hosts);
    result = result.and(unmount(&plan.dir()));
    result = result.and(topology::remove(plan));
    if let Ok(true) = cgroup::path(plan).map(|path| path.exists()) {
        result = result.and(cgroup::remove(plan));
    }
    // Only a folder that says it is a lab's: the name was chosen by a person.
    if ours && result.is_ok() {
        result = fs::remove_dir_all(plan.dir()).map_err(file(plan.dir()));
    }
    result
}

fn require_root() -> Result<()> {
    // SAFETY: takes no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// Refuses before anything has been changed.
fn check_host(plan: &Plan) -> Result<()> {
    require_root()?;
    let missing = shell::missing(&TOOLS);
    if !missing.is_empty() {
        return Err(Error::MissingTools(missing.join(", ")));
    }
    let netns = Role::ALL.map(|role| plan.netns_path(role));
    let mut all = netns.into_iter().chain([plan.dir(), cgroup::path(plan)?]);
    match all.find(|path| path.exists()) {
        Some(path) => Err(Error::Exists {
            name: plan.name.clone(),
            what: path.display().to_string(),
        }),
        None => Ok(()),
    }
}

fn build(opts: &Opts, plan: &Plan) -> Result<(Plan, State)> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(plan.dir())
        .map_err(file(plan.dir()))?;
    let cgroup = cgroup::path(plan)?;
    let state = State {
        name: plan.name.clone(),
        binary: opts.binary()?,
        cgroup: cgroup.clone(),
        programs: Vec::new(),
    };
    state.save(plan)?;
    cgroup::create(plan)?;
    topology::build(plan, opts.wire.is_some())?;
    write(
        &plan.config(),
        &texts::node_toml(plan, &cgroup, &opts.extra_config),
    )?;
    let mut lab = Lab::under_construction(plan.clone(), state);
    if let Some(wire) = opts.wire {
        start_wire(&mut lab, wire)?;
    }
    start_servers(&mut lab)?;
    start_gateway(&mut lab)?;
    lab.start_daemon()?;
    Ok(lab.into_parts())
}

/// The bad wire; up once it counts.
fn start_wire(lab: &mut Lab, wire: Wire) -> Result<()> {
    let stats = lab.plan().path(WIRE_STATS);
    let mut line = helper(lab, "wire");
    line.extend([wire.to_string()]);
    line.extend(topology::BAD_WIRE.map(str::to_owned));
    line.extend(["--stats".to_owned(), text(&stats)]);
    let spec = Spec {
        name: "wire",
        role: Role::Wire,
        in_cgroup: false,
        line,
    };
    lab.start_when(&spec, || stats.exists())
}

/// Web servers outside and in the apps, UDP echo outside.
fn start_servers(lab: &mut Lab) -> Result<()> {
    let www = lab.plan().path("www");
    fs::create_dir(&www).map_err(file(&www))?;
    let app_ports = [port::APP_WEB, port::APP_TRUSTED, port::APP_EXCLUDED];
    start_nginx(
        lab,
        Role::Outside,
        &www,
        &[port::OUTSIDE_WEB, port::OUTSIDE_EXCLUDED],
    )?;
    start_nginx(lab, Role::App1, &www, &app_ports)?;
    start_nginx(lab, Role::App2, &www, &app_ports)?;
    let mut line = helper(lab, "echo");
    for family in Family::ALL {
        line.push(at(family.addresses().outside, port::ECHO).to_string());
    }
    let spec = Spec {
        name: "echo",
        role: Role::Outside,
        in_cgroup: false,
        line,
    };
    lab.start(&spec, &[], &[port::ECHO])
}

fn start_nginx(lab: &mut Lab, role: Role, www: &Path, ports: &[u16]) -> Result<()> {
    let name = format!("nginx-{role}");
    let dir = lab.plan().path(&name);
    fs::create_dir(&dir).map_err(file(&dir))?;
    let conf = dir.join("nginx.conf");
    write(&conf, &texts::nginx_conf(&dir, www, ports))?;
    let log = dir.join("error.log");
    let line = [
        "nginx",
        "-p",
        &text(&dir),
        "-c",
        &text(&conf),
        "-e",
        &text(&log),
    ];
    let line = line.map(str::to_owned).to_vec();
    lab.start(
        &Spec {
            name: &name,
            role,
            in_cgroup: false,
            line,
        },
        ports,
        &[],
    )
}

/// HAProxy for IPv4, the test proxy for IPv6 and UDP, dnsmasq for names: all on the node, all in
/// the cgroup that original destinations are answered for.
fn start_gateway(lab: &mut Lab) -> Result<()> {
    let cfg = lab.plan().path("haproxy.cfg");
    write(&cfg, &texts::haproxy_cfg())?;
    let tcp = [port::GATEWAY_OUTBOUND, port::GATEWAY_INBOUND];
    let line = vec![
        "haproxy".to_owned(),
        "-db".to_owned(),
        "-f".to_owned(),
        text(&cfg),
    ];
    lab.start(&on_node("haproxy", line), &tcp, &[])?;

    let mut line = helper(lab, "proxy");
    line.extend(["--node-config".to_owned(), text(&lab.plan().config())]);
    let gateway = Family::V6.addresses().gateway;
    for (name, port) in [
        ("outbound", port::GATEWAY_OUTBOUND),
        ("inbound", port::GATEWAY_INBOUND),
    ] {
        line.push(format!("{name}=tcp:{}", at(gateway, port)));
    }
    for family in Family::ALL {
        line.push(format!(
            "udp=udp:{}",
            at(family.addresses().gateway, port::GATEWAY_UDP)
        ));
    }
    lab.start(&on_node("proxy", line), &tcp, &[port::GATEWAY_UDP])?;

    let dns = [port::GATEWAY_DNS];
    lab.start(&on_node("dnsmasq", dnsmasq_line()), &dns, &dns)
}

/// dnsmasq with one name and no upstream.
fn dnsmasq_line() -> Vec<String> {
    let mut line: Vec<String> = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--log-queries",
        "--log-facility=-",
    ]
    .map(str::to_owned)
    .to_vec();
    line.push(format!("--port={}", port::GATEWAY_DNS));
    for family in Family::ALL {
        let who = family.addresses();
        line.push(format!("--listen-address={}", who.gateway));
        line.push(format!("--address=/lab.test/{}", who.outside));
    }
    line
}

fn on_node(name: &str, line: Vec<String>) -> Spec<'_> {
    Spec {
        name,
        role: Role::Node,
        in_cgroup: true,
        line,
    }
}

/// Command line of one of the binary's own helpers.
fn helper(lab: &Lab, verb: &str) -> Vec<String> {
    vec![text(&lab.state().binary), "lab".to_owned(), verb.to_owned()]
}

/// Unmounts what is mounted inside the lab's folder: the daemon mounts a BPF file system there.
fn unmount(dir: &Path) -> Result<()> {
    let mounts = "/proc/self/mountinfo";
    let text = fs::read_to_string(mounts).map_err(file(mounts))?;
    let points = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4));
    let inside: Vec<PathBuf> = points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect();
    // Later mounts may sit on top of earlier ones.
    for point in inside.iter().rev() {
        shell::run("umount", [point])?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).map_err(file(path))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
