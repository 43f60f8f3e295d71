//! Arguments of `fsm-fastpath lab` and what they start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::error::{Error, Result};
use super::proxy::{self, Listener, Origin};
use super::traffic;
use super::wire::{self, Wire};
use super::{DEFAULT_NAME, Opts, handle, shell};

/// Arguments of `lab`.
#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Sub-verbs of `lab`.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Build the lab and leave it up
    Up {
        /// Which lab.
        #[command(flatten)]
        target: Target,
        /// What the wire does to frames, as delay=5ms,loss=2%,reorder=5%,duplicate=2%,seed=1
        #[arg(long)]
        wire: Option<Wire>,
    },
    /// Send real traffic through the lab and check which way it goes; without a lab that is up,
    /// build one for it and remove it afterwards
    Run {
        /// Which lab.
        #[command(flatten)]
        target: Target,
        /// Leave out the big transfers and the many connections
        #[arg(long)]
        quick: bool,
        /// What the wire of a lab that is made for it does to frames, as `lab up` has it
        #[arg(long)]
        wire: Option<Wire>,
    },
    /// Remove the lab, also a half-built one
    Down(Target),
    /// The test gateway; runs inside a lab
    #[command(hide = true)]
    Proxy {
        /// NAME=tcp:ADDR:PORT or NAME=udp:ADDR:PORT
        #[arg(required = true)]
        listeners: Vec<Listener>,
        /// The node's configuration, to ask its daemon for original destinations of UDP
        #[arg(long)]
        node_config: PathBuf,
    },
    /// A bad wire between two devices; runs inside a lab
    #[command(hide = true)]
    Wire {
        /// What it does to frames
        wire: Wire,
        /// One end
        left: String,
        /// The other end
        right: String,
        /// File for its counters
        #[arg(long)]
        stats: Option<PathBuf>,
    },
    /// UDP echo server; runs inside a lab
    #[command(hide = true)]
    Echo {
        /// Addresses to listen on
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Paced stream of datagrams to an echo server; runs inside a lab
    #[command(hide = true)]
    Stream {
        /// The echo server
        to: SocketAddr,
        /// Datagrams to send
        #[arg(long, default_value_t = 5)]
        count: u64,
        /// Time between two of them
        #[arg(long, default_value_t = 20)]
        pace_ms: u64,
    },
    /// Many HTTP connections that share source ports; runs inside a lab
    #[command(hide = true)]
    Load {
        /// Servers; each source port connects to all of them
        #[arg(required = true)]
        to: Vec<SocketAddr>,
        /// How many source ports
        #[arg(long, default_value_t = 100)]
        groups: u16,
        /// The first source port
        #[arg(long, default_value_t = 20_000)]
        first_port: u16,
    },
}

/// Which lab.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The lab's name, prefix of its namespaces
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
}

/// Does what `lab` was asked for and prints its outcome to stdout; `false` if a check failed.
/// May be called from inside or outside of an async runtime: helpers bring their own.
pub fn main(args: LabArgs, json: bool) -> Result<bool> {
    let opts = |target: Target, quick, wire| Opts {
        name: target.name,
        quick,
        wire,
        ..Opts::default()
    };
    match args.verb {
        Verb::Up { target, wire } => {
            let opts = opts(target, false, wire);
            super::up(&opts)?;
            println!("{}", up_text(&opts.name));
            Ok(true)
        }
        Verb::Run {
            target,
            quick,
            wire,
        } => {
            let report = super::run(&opts(target, quick, wire))?;
            println!(
                "{}",
                if json {
                    to_json(&report)
                } else {
                    report.to_string()
                }
            );
            Ok(report.passed)
        }
        Verb::Down(target) => super::down(&opts(target, false, None)).map(|()| true),
        Verb::Proxy {
            listeners,
            node_config,
        } => {
            let origin = ask_daemon(node_config);
            in_runtime(proxy::run(listeners, Box::new(std::io::stdout()), origin))?;
            Ok(true)
        }
        Verb::Wire {
            wire,
            left,
            right,
            stats,
        } => wire::run(wire, [&left, &right], stats.as_deref()).map(|()| true),
        Verb::Echo { listen } => in_runtime(traffic::udp::echo(listen)).map(|()| true),
        Verb::Stream { to, count, pace_ms } => {
            let pace = Duration::from_millis(pace_ms.max(1));
            let report = in_runtime(traffic::udp::stream(to, count, pace))?;
            println!("{}", to_json(&report));
            Ok(true)
        }
        Verb::Load {
            to,
            groups,
            first_port,
        } => {
            let load = async move { Ok(traffic::load::run(to, groups, first_port).await) };
            println!("{}", to_json(&in_runtime(load)?));
            Ok(true)
        }
    }
}

