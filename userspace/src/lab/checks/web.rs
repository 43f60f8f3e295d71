//! Web requests between all hosts: through the gateway, past it, or dropped.

use std::net::{IpAddr, SocketAddr};

use super::super::error::{Error, Result};
use super::super::handle::{Lab, read_json};
use super::super::plan::{Family, Role, at, port};
use super::super::proxy::Seen;
use super::super::report::{Path, Row};
use super::super::shell;
use super::{Check, LOG_DOUBT, LOG_PATIENCE, Problem, Who, daemon};

/// curl's exit code for "no answer in time".
const CURL_TIMEOUT: i32 = 28;

/// One request, what must come of it, and who the server must believe its client to be.
struct Request {
    name: &'static str,
    from: Role,
    source: IpAddr,
    to: SocketAddr,
    expected: Path,
    /// Gateway listener that must have seen it; empty if none.
    listener: &'static str,
    /// The client's address as the server sees it.
    seen_as: IpAddr,
    /// Who serves it; its log tells what arrived.
    server: Role,
    /// Whether the daemon must list the flow, untranslated.
    listed: bool,
}

/// All requests of one family.
pub(super) fn all(lab: &Lab, family: Family) -> Vec<Row> {
    let requests = mesh(family).into_iter().chain(past_it(family));
    let mut rows: Vec<Row> = requests.map(|request| try_one(lab, &request)).collect();
    rows.extend(
        denied(family)
            .iter()
            .map(|request| try_denied(lab, request)),
    );
    rows
}

/// What goes through the gateway: there, the node connects to the server.
fn mesh(family: Family) -> [Request; 3] {
    let who = family.addresses();
    [
        Request {
            name: "app to outside",
            from: Role::App1,
            source: who.app1,
            to: at(who.outside, port::OUTSIDE_WEB),
            expected: Path::Gateway,
            listener: "outbound",
            seen_as: who.node,
            server: Role::Outside,
            listed: false,
        },
        Request {
            name: "outside to app",
            from: Role::Client,
            source: who.client,
            to: at(who.app1, port::APP_WEB),
            expected: Path::Gateway,
            listener: "inbound",
            seen_as: who.node_app1,
            server: Role::App1,
            listed: false,
        },
        Request {
            name: "app to app",
            from: Role::App2,
            source: who.app2,
            to: at(who.app1, port::APP_WEB),
            expected: Path::Gateway,
            listener: "outbound",
            seen_as: who.node_app1,
            server: Role::App1,
            listed: false,
        },
    ]
}

/// What goes past the gateway: trusted by the ACL, or excluded by port.
fn past_it(family: Family) -> [Request; 4] {
    let who = family.addresses();
    let direct = |name, from, source, to, server| Request {
        name,
        from,
        source,
        to,
        expected: Path::Direct,
        listener: "",
        seen_as: source,
        server,
        listed: true,
    };
    let unlisted = |name, from, source, to, server| Request {
        listed: false,
        ..direct(name, from, source, to, server)
    };
    let app1 = |port| at(who.app1, port);
    let excluded = at(who.outside, port::OUTSIDE_EXCLUDED);
    [
        direct(
            "trusted client to app",
            Role::Client,
            who.client_trusted,
            app1(port::APP_TRUSTED),
            Role::App1,
        ),
        direct(
            "trusted app to app",
            Role::App2,
            who.app2,
            app1(port::APP_TRUSTED),
            Role::App1,
        ),
        unlisted(
            "excluded port outbound",
            Role::App1,
            who.app1,
            excluded,
            Role::Outside,
        ),
        unlisted(
            "excluded port inbound",
            Role::Client,
            who.client,
            app1(port::APP_EXCLUDED),
            Role::App1,
        ),
    ]
}

/// What the ACL denies, once on an endpoint and once on the uplink.
fn denied(family: Family) -> [Request; 2] {
    let who = family.addresses();
    let denied = |name, from, source, to, server| Request {
        name,
        from,
        source,
        to,
        expected: Path::Dropped,
        listener: "",
        seen_as: source,
        server,
        listed: false,
    };
    let outside = at(who.outside_denied, port::OUTSIDE_WEB);
    let app1 = at(who.app1, port::APP_WEB);
    [
        denied(
            "denied server",
            Role::App1,
            who.app1,
            outside,
            Role::Outside,
        ),
        denied(
            "denied client",
            Role::Client,
            who.client_denied,
            app1,
            Role::App1,
        ),
    ]
}

fn try_one(lab: &Lab, request: &Request) -> Row {
    check(request).row(went_right(lab, request))
}

