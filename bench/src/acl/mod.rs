//! A million ACL rules: from a file to the maps, as one change, what they take, and what packets pay for them.

mod rules;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use fsm_common::{
    flags,
    maps::{IfaceEntry, name, role},
    wire::l4::tcp_flag,
};
use fsm_fastpath::{
    config::{self, Config},
    loader::{
        apply::{Kernel, apply},
        objects::{Objects, Sizes, program},
    },
    maps::{Maps, pin_dir},
    model::{Model, plan::InForce},
};
use rules::{Rule, as_list, as_tables, rules};
use serde_json::{Value, json};

use crate::{
    machine::{self, Machine},
    packet::{TCP, frame4, key4},
    sys,
    world::{LOOPBACK, Sandbox},
};

/// Options.
#[derive(clap::Args)]
pub struct Options {
    /// Rules.
    #[arg(long, default_value_t = 1_000_000)]
    rules: usize,
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Raw figures, one JSON object a line [default: bench/results/acl-DATE.json].
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Figures by name, each with its unit in the name.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    /// Milliseconds that `work` takes.
    fn time<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        self.add(name, start.elapsed().as_secs_f64() * 1000.0);
        Ok(result)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

const HEAD: &str = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";

/// Runs; prints a table.
pub fn run(options: &Options) -> Result<()> {
    let out = match &options.out {
        Some(path) => path.clone(),
        None => machine::results("acl")?,
    };
    let mut file = fs::File::create(&out).with_context(|| out.display().to_string())?;
    let sandbox = Sandbox::enter()?;
    let folder = std::env::temp_dir().join(format!("fsm-acl-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let mut figures = Figures::default();
    let result = (0..options.rounds)
        .try_for_each(|round| measure(&sandbox, &folder, round, options.rules, &mut figures));
    fs::remove_dir_all(&folder)?;
    result?;

    let machine = Machine::here()?;
    println!(
        "{}; {} rules, {} rounds\n",
        machine.line(),
        options.rules,
        options.rounds
    );
    println!("| figure | median |\n|---|---:|");
    for (name, values) in &figures.0 {
        println!("| {name} | {:.1} |", median(values));
    }
    writeln!(
        file,
        "{}",
        json!({"machine": machine, "rules": options.rules})
    )?;
    for (name, values) in &figures.0 {
        let line: Value = json!({"figure": name, "median": median(values), "samples": values});
        writeln!(file, "{line}")?;
    }
    eprintln!("raw figures: {}", out.display());
    Ok(())
}

fn measure(
    sandbox: &Sandbox,
    folder: &Path,
    round: usize,
    count: usize,
    figures: &mut Figures,
) -> Result<()> {
    let (list, other) = (rules(count, 0), rules(count, 1));
    let node = folder.join("node.toml");
    fs::write(&node, format!("acl_files = [\"list.txt\"]\n{HEAD}"))?;
    fs::write(folder.join("list.txt"), as_list(&list, "deny"))?;

    let bpffs = sandbox.root.join(format!("acl{round}"));
    let mut objects = Objects::load(
        &pin_dir(&bpffs),
        Sizes {
            flows: 4096,
            half_open: 4096,
        },
    )?;
    let mut maps = Maps::open(&bpffs)?;
    let here = IfaceEntry {
        ifindex: LOOPBACK,
        mtu: 65536,
        mac: [2, 0, 0, 0, 0, 1],
        role: role::UPLINK,
        flags: 0,
    };
    maps.iface.set(LOOPBACK, here, 0)?;
    let mut known: Option<InForce> = None;
    let nothing = config::parse(HEAD, &node)?;
    apply(
        &mut maps,
        &mut known,
        Model::compile(&nothing)?,
        &Kernel::default(),
    )?;
    packets(&mut objects, &maps, &list, "without rules", figures)?;

    let before = memory_kib()?;
    let start = Instant::now();
    let config = figures.time("load: read and check the list, ms", || {
        Ok(config::load(&node)?)
    })?;
    let model = figures.time("load: compile, ms", || Ok(Model::compile(&config)?))?;
    figures.time("load: into the maps, ms", || {
        Ok(apply(&mut maps, &mut known, model, &Kernel::default())?)
    })?;
    figures.add(
        "load: file to in force, ms",
        start.elapsed().as_secs_f64() * 1000.0,
    );
    figures.add("memory: daemon's own peak, MiB", peak_mib()?);
    figures.add(
        "memory: machine, with the daemon's, MiB",
        (before - memory_kib()?) / 1024.0,
    );
    for map in [
        name::FSM_XACL,
        name::FSM_XACL6,
        name::FSM_CIDR4,
        name::FSM_CIDR6,
        name::FSM_CIDR_SET,
    ] {
        let taken = map_mib(&maps, map)?;
        figures.add(&format!("memory: {map}, MiB"), taken);
    }
    packets(&mut objects, &maps, &list, "with rules", figures)?;

    changes(&mut maps, &mut known, &config, figures)?;
    fs::write(folder.join("list.txt"), as_list(&list, "audit"))?;
    reload(
        &mut maps,
        &mut known,
        &node,
        "every rule says another thing",
        figures,
    )?;
    fs::write(folder.join("list.txt"), as_list(&other, "deny"))?;
    reload(
        &mut maps,
        &mut known,
        &node,
        "every rule gone for another",
        figures,
    )?;
    figures.time(
        "a new daemon reads the maps and changes nothing, ms",
        || {
            let model = Model::compile(&config::load(&node)?)?;
            Ok(apply(&mut maps, &mut None, model, &Kernel::default())?)
        },
    )?;
    if round == 0 {
        let text = format!("{HEAD}{}", as_tables(&list, "deny"));
        let config = figures.time("[[acl]] tables: read and check, ms", || {
            Ok(config::parse(&text, &node)?)
        })?;
        ensure!(config.acl_count() == count, "rules are missing");
        figures.add("[[acl]] tables: peak, MiB", peak_mib()?);
    }
    Ok(())
}

/// Changes of one rule and of a thousand, as `acl add` makes them: the configuration copied, changed, compiled, put
/// in force.
fn changes(
    maps: &mut Maps,
    known: &mut Option<InForce>,
    config: &Config,
    figures: &mut Figures,
) -> Result<()> {
    let mut config = config.clone();
    for (label, rules) in [("1 rule", 1u32), ("1000 rules", 1000)] {
        let more = (0..rules).fold(HEAD.to_owned(), |text, i| {
            let [_, b, c, d] = i.to_be_bytes();
            text + &format!("[[acl]]\naddr = \"11.{b}.{c}.{d}\"\naction = \"deny\"\n")
        });
        let more = config::parse(&more, Path::new("more.toml"))?.acl;
        let start = Instant::now();
        config = config.clone();
        config.acl = more;
        let model = Model::compile(&config)?;
        figures.time(&format!("change of {label}: into the maps, ms"), || {
            Ok(apply(maps, known, model, &Kernel::default())?)
        })?;
        figures.add(
            &format!("change of {label}: all, ms"),
            start.elapsed().as_secs_f64() * 1000.0,
        );
    }
    Ok(())
}

fn reload(
    maps: &mut Maps,
    known: &mut Option<InForce>,
    node: &Path,
    label: &str,
    figures: &mut Figures,
) -> Result<()> {
    let start = Instant::now();
    let model = Model::compile(&config::load(node)?)?;
    figures.time(&format!("reload, {label}: into the maps, ms"), || {
        Ok(apply(maps, known, model, &Kernel::default())?)
    })?;
    figures.add(
        &format!("reload, {label}: all, ms"),
        start.elapsed().as_secs_f64() * 1000.0,
    );
    Ok(())
}

/// ns a packet of an established flow, and of what the ACL is asked about: the same peer again and again, and a
/// thousand of them in turn.
fn packets(
    objects: &mut Objects,
    maps: &Maps,
    list: &[Rule],
    label: &str,
    figures: &mut Figures,
) -> Result<()> {
    ensure!(maps.settings()?.ipv4 & flags::ACL_ON != 0, "the ACL is off");
    let frame = |addr| frame4(&key4(TCP, addr, 4444, [10, 1, 0, 2], 80), tcp_flag::ACK);
    let tc = objects.fd(program::TC_INGRESS)?.try_clone()?;
    let xdp = objects.fd(program::XDP)?.try_clone()?;
    let (tc, xdp) = (owned(tc)?, owned(xdp)?);
    let flow = frame([20, 0, 0, 2]);
    sys::test_run(&tc, &flow, 1, None)?;
    for (hook, program) in [("TC", &tc), ("XDP", &xdp)] {
        let samples: Vec<f64> = (0..31)
            .map(|_| Ok(f64::from(sys::test_run(program, &flow, 20_000, None)?.ns)))
            .collect::<Result<_>>()?;
        figures.add(
            &format!("packet, {label}: established flow, {hook}, ns"),
            median(&samples),
        );
    }
    let hosts = list
        .iter()
        .filter_map(|rule| rule.v4.filter(|(_, len)| *len == 32));
    let nets = list
        .iter()
        .filter_map(|rule| rule.v4.filter(|(_, len)| *len < 32));
    let miss = (0..2000u32).map(|i| ([20, 1, (i >> 8) as u8, i as u8], 32));
    let kinds: [(&str, Vec<[u8; 4]>); 3] = [
        (
            "address",
            hosts.step_by(97).take(2000).map(|(addr, _)| addr).collect(),
        ),
        (
            "network",
            nets.step_by(97).take(2000).map(|(addr, _)| addr).collect(),
        ),
        ("no entry", miss.map(|(addr, _)| addr).collect()),
    ];
    for (kind, peers) in kinds {
        if peers.is_empty() {
            continue;
        }
        let hot: Vec<f64> = (0..15)
            .map(|_| {
                Ok(f64::from(
                    sys::test_run(&xdp, &frame(peers[0]), 20_000, None)?.ns,
                ))
            })
            .collect::<Result<_>>()?;
        figures.add(
            &format!("packet, {label}: XDP, {kind}, one peer, ns"),
            median(&hot),
        );
        let cold: Vec<f64> = peers
            .iter()
            .map(|peer| Ok(f64::from(sys::test_run(&xdp, &frame(*peer), 1, None)?.ns)))
            .collect::<Result<_>>()?;
        figures.add(
            &format!("packet, {label}: XDP, {kind}, 2000 peers once each, ns"),
            median(&cold),
        );
    }
    Ok(())
}

fn owned(fd: aya::programs::ProgramFd) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd as _;
    Ok(fd.as_fd().try_clone_to_owned()?)
}

/// MemAvailable.
fn memory_kib() -> Result<f64> {
    field(Path::new("/proc/meminfo"), "MemAvailable:")
}

/// The most that this process has had.
fn peak_mib() -> Result<f64> {
    Ok(field(Path::new("/proc/self/status"), "VmHWM:")? / 1024.0)
}

/// What the kernel says that a map takes.
fn map_mib(maps: &Maps, name: &str) -> Result<f64> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let map = MapData::from_pin(maps.dir.join(name))?;
    let fd = map.fd().as_fd().as_raw_fd();
    let bytes = field(
        &PathBuf::from(format!("/proc/self/fdinfo/{fd}")),
        "memlock:",
    )?;
    Ok(bytes / 1_048_576.0)
}

fn field(file: &Path, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    let word = word.with_context(|| format!("{name} is not in {}", file.display()))?;
    Ok(word.parse()?)
}
