//! UDP through the gateway and back.

use super::super::error::Error;
use super::super::handle::Lab;
use super::super::plan::{Family, at, port};
use super::super::report::{Path, Row};
use super::super::traffic::udp::StreamReport;
use super::{Check, LOG_PATIENCE, Problem};

const COUNT: u64 = 20;

/// A short stream from an app to the echo server outside.
pub(super) fn echo(lab: &Lab, family: Family) -> Row {
    let who = family.addresses();
    let check = Check {
        name: "udp echo".to_owned(),
        src: who.app1.to_string(),
        dst: at(who.outside, port::ECHO).to_string(),
        expected: Path::Gateway,
    };
    check.row(try_echo(lab, family))
}

fn try_echo(lab: &Lab, family: Family) -> Result<(Path, String), Problem> {
    let who = family.addresses();
    let server = at(who.outside, port::ECHO);
    let report = stream(lab, &server.to_string(), COUNT, 10)?;
    let client = at(who.app1, report.local.port());
    let seen = lab.gateway_saw(client, LOG_PATIENCE)?;
    let path = if seen.is_some() {
        Path::Gateway
    } else {
        Path::Direct
    };
    if let Some(error) = seen.as_ref().and_then(|seen| seen.error.as_ref()) {
        return Err(Problem::on(path, format!("gateway: {error}")));
    }
    if let Some(seen) = seen.filter(|seen| seen.original != Some(server)) {
        let detail = format!("gateway took the destination for {:?}", seen.original);
        return Err(Problem::on(path, detail));
    }
    if report.received != report.sent {
        let detail = format!("{} of {} answered", report.received, report.sent);
        let path = if report.received == 0 {
            Path::Dropped
        } else {
            path
        };
        return Err(Problem::on(path, detail));
    }
    Ok((
        path,
        format!("{} of {} answered", report.received, report.sent),
    ))
}

/// Runs the stream helper in app1 and reads what it says.
fn stream(lab: &Lab, to: &str, count: u64, pace_ms: u64) -> Result<StreamReport, Problem> {
    let binary = lab.state().binary.display().to_string();
    let (count, pace) = (count.to_string(), pace_ms.to_string());
    let args = ["lab", "stream", to, "--count", &count, "--pace-ms", &pace];
    let text = lab.app1().cmd(&binary, args)?;
    let report = serde_json::from_str(&text).map_err(|source| Error::Json {
        what: "lab stream".to_owned(),
        text,
        source,
    })?;
    Ok(report)
}
