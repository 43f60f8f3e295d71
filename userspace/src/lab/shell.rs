//! Running the tools that a lab is made with. A lab is a script; this file is its shell: each
//! command either works or gives an error that names it and says what it printed.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use super::error::{Error, Result};

/// Longest that any single tool may take, so that a check can hang nothing.
const LIMIT_S: u32 = 120;

/// A command with the administrator's folders in its PATH: haproxy and nginx live there, and
/// `su` without `-` leaves them out.
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C");
    command
}

/// Runs a tool and gives its output; an error unless it exits with 0.
pub(super) fn run<I, S>(program: &str, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = command("timeout");
    command
        .args(["-k", "1", &LIMIT_S.to_string(), program])
        .args(args);
    checked(&mut command)
}

/// Runs a prepared command and gives its output; an error unless it exits with 0.
pub(super) fn checked(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(failed(command, &output))
}

/// Runs a prepared command to its end, whatever that is.
pub(super) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            command: line(command),
            source,
        })
}

/// The error of a command that ended badly.
pub(super) fn failed(command: &Command, output: &Output) -> Error {
    let stderr = text(&output.stderr);
    let said = if stderr.trim().is_empty() {
        text(&output.stdout)
    } else {
        stderr
    };
    Error::Command {
        command: line(command),
        status: output.status,
        stderr: said.trim().to_owned(),
    }
}

/// Which of these programs are not installed.
pub(super) fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let path = search_path();
    let installed =
        |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    programs
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect()
}

/// Output as text; tools print ASCII, anything else is only for people to read.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = run("sh", ["-c", "echo broken >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit 3") && error.contains("broken"),
            "{error}"
        );
    }

    #[test]
    fn missing_programs_are_named() {
        assert_eq!(
            missing(&["sh", "no-such-program-here"]),
            ["no-such-program-here"]
        );
    }
}
