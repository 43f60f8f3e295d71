//! Starting and stopping the programs that run in the lab.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::error::{Error, Result, file};
use super::plan::{Plan, Role};
use super::shell;
use super::state::{Program, State};

const POLL: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A program to start.
pub(super) struct Spec<'a> {
    /// Its name in the lab, and its log's.
    pub name: &'a str,
    /// The host that it runs on.
    pub role: Role,
    /// Whether it belongs to the gateway's cgroup.
    pub in_cgroup: bool,
    /// Program and arguments.
    pub line: Vec<String>,
}

/// Starts a program in its host and notes it in the state.
///
/// `nsenter --net` and not `ip netns exec`: the latter gives the program a mount namespace of its
/// own, in which the BPF file system is hidden. The shell joins the cgroup before the program
/// makes its first socket: a socket stays in the cgroup that it was made in.
pub(super) fn start(plan: &Plan, state: &mut State, spec: &Spec<'_>) -> Result<Program> {
    let log = plan.path(&format!("{}.log", spec.name));
    let out = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(file(&log))?;
    let errors = out.try_clone().map_err(file(&log))?;
    let mut command = shell::command("nsenter");
    command
        .arg(format!("--net={}", plan.netns_path(spec.role).display()))
        .arg("--");
    if spec.in_cgroup {
        let join = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        command.args(["sh", "-c", join]).arg(&state.cgroup);
    }
    command.args(&spec.line);
    // A process group of its own: Ctrl-C in the terminal is not for it.
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors);
    let child = command.spawn().map_err(|source| Error::Start {
        command: spec.line.join(" "),
        source,
    })?;
    let pid = child.id() as i32;
    let program = Program {
        name: spec.name.to_owned(),
        pid,
        started_ticks: started_ticks(pid).unwrap_or(0),
        log,
    };
    state.programs.push(program.clone());
    state.save(plan)?;
    Ok(program)
}

/// Waits until `ready` says so; fails with the log's end when the program ends or time runs out.
pub(super) fn wait_ready(
    program: &Program,
    limit: Duration,
    mut ready: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if !is_running(program) {
            return Err(broken(program, "ended".to_owned()));
        }
        if ready() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(broken(
                program,
                format!("was not ready within {} s", limit.as_secs()),
            ));
        }
        std::thread::sleep(POLL);
    }
}

/// Whether something in the program's network namespace listens on all of these ports.
/// `table` is `tcp` or `udp`.
pub(super) fn listens(program: &Program, table: &str, ports: &[u16]) -> bool {
    ports.iter().all(|port| {
        ["", "6"].iter().any(|family| {
            let path = format!("/proc/{}/net/{table}{family}", program.pid);
            std::fs::read_to_string(path).is_ok_and(|text| has_listener(&text, table, *port))
        })
    })
}

/// Looks for a local port in the text of `/proc/net/tcp` and its like. State 0A is LISTEN for
/// TCP, 07 an unconnected UDP socket.
fn has_listener(text: &str, table: &str, port: u16) -> bool {
    let (suffix, state) = (
        format!(":{port:04X}"),
        if table == "tcp" { "0A" } else { "07" },
    );
    text.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
        local && fields.nth(1) == Some(state)
    })
}

/// Ends one program: SIGTERM, then SIGKILL.
pub(super) fn stop(program: &Program) {
    if is_running(program) {
        end(&[program.pid]);
    }
}

/// Ends one program at once, without giving it a chance to clean up.
pub(super) fn kill(program: &Program) {
    if is_running(program) {
        signal(program.pid, libc::SIGKILL);
        wait_gone(&[program.pid], STOP_LIMIT);
    }
}

/// Ends everything that runs in the lab's hosts, also what no state remembers.
pub(super) fn stop_all(plan: &Plan, hosts: &[Role]) -> Result<()> {
    let own = std::process::id() as i32;
    let mut pids: Vec<i32> = Vec::new();
    for role in hosts {
        let list = shell::run("ip", ["netns", "pids", &plan.netns(*role)])?;
        pids.extend(
            list.split_whitespace()
                .filter_map(|word| word.parse::<i32>().ok()),
        );
    }
    pids.retain(|pid| *pid != own);
    end(&pids);
    Ok(())
}

/// The last lines of a log, for error messages.
pub(super) fn tail(log: &Path) -> String {
    const LINES: usize = 25;
    let text = std::fs::read(log)
        .map(|bytes| shell::text(&bytes))
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// Whether the process is still the one that was started, and not a zombie.
pub(super) fn is_running(program: &Program) -> bool {
    alive(program.pid) && started_ticks(program.pid) == Some(program.started_ticks)
}

fn broken(program: &Program, reason: String) -> Error {
    Error::Program {
        program: program.name.clone(),
        reason,
        log: program.log.clone(),
        tail: tail(&program.log),
    }
}

fn end(pids: &[i32]) {
    for pid in pids {
        signal(*pid, libc::SIGTERM);
    }
    if !wait_gone(pids, STOP_LIMIT) {
        for pid in pids.iter().filter(|pid| alive(**pid)) {
            signal(*pid, libc::SIGKILL);
        }
        wait_gone(pids, STOP_LIMIT);
    }
}

fn wait_gone(pids: &[i32], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        pids.iter().for_each(|pid| reap(*pid));
        if !pids.iter().any(|pid| alive(*pid)) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers; a process that is gone gives an error, which is fine.
    unsafe { libc::kill(pid, signal) };
}

/// Takes the exit status of a child of ours, so that no zombie stays while this process lives.
fn reap(pid: i32) {
    // SAFETY: a null status pointer is allowed; what is not our child gives an error.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Whether a process exists and is more than a zombie.
fn alive(pid: i32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

/// Start time of a process in clock ticks since boot (field 22 of `/proc/PID/stat`).
fn started_ticks(pid: i32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// A field of `/proc/PID/stat`, counted from the state, which follows the name in parentheses.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(path).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split_whitespace().nth(index).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let text = "  sl  local_address rem_address   st\n\
                    0: 16E2A8C0:3A99 00000000:0000 0A 0:0\n\
                    1: 16E2A8C0:3A9B 0A000014:9999 01 0:0\n";
        assert!(has_listener(text, "tcp", 15001));
        assert!(!has_listener(text, "tcp", 15003));
    }

    #[test]
    fn this_process_is_alive_and_has_a_start_time() {
        let pid = std::process::id() as i32;
        assert!(alive(pid) && started_ticks(pid).is_some());
    }
}
