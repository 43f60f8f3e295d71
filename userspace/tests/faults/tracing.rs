//! Tracing changes nothing for anybody.

use fsm_fastpath::lab::Role;

use crate::ping::ping;
use crate::traffic::http::{ask_last, connect};
use crate::traffic::{alone, at, flows, lab, on};

#[test]
fn tracing_one_address_and_port_changes_nothing_for_it_or_others() {
    let _alone = alone();
    let lab = lab("trace", "");
    let sum = lab.blob_sum().unwrap();
    let all = || {
        for (role, to) in [
            (Role::App1, "20.0.0.2:8080"),
            (Role::App2, "20.0.0.3:8080"),
            (Role::App1, "[fd20::2]:8080"),
            (Role::Client, "10.1.0.2:80"),
        ] {
            let body = on(&lab, role, move || {
                ask_last(&mut connect(at(to)).unwrap(), "/who")
            });
            let server = at(to).ip().to_string();
            let body = String::from_utf8(body.unwrap()).unwrap();
            assert!(
                body.contains(&format!("\"server\":\"{server}\"")),
                "{to}: {body}"
            );
        }
        let pipe = "curl -sS --max-time 60 http://20.0.0.2:8080/blob | sha256sum";
        let got = lab.app1().cmd("sh", ["-c", pipe]).unwrap();
        assert_eq!(got.split_whitespace().next(), Some(sum.as_str()));
        assert_eq!(ping(&lab, Role::Client, "10.1.0.2", 1000), Ok(()));
        let rows = flows(&lab, &["--proto", "tcp"]);
        rows.iter().filter(|row| row["verdict"] == "nat").count()
    };
    let before = all();
    for family in ["ipv4", "ipv6"] {
        for kind in ["hdr", "nat", "opt", "acl", "flow", "by_ip", "by_port"] {
            let flag = format!("trace_{kind}_on");
            lab.fsm(&["cfg", "set", family, &flag, "on"]).unwrap();
        }
    }
    lab.fsm(&["trace", "add", "--ip", "20.0.0.2"]).unwrap();
    lab.fsm(&["trace", "add", "--port", "8080"]).unwrap();
    assert_eq!(all(), 2 * before);
}
