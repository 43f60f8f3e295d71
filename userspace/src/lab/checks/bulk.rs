//! Much at once: a big file both ways of going, and many connections that share source ports.

use std::time::Instant;

use super::super::blob::BLOB_MIB;
use super::super::error::Error;
use super::super::handle::{Host, Lab};
use super::super::plan::{Family, at, port};
use super::super::report::{Path, Row};
use super::super::traffic::load::LoadReport;
use super::{Check, Problem};

/// All checks of this file.
pub(super) fn all(lab: &Lab) -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        let who = family.addresses();
        let from_outside = at(who.outside, port::OUTSIDE_WEB).to_string();
        let check = |src: String, dst: &str, expected| Check {
            name: format!("{BLOB_MIB} MiB download"),
            src,
            dst: dst.to_owned(),
            expected,
        };
        rows.push(
            check(who.app1.to_string(), &from_outside, Path::Gateway).row(download(
                lab,
                &lab.app1(),
                &from_outside,
                "",
                Path::Gateway,
            )),
        );
        let from_app = at(who.app1, port::APP_TRUSTED).to_string();
        let source = who.client_trusted.to_string();
        rows.push(check(source.clone(), &from_app, Path::Direct).row(download(
            lab,
            &lab.client(),
            &from_app,
            &source,
            Path::Direct,
        )));
        rows.push(many_connections(lab, family));
    }
    rows
}

/// Loads the big file and compares its sum. Which way such connections go the small requests
/// have shown; this is about every byte of many.
fn download(
    lab: &Lab,
    host: &Host,
    server: &str,
    source: &str,
    way: Path,
) -> Result<(Path, String), Problem> {
    let expected = lab.blob_sum()?;
    let interface = if source.is_empty() {
        String::new()
    } else {
        format!("--interface {source}")
    };
    let pipe = format!("curl -gsS --max-time 100 {interface} 'http://{server}/blob' | sha256sum");
    let began = Instant::now();
    let sum = host.cmd("sh", ["-c", &pipe])?;
    let seconds = began.elapsed().as_secs_f64();
    if sum.split_whitespace().next() != Some(expected.as_str()) {
        return Err(Problem::on(way, "the sum differs: incomplete or changed"));
    }
    let rate = BLOB_MIB as f64 / seconds;
    Ok((way, format!("sum is right, {rate:.0} MiB/s")))
}

fn many_connections(lab: &Lab, family: Family) -> Row {
    let who = family.addresses();
    let servers = [who.outside, who.outside_second].map(|a| at(a, port::OUTSIDE_WEB).to_string());
    let check = Check {
        name: "200 connections, 100 source ports".to_owned(),
        src: who.app1.to_string(),
        dst: servers.join(" and "),
        expected: Path::Gateway,
    };
    check.row(try_many(lab, &servers))
}

fn try_many(lab: &Lab, servers: &[String]) -> Result<(Path, String), Problem> {
    let binary = lab.state().binary.display().to_string();
    // Other ports each time: those of the last run may still be in TIME_WAIT.
    let first_port = (20_000 + std::process::id() % 100 * 100).to_string();
    let mut args = vec![
        "lab",
        "load",
        "--groups",
        "100",
        "--first-port",
        &first_port,
    ];
    args.extend(servers.iter().map(String::as_str));
    let text = lab.app1().cmd(&binary, args)?;
    let report: LoadReport = serde_json::from_str(&text).map_err(|source| Error::Json {
        what: "lab load".to_owned(),
        text,
        source,
    })?;
    let LoadReport {
        tried,
        ok,
        crossed,
        errors,
    } = &report;
    if ok != tried {
        let why = errors.join("; ");
        let detail = format!("{ok} of {tried} right, {crossed} crossed; {why}");
        return Err(Problem::on(Path::Gateway, detail));
    }
    Ok((Path::Gateway, format!("{ok} of {tried} right")))
}
