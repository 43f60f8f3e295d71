//! What a lab remembers between `up`, `run` and `down`: `/run/<name>/state.json`. It is the first
//! file that `up` writes, so that `down` knows a half-built lab as one of ours.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result, file};
use super::plan::Plan;

const FILE: &str = "state.json";

/// A lab that is up, or was being built.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The lab's name.
    pub name: String,
    /// The fsm-fastpath binary under test.
    pub binary: PathBuf,
    /// The cgroup of the gateway's processes.
    pub cgroup: PathBuf,
    /// Programs in the order in which they were started.
    pub programs: Vec<Program>,
}

/// A program that runs in the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// Its name in the lab.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// When it began, in clock ticks since boot: tells it from a later process of the same id.
    pub started_ticks: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

impl State {
    /// Reads the state of a lab; `None` if there is none.
    pub(super) fn load(plan: &Plan) -> Result<Option<State>> {
        let path = plan.path(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(path)(error)),
        };
        let state = serde_json::from_str(&text).map_err(|source| Error::Json {
            what: path.display().to_string(),
            text,
            source,
        })?;
        Ok(Some(state))
    }

    /// Writes the state.
    pub(super) fn save(&self, plan: &Plan) -> Result<()> {
        let path = plan.path(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|source| Error::Json {
            what: "state".to_owned(),
            text: String::new(),
            source,
        })?;
        std::fs::write(&path, text).map_err(file(path))
    }

    /// The program of this name that was started last.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs
            .iter()
            .rev()
            .find(|program| program.name == name)
    }
}

/// Whether the folder under the lab's name is a lab's, however much of it is left.
pub(super) fn is_lab(plan: &Plan) -> bool {
    plan.path(FILE).exists() || plan.config().exists()
}
