//! Where the command line meets the daemon, the loader and the lab.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::{
    config::{Config, LogFormat},
    control,
    lab::cli as lab_cli,
    loader::down,
};

pub use lab_cli::LabArgs;

/// Runs the daemon until it is told to end.
pub fn run_daemon(config: Config, path: PathBuf) -> anyhow::Result<()> {
    start_log(&config);
    control::run(config, path)
}

/// Logs go to stderr; RUST_LOG says more than the configuration.
fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(config.node.log.as_str()));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.node.format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .with_target(false)
                .init();
        }
    }
}

/// Removes programs, maps and pins without the daemon's help; says what was removed.
pub fn take_down(bpffs: &Path) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, mut netlink, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(down::down(bpffs, &mut netlink).await?)
    })
}

/// Builds, runs or removes the lab.
pub fn lab(args: LabArgs, json: bool) -> Result<(), Failure> {
    match lab_cli::main(args, json) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Said(String::new())),
        Err(error) if error.is_usage() => Err(Failure::Usage(error.to_string())),
        Err(error) => Err(Failure::Said(error.to_string())),
    }
}
