//! A lab that is up, as checks and integration tests use it: its hosts, its daemon, what its
//! gateway saw.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::{Error, Result, file};
use super::plan::{Plan, Role};
use super::programs::{self, Spec};
use super::proxy::Seen;
use super::shell;
use super::state::{Program, State};
use super::wire::{self, Stats};
use super::{Opts, setup};

/// Name of the daemon among the lab's programs.
pub(super) const DAEMON: &str = "daemon";
/// Programs whose logs say what the gateway saw.
pub(super) const GATEWAYS: [&str; 2] = ["haproxy", "proxy"];
/// Counters of the bad wire, in the lab's folder.
pub(super) const WIRE_STATS: &str = "wire.json";
const DAEMON_READY: Duration = Duration::from_secs(30);

/// A lab that is up.
pub struct Lab {
    plan: Plan,
    state: State,
    remove_on_drop: bool,
}

/// One host of a lab.
#[derive(Debug, Clone)]
pub struct Host {
    netns: String,
}

impl Lab {
    /// Builds a lab that is removed when the value is dropped.
    pub fn up(opts: &Opts) -> Result<Lab> {
        let (plan, state) = setup::up(opts)?;
        Ok(Lab {
            plan,
            state,
            remove_on_drop: true,
        })
    }

    /// A lab that is up already; it is left alone in the end.
    pub fn open(name: &str) -> Result<Lab> {
        let plan = Plan::new(name)?;
        let state = State::load(&plan)?.ok_or_else(|| Error::NotUp(name.to_owned()))?;
        Ok(Lab {
            plan,
            state,
            remove_on_drop: false,
        })
    }

    /// Leaves the lab up when the value is dropped.
    pub fn keep(mut self) -> Lab {
        self.remove_on_drop = false;
        self
    }

    /// Names and paths of the lab.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What runs in the lab.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Any host by its role.
    pub fn host(&self, role: Role) -> Host {
        Host {
            netns: format!("--net={}", self.plan.netns_path(role).display()),
        }
    }

    /// The client outside.
    pub fn client(&self) -> Host {
        self.host(Role::Client)
    }

    /// The server outside.
    pub fn outside(&self) -> Host {
        self.host(Role::Outside)
    }

    /// The node.
    pub fn node(&self) -> Host {
        self.host(Role::Node)
    }

    /// The first app.
    pub fn app1(&self) -> Host {
        self.host(Role::App1)
    }

    /// The second app.
    pub fn app2(&self) -> Host {
        self.host(Role::App2)
    }

    /// Runs `fsm-fastpath ARGS --config … -o json` and gives its answer; one object a line
    /// becomes an array.
    pub fn fsm(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.fsm_command(args);
        command.args(["-o", "json"]);
        let text = shell::checked(&mut command)?;
        read_json(&format!("fsm-fastpath {}", args.join(" ")), &text)
    }

    /// Prepares `fsm-fastpath ARGS --config …` for this lab's node.
    pub fn fsm_command(&self, args: &[&str]) -> Command {
        let mut command = shell::command("timeout");
        command
            .args(["-k", "1", "20"])
            .arg(&self.state.binary)
            .args(args);
        command.arg("--config").arg(self.plan.config());
        command
    }

