//! `fsm-fastpath lab`: a node with apps, a gateway, a client and servers outside, made of network
//! namespaces; real programs, real traffic, and checks of which way it went.
//!
//! Reading order: [`plan`] (who is who), `topology` (cables), `texts` (configuration files),
//! `setup` (up and down), [`handle`] (a lab in use), [`checks`] (what `run` tries), [`report`].
//! [`proxy`], [`traffic`] and [`wire`] run inside the lab as hidden sub-verbs. See `docs/lab.md`.

pub mod blob;
mod cgroup;
pub mod checks;
pub mod cli;
pub mod error;
pub mod handle;
pub mod plan;
mod programs;
pub mod proxy;
pub mod report;
mod setup;
mod shell;
pub mod state;
mod texts;
mod topology;
pub mod traffic;
pub mod wire;

use std::path::PathBuf;

pub use error::{Error, Result};
pub use handle::{Host, Lab};
pub use plan::{Family, Plan, Role};
pub use report::Report;
pub use wire::Wire;

/// Name of a lab when none is given.
pub const DEFAULT_NAME: &str = "fsm-lab";

/// How to build and use a lab.
#[derive(Debug, Clone)]
pub struct Opts {
    /// Prefix of everything that the lab makes.
    pub name: String,
    /// The fsm-fastpath under test; this very program if not given.
    pub binary: Option<PathBuf>,
    /// Leave out the checks that take long: big transfers, many connections.
    pub quick: bool,
    /// Appended to the node's configuration.
    pub extra_config: String,
    /// A bad wire between the node and everybody outside; without it the wire is perfect.
    pub wire: Option<Wire>,
}

impl Default for Opts {
    fn default() -> Opts {
        Opts {
            name: DEFAULT_NAME.to_owned(),
            binary: None,
            quick: false,
            extra_config: String::new(),
            wire: None,
        }
    }
}

impl Opts {
    fn binary(&self) -> Result<PathBuf> {
        match &self.binary {
            Some(binary) => Ok(binary.clone()),
            None => std::env::current_exe().map_err(error::file("/proc/self/exe")),
        }
    }
}

/// Builds a lab and leaves it up.
pub fn up(opts: &Opts) -> Result<()> {
    setup::up(opts).map(drop)
}

/// Runs the checks on the lab that is up; if there is none, on one made for it and removed after.
pub fn run(opts: &Opts) -> Result<Report> {
    let lab = match Lab::open(&opts.name) {
        Err(Error::NotUp(_)) => Lab::up(opts)?,
        other => other?,
    };
    checks::run(&lab, opts.quick)
}

/// Removes a lab, also one that is half-built; nothing there is no error.
pub fn down(opts: &Opts) -> Result<()> {
    setup::down(&Plan::new(&opts.name)?)
}
