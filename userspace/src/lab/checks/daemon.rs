//! What the daemon says about the traffic: its flow table and its drop counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::error::Result;
use super::super::handle::Lab;
use super::super::report::{FlowKinds, Path};
use super::Problem;

/// Name of the reason for which the ACL drops.
pub(super) const ACL_DENY: &str = "acl_deny";

/// Counters and flows are read from the kernel by the daemon, at its own pace.
const PATIENCE: Duration = Duration::from_secs(2);

/// Drop counters by reason, those that are not zero.
pub(super) fn drops(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let status = lab.fsm(&["status"])?;
    let all = status
        .get("drops")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let counts = all.filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)));
    Ok(counts.filter(|(_, count)| *count != 0).collect())
}

/// One drop counter; a reason that is not listed has not occurred.
pub(super) fn drop_count(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(drops(lab)?.get(reason).copied().unwrap_or(0))
}

/// The daemon must list a flow that went past the gateway, and without a translation.
pub(super) fn knows_untranslated(
    lab: &Lab,
    client: SocketAddr,
    server: SocketAddr,
) -> std::result::Result<(), Problem> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let flows = flows(lab)?;
        match flows.iter().find(|flow| is_between(flow, client, server)) {
            Some(flow) if is_translated(flow) => {
                return Err(Problem::on(
                    Path::Direct,
                    format!("flow list has a NAT: {flow}"),
                ));
            }
            Some(_) => return Ok(()),
            None if Instant::now() > deadline => {
                return Err(Problem::on(Path::Direct, "not in the flow list"));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The flow table in short: how many flows of which protocol, state and way.
pub(super) fn flow_kinds(lab: &Lab) -> Result<FlowKinds> {
    let mut kinds = FlowKinds::new();
    for flow in flows(lab)? {
        let word = |key: &str| {
            flow.get(key)
                .and_then(Value::as_str)
                .unwrap_or("?")
                .to_owned()
        };
        let way = if is_translated(&flow) {
            Path::Gateway
        } else {
            Path::Direct
        };
        *kinds
            .entry(format!("{} {} {way}", word("proto"), word("state")))
            .or_default() += 1;
    }
    Ok(kinds)
}

fn flows(lab: &Lab) -> Result<Vec<Value>> {
    match lab.fsm(&["flow", "list"])? {
        Value::Array(flows) => Ok(flows),
        one => Ok(vec![one]),
    }
}

fn is_translated(flow: &Value) -> bool {
    flow.get("nat").is_some_and(|nat| !nat.is_null())
}

fn is_between(flow: &Value, client: SocketAddr, server: SocketAddr) -> bool {
    let end = |addr: &str, port: &str| {
        let ip = flow.get(addr)?.as_str()?.parse().ok()?;
        let port = u16::try_from(flow.get(port)?.as_u64()?).ok()?;
        Some(SocketAddr::new(ip, port))
    };
    end("src", "sport") == Some(client) && end("dst", "dport") == Some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_found_by_both_ends() {
        let flow = serde_json::json!({
            "src": "fd20::11", "sport": 40000, "dst": "fd10:1::2", "dport": 8081, "nat": null,
        });
        let client = "[fd20::11]:40000".parse().unwrap();
        assert!(is_between(
            &flow,
            client,
            "[fd10:1::2]:8081".parse().unwrap()
        ));
        assert!(!is_between(
            &flow,
            client,
            "[fd10:1::2]:80".parse().unwrap()
        ));
        assert!(!is_translated(&flow));
    }
}
