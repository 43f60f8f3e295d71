//! `lab run`: what is tried and what must come of it. Each check sends real traffic, finds out
//! which way it went from what the far end and the gateway saw, and gives one [`Row`]; a check
//! that cannot be carried out is a row that failed.

mod bulk;
mod daemon;
mod names;
mod udp;
mod web;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::handle::Lab;
use super::plan::{Family, at};
use super::report::{Path, Report, Row};

/// How long a gateway's log line may come after the answer.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// How long to look for a log line that should not be there.
const LOG_DOUBT: Duration = Duration::from_millis(200);

/// What a web server in the lab says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Who the server thinks its client is.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// Which of its addresses the server was asked at.
    pub server: IpAddr,
    /// The port that it was asked at.
    pub server_port: u16,
}

impl Who {
    /// Whether this server is the one that was meant.
    pub fn is(&self, server: SocketAddr) -> bool {
        at(self.server, self.server_port) == server
    }
}

/// Runs all checks one after the other.
pub(super) fn run(lab: &Lab, quick: bool) -> Result<Report> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        rows.extend(web::all(lab, family));
        rows.extend(names::all(lab, family));
        rows.push(udp::echo(lab, family));
    }
    if !quick {
        rows.extend(bulk::all(lab));
    }
    let (flows, drops) = (daemon::flow_kinds(lab)?, daemon::drops(lab)?);
    Ok(Report {
        lab: lab.plan().name.clone(),
        passed: rows.iter().all(|row| row.ok),
        rows,
        flows,
        drops,
    })
}

/// What is known of a check before it is made.
struct Check {
    name: String,
    src: String,
    dst: String,
    expected: Path,
}

impl Check {
    /// The row of a check: the way its traffic took and a word on it, or what went wrong.
    fn row(self, outcome: std::result::Result<(Path, String), Problem>) -> Row {
        let Check {
            name,
            src,
            dst,
            expected,
        } = self;
        let row = |path, ok, detail| Row {
            name,
            src,
            dst,
            path,
            expected,
            ok,
            detail,
        };
        match outcome {
            Ok((path, detail)) => row(Some(path), path == expected, detail),
            Err(Problem { path, detail }) => row(path, false, detail),
        }
    }
}

/// Why a check failed even though, or before, the way of its traffic is known.
struct Problem {
    path: Option<Path>,
    detail: String,
}

impl Problem {
    fn on(path: Path, detail: impl Into<String>) -> Problem {
        Problem {
            path: Some(path),
            detail: detail.into(),
        }
    }
}

impl<E: std::error::Error> From<E> for Problem {
    fn from(error: E) -> Problem {
        Problem {
            path: None,
            detail: error.to_string(),
        }
    }
}
