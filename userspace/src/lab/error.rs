//! What can go wrong in a lab, always with the command or file that it went wrong with.

use std::path::PathBuf;

/// Failures of building, using or removing a lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen name cannot be used for namespaces, paths and a cgroup.
    #[error("lab name {0:?}: use 1 to 24 of a-z, 0-9 and '-', beginning with a letter")]
    BadName(String),
    /// Only root may make namespaces.
    #[error("the lab needs root: it makes network namespaces and loads programs into the kernel")]
    NotRoot,
    /// Programs that the lab is made of are not installed.
    #[error(
        "programs missing: {0} (Debian: apt-get install iproute2 ethtool procps curl dnsutils \
         haproxy nginx-light dnsmasq-base)"
    )]
    MissingTools(String),
    /// Something of that name exists already.
    #[error(
        "lab {name} exists already ({what}); remove it first: fsm-fastpath lab down --name {name}"
    )]
    Exists {
        /// The lab's name.
        name: String,
        /// What was found.
        what: String,
    },
    /// There is no such lab.
    #[error("lab {0} is not up; build it first: fsm-fastpath lab up --name {0}")]
    NotUp(String),
    /// No cgroup v2 hierarchy is mounted.
    #[error("no cgroup v2 hierarchy is mounted; original_dst needs one")]
    NoCgroup2,
    /// A tool could not be started at all.
    #[error("cannot start `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// A tool ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, trimmed.
        stderr: String,
    },
    /// One of the lab's programs ended or did not become ready.
    #[error("{program} {reason}; end of {log}:\n{tail}", log = log.display())]
    Program {
        /// The program's name in the lab.
        program: String,
        /// What happened.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A file of the lab could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tool's answer is not what it should be.
    #[error("{what}: cannot understand {text:?}: {source}")]
    Json {
        /// Whose answer.
        what: String,
        /// Its beginning.
        text: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A helper's socket failed.
    #[error("{what}: {source}")]
    Socket {
        /// Which socket, doing what.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Result of the lab's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the file's name to an I/O error.
pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}

/// Adds what a socket was doing to an I/O error.
pub(super) fn socket(what: impl ToString) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.to_string();
    move |source| Error::Socket { what, source }
}
