//! Hosts for runs beside nft: network namespaces of this process's own, with processes in them. All of it goes
//! when it is dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::kernel;

/// Namespaces `PREFIX-HOST`, and a folder.
pub struct Hosts {
    prefix: String,
    names: Vec<&'static str>,
    /// For files of this set of hosts; the daemon's bpffs is `bpf` in it.
    pub dir: PathBuf,
    children: Vec<Child>,
}

impl Hosts {
    /// Makes these hosts; `label` tells them from others of this process.
    pub fn new(label: &str, names: &[&'static str]) -> Result<Self> {
        let prefix = format!("fsmc-{}-{label}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let hosts = Self {
            prefix,
            names: names.to_vec(),
            dir,
            children: Vec::new(),
        };
        for name in names {
            let netns = hosts.netns(name);
            sh(&format!(
                "ip netns add {netns}; ip -n {netns} link set lo up"
            ))?;
        }
        Ok(hosts)
    }

    /// Name of a host's namespace.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Sets kernel parameters of a host.
    pub fn sysctl(&self, host: &str, settings: &str) -> Result<()> {
        let netns = self.netns(host);
        sh(&format!(
            "nsenter --net=/run/netns/{netns} sysctl -qw {settings}"
        ))
    }

    /// Loads nft rules on a host.
    pub fn nft(&self, host: &str, rules: &str) -> Result<()> {
        let file = self.dir.join("rules.nft");
        fs::write(&file, rules)?;
        sh(&format!(
            "nsenter --net=/run/netns/{} nft -f {}",
            self.netns(host),
            file.display()
        ))
    }

    /// A program on a host, not started yet.
    pub fn command(&self, host: &str, program: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns(host)))
            .args(program)
            .stdin(Stdio::null());
        command
    }

    /// Starts a program that runs until the hosts go.
    pub fn spawn(&mut self, host: &str, program: &[&str]) -> Result<()> {
        let log = fs::File::create(self.dir.join("log"))?;
        let child = self
            .command(host, program)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.children
            .push(child.with_context(|| program[0].to_owned())?);
        Ok(())
    }

    /// Starts a program of this benchmark's own (`load`) that prints one JSON value.
    pub fn start_load(&self, host: &str, args: &[&str]) -> Result<Running> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        let program: Vec<&str> = [&*own, "load"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.start(host, &program)
    }

    /// Starts a program that prints one JSON value.
    pub fn start(&self, host: &str, program: &[&str]) -> Result<Running> {
        let child = self
            .command(host, program)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program[0].to_owned())?;
        Ok(Running {
            child: Some(child),
            what: program.join(" "),
        })
    }

    /// CPU time so far of what runs until the hosts go.
    pub fn cpu_time(&self) -> Result<Duration> {
        let processes = self.children.iter().map(Child::id);
        processes.map(kernel::cpu_time).sum()
    }

    /// Runs such a program.
    pub fn load(&self, host: &str, args: &[&str]) -> Result<Value> {
        self.start_load(host, args)?.end()
    }

    /// Runs a program that prints JSON.
    pub fn json(&self, host: &str, program: &[&str]) -> Result<Value> {
        let output = self
            .command(host, program)
            .output()
            .with_context(|| program[0].to_owned())?;
        if !output.status.success() {
            bail!("{program:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Starts our daemon, and waits until the data path is there. `config` goes behind `[node]`.
    pub fn daemon(&mut self, host: &str, daemon: &Path, config: &str) -> Result<()> {
        let file = self.config(config)?;
        self.spawn(
            host,
            &[
                &daemon.to_string_lossy(),
                "--config",
                &file.to_string_lossy(),
            ],
        )?;
        let start = Instant::now();
        while !self.dir.join("api.sock").exists() {
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "the daemon does not start: {}",
                fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
            sleep(Duration::from_millis(50));
        }
        // The socket is there before the programs are attached.
        loop {
            let args = [
                &daemon.to_string_lossy(),
                "--config",
                &file.to_string_lossy(),
                "-o",
                "json",
                "status",
            ];
            if self.json(host, &args).is_ok() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "the daemon does not answer"
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// Whether our daemon takes this configuration.
    pub fn accepts(&self, host: &str, daemon: &Path, config: &str) -> Result<bool> {
        let file = self.config(config)?;
        let args = [
            &*daemon.to_string_lossy(),
            "--config",
            &file.to_string_lossy(),
            "check",
        ];
        Ok(self.command(host, &args).output()?.status.success())
    }

    fn config(&self, config: &str) -> Result<PathBuf> {
        let dir = self.dir.display();
        let text = format!(
            "[node]\nbpffs = \"{dir}/bpf\"\napi = \"{dir}/api.sock\"\nmetrics = \"\"\nlog = \"warn\"\n{config}"
        );
        let file = self.dir.join("node.toml");
        fs::write(&file, text)?;
        Ok(file)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut script = String::new();
        for name in &self.names {
            script += &format!("ip netns del {}; ", self.netns(name));
        }
        let dir = self.dir.display();
        script += &format!("umount {dir}/bpf; rm -rf {dir}");
        let _ = Command::new("sh")
            .args(["-c", &script])
            .stderr(Stdio::null())
            .status();
    }
}

/// A program that will print JSON; killed when dropped.
pub struct Running {
    child: Option<Child>,
    what: String,
}

impl Running {
    /// Waits for its end, and reads what it has printed.
    pub fn end(mut self) -> Result<Value> {
        let Some(child) = self.child.take() else {
            bail!("{}: has ended", self.what);
        };
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}: {}", self.what, String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).with_context(|| self.what.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The daemon's binary, which must be beside this one.
pub fn daemon() -> Result<PathBuf> {
    let daemon = std::env::current_exe()?.with_file_name("fsm-fastpath");
    ensure!(
        daemon.exists(),
        "{} is missing: build it with `cargo build --release`, or run bench/compare",
        daemon.display()
    );
    Ok(daemon)
}

/// Runs a shell script; the first command that fails ends it.
pub fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