    /// Everything that the gateway has seen, in each program's order.
    pub fn gateway_log(&self) -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        for program in GATEWAYS {
            let path = self.plan.path(&format!("{program}.log"));
            if let Ok(bytes) = std::fs::read(&path) {
                let text = shell::text(&bytes);
                // The programs' own messages are in the same file.
                all.extend(
                    text.lines()
                        .filter_map(|line| serde_json::from_str(line).ok()),
                );
            }
        }
        Ok(all)
    }

    /// What the gateway saw of this client address and port; waits up to `patience`, since
    /// a log line may come later than the answer.
    pub fn gateway_saw(&self, client: SocketAddr, patience: Duration) -> Result<Option<Seen>> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self
                .gateway_log()?
                .into_iter()
                .rfind(|seen: &Seen| seen.client == client);
            if found.is_some() || Instant::now() > deadline {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Access log of a host's nginx: one JSON object a request.
    pub fn access_log(&self, role: Role) -> Result<String> {
        let path = self.plan.path(&format!("nginx-{role}")).join("access.log");
        std::fs::read_to_string(&path).map_err(file(path))
    }

    /// What the bad wire has done so far, up to some tenths of a second ago; `forth` is from the node.
    pub fn wire_stats(&self) -> Result<Stats> {
        wire::read_stats(&self.plan.path(WIRE_STATS))
    }

    /// The daemon, if it was started and still runs.
    pub fn daemon(&self) -> Option<&Program> {
        self.state
            .program(DAEMON)
            .filter(|program| programs::is_running(program))
    }

    /// Ends the daemon by SIGKILL and waits until it is gone.
    pub fn kill_daemon(&self) {
        if let Some(daemon) = self.state.program(DAEMON) {
            programs::kill(daemon);
        }
    }

    /// Ends the daemon by SIGTERM and waits until it is gone.
    pub fn stop_daemon(&self) {
        if let Some(daemon) = self.state.program(DAEMON) {
            programs::stop(daemon);
        }
    }

    /// Starts the daemon on the node and waits until it answers. `status` also works from the pins
    /// alone, so it must name this very process.
    pub fn start_daemon(&mut self) -> Result<()> {
        let line = vec![
            self.state.binary.display().to_string(),
            "--config".to_owned(),
            self.plan.config().display().to_string(),
        ];
        let spec = Spec {
            name: DAEMON,
            role: Role::Node,
            in_cgroup: false,
            line,
        };
        let daemon = programs::start(&self.plan, &mut self.state, &spec)?;
        programs::wait_ready(&daemon, DAEMON_READY, || {
            self.fsm(&["status"])
                .is_ok_and(|status| status["pid"] == daemon.pid)
        })
    }

    /// A lab whose programs are still being started.
    pub(super) fn under_construction(plan: Plan, state: State) -> Lab {
        Lab {
            plan,
            state,
            remove_on_drop: false,
        }
    }

    /// Starts a program and waits until it listens on its TCP and UDP ports.
    pub(super) fn start(&mut self, spec: &Spec<'_>, tcp: &[u16], udp: &[u16]) -> Result<()> {
        let program = programs::start(&self.plan, &mut self.state, spec)?;
        programs::wait_ready(&program, Duration::from_secs(10), || {
            programs::listens(&program, "tcp", tcp) && programs::listens(&program, "udp", udp)
        })
    }

    /// Starts a program and waits until `ready` says so.
    pub(super) fn start_when(
        &mut self,
        spec: &Spec<'_>,
        ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let program = programs::start(&self.plan, &mut self.state, spec)?;
        programs::wait_ready(&program, Duration::from_secs(10), ready)
    }

    /// Takes the lab apart into what `setup` remembers.
    pub(super) fn into_parts(self) -> (Plan, State) {
        let kept = self.keep();
        (kept.plan.clone(), kept.state.clone())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        if let Err(error) = setup::down(&self.plan) {
            tracing::error!("lab {}: {error}", self.plan.name);
        }
    }
}

impl Host {
    /// Prepares a command on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = shell::command("nsenter");
        command.arg(&self.netns).arg("--").arg(program);
        command
    }

    /// Runs a command on this host, for two minutes at most, and gives its output.
    pub fn cmd<I, S>(&self, program: &str, args: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command("timeout");
        command.args(["-k", "1", "120", program]).args(args);
        shell::checked(&mut command)
    }
}

/// One JSON value, or several one after the other as an array.
pub(super) fn read_json(what: &str, text: &str) -> Result<Value> {
    let values: std::result::Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text)
        .into_iter()
        .collect();
    let mut values = values.map_err(|source| Error::Json {
        what: what.to_owned(),
        text: text.chars().take(200).collect(),
        source,
    })?;
    match values.len() {
        1 => Ok(values.remove(0)),
        _ => Ok(Value::Array(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_comes_whole_or_in_lines() {
        assert_eq!(read_json("x", "[1,2]").unwrap(), serde_json::json!([1, 2]));
        assert_eq!(
            read_json("x", "{\"a\":1}\n{\"a\":2}\n")
                .unwrap()
                .as_array()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(read_json("x", "").unwrap(), serde_json::json!([]));
        assert!(read_json("x", "error: no").is_err());
    }
}