/// Runs a helper on a thread and a runtime of its own: a runtime cannot be started inside one.
fn in_runtime<T: Send + 'static>(
    task: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let run = move || {
        let runtime = tokio::runtime::Runtime::new().map_err(super::error::socket("runtime"))?;
        runtime.block_on(task)
    };
    std::thread::spawn(run)
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Original destinations by `fsm-fastpath opt get PEER`, for UDP, where no socket option tells.
fn ask_daemon(config: PathBuf) -> Origin {
    Arc::new(move |_listener, peer, proto| {
        let answer = opt_get(&config, peer).map_err(std::io::Error::other)?;
        find_origin(&answer, proto)
            .ok_or_else(|| std::io::Error::other(format!("opt get {peer} says {answer}")))
    })
}

fn opt_get(config: &Path, peer: SocketAddr) -> Result<Value> {
    // The path that the lab started us by: /proc/self/exe is no path once the file is replaced.
    let binary = std::env::args_os().next().unwrap_or_default();
    let mut command: Command = shell::command(binary);
    command
        .args(["opt", "get", &peer.to_string(), "-o", "json", "--config"])
        .arg(config);
    handle::read_json("opt get", &shell::checked(&mut command)?)
}

/// The original destination in an answer of `opt get`: one object or a list of them, with the
/// original tuple's `dst` and `dport`, at the top or under `original`. Of several the one of
/// the right protocol counts.
fn find_origin(answer: &Value, proto: u8) -> Option<SocketAddr> {
    let all = match answer {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let name = if proto == 17 { "udp" } else { "tcp" };
    let fits = |entry: &&Value| entry.get("proto").is_none_or(|p| p == name || p == proto);
    all.iter().filter(fits).find_map(|entry| {
        let tuple = entry.get("original").unwrap_or(entry);
        let port = u16::try_from(tuple.get("dport")?.as_u64()?).ok()?;
        Some(SocketAddr::new(
            tuple.get("dst")?.as_str()?.parse().ok()?,
            port,
        ))
    })
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error: serde_json::Error| {
        // Reports hold nothing that JSON cannot say; if one ever does, say so in JSON.
        format!("{{\"error\":\"{error}\"}}")
    })
}

fn up_text(name: &str) -> String {
    format!(
        "lab {name} is up: client and outside 20.0.0.0/24, node 20.0.0.1, app1 10.1.0.2, \
         app2 10.2.0.2\n\
         try:    nsenter --net=/run/netns/{name}-app1 curl http://20.0.0.2:8080/who\n\
         state:  /run/{name} (node.toml, daemon.log, haproxy.log, proxy.log)\n\
         check:  fsm-fastpath lab run --name {name}\n\
         remove: fsm-fastpath lab down --name {name}"
    )
}

impl Error {
    /// Whether the caller asked for something impossible, as opposed to something failing.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::BadName(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_found_in_the_right_protocol() {
        let answer = serde_json::json!([
            {"proto": "tcp", "dst": "20.0.0.2", "dport": 80},
            {"proto": "udp", "original": {"dst": "fd20::2", "dport": 7777}},
        ]);
        assert_eq!(
            find_origin(&answer, 17),
            Some("[fd20::2]:7777".parse().unwrap())
        );
        assert_eq!(
            find_origin(&answer, 6),
            Some("20.0.0.2:80".parse().unwrap())
        );
        assert_eq!(find_origin(&serde_json::json!(null), 17), None);
    }
}