fn check(request: &Request) -> Check {
    Check {
        name: request.name.to_owned(),
        src: request.source.to_string(),
        dst: request.to.to_string(),
        expected: request.expected,
    }
}

/// Sends the request and compares what the server and the gateway saw with what they must see.
fn went_right(lab: &Lab, request: &Request) -> std::result::Result<(Path, String), Problem> {
    let Some(answer) = fetch(lab, request)? else {
        return Err(Problem::on(Path::Dropped, "no answer"));
    };
    let client = at(request.source, answer.local_port);
    let through_gateway = request.expected == Path::Gateway;
    let patience = if through_gateway {
        LOG_PATIENCE
    } else {
        LOG_DOUBT
    };
    let seen = lab.gateway_saw(client, patience)?;
    let path = if seen.is_some() {
        Path::Gateway
    } else {
        Path::Direct
    };
    if let Some(seen) = &seen {
        compare_gateway(request, seen)?;
    }
    if !answer.who.is(request.to) {
        return Err(Problem::on(
            path,
            format!("another server answered: {:?}", answer.who),
        ));
    }
    if answer.who.client != request.seen_as {
        let detail = format!("server saw {}, not {}", answer.who.client, request.seen_as);
        return Err(Problem::on(path, detail));
    }
    if request.listed && path == Path::Direct {
        daemon::knows_untranslated(lab, client, request.to)?;
    }
    Ok((path, format!("server saw {}", answer.who.client)))
}

/// The gateway must have got it on the right listener and know where it was going.
fn compare_gateway(request: &Request, seen: &Seen) -> std::result::Result<(), Problem> {
    if seen.listener != request.listener {
        return Err(Problem::on(
            Path::Gateway,
            format!("came to listener {}", seen.listener),
        ));
    }
    if seen.original != Some(request.to) {
        let detail = format!("gateway took the destination for {:?}", seen.original);
        return Err(Problem::on(Path::Gateway, detail));
    }
    Ok(())
}

/// A denied request must have no answer, reach no server, and be counted by its reason.
fn try_denied(lab: &Lab, request: &Request) -> Row {
    check(request).row(was_denied(lab, request))
}

fn was_denied(lab: &Lab, request: &Request) -> std::result::Result<(Path, String), Problem> {
    let counted_before = daemon::drop_count(lab, daemon::ACL_DENY)?;
    let log_before = lab.access_log(request.server)?.len();
    if let Some(answer) = fetch(lab, request)? {
        let client = at(request.source, answer.local_port);
        let seen = lab.gateway_saw(client, LOG_DOUBT)?;
        let path = if seen.is_some() {
            Path::Gateway
        } else {
            Path::Direct
        };
        return Err(Problem::on(path, "answered"));
    }
    if lab.access_log(request.server)?.len() != log_before {
        return Err(Problem::on(
            Path::Direct,
            "no answer, but the server had the request",
        ));
    }
    let counted = daemon::drop_count(lab, daemon::ACL_DENY)?;
    if counted <= counted_before {
        let detail = format!("counter {} stays at {counted}", daemon::ACL_DENY);
        return Err(Problem::on(Path::Dropped, detail));
    }
    let detail = format!("{} +{}", daemon::ACL_DENY, counted - counted_before);
    Ok((Path::Dropped, detail))
}

/// A server's answer and the port that the request came from.
struct Answer {
    who: Who,
    local_port: u16,
}

/// Asks a server who it sees; `None` when there is no answer.
fn fetch(lab: &Lab, request: &Request) -> Result<Option<Answer>> {
    let limit = if request.expected == Path::Dropped {
        "2"
    } else {
        "5"
    };
    let mut curl = lab.host(request.from).command("curl");
    curl.args([
        "-gsS",
        "--max-time",
        limit,
        "-w",
        "%{local_port}",
        "--interface",
    ]);
    curl.arg(request.source.to_string())
        .arg(format!("http://{}/who", request.to));
    let output = shell::output(&mut curl)?;
    if output.status.code() == Some(CURL_TIMEOUT) {
        return Ok(None);
    }
    if !output.status.success() {
        return Err(shell::failed(&curl, &output));
    }
    let text = shell::text(&output.stdout);
    let value = read_json("curl", &text)?;
    let not_understood = |source| Error::Json {
        what: "curl".to_owned(),
        text: text.clone(),
        source,
    };
    let (who, local_port) = serde_json::from_value(value).map_err(not_understood)?;
    Ok(Some(Answer { who, local_port }))
}
