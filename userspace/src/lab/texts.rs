//! Configuration files of the lab's programs: node.toml, HAProxy, nginx.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::plan::{Addresses, Family, Plan, UPLINK, at, port};

/// The node's configuration. `cgroup` holds the gateway's processes.
pub(super) fn node_toml(plan: &Plan, cgroup: &Path, extra: &str) -> String {
    let mut text = format!(
        "# Written by `fsm-fastpath lab up`.\n\
         [node]\nname = \"{name}\"\nbpffs = \"{bpf}\"\napi = \"{api}\"\nmetrics = \"\"\n\
         log = \"info\"\nfail = \"open\"\n\n\
         [[interface]]\nname = \"{UPLINK}\"\nrole = \"uplink\"\nxdp = \"auto\"\n\n\
         [[interface]]\nname = \"veth-*\"\nrole = \"endpoint\"\n\n\
         [gateway]\ninbound = {inbound}\noutbound = {outbound}\ndns = {dns}\n\
         exclude_inbound_ports = [22, {app_excluded}]\n\
         exclude_outbound_ports = [{outside_excluded}]\n\
         original_dst = \"{cgroup}\"\n",
        name = plan.name,
        bpf = plan.path("bpf").display(),
        api = plan.path("api.sock").display(),
        inbound = listeners(port::GATEWAY_INBOUND),
        outbound = listeners(port::GATEWAY_OUTBOUND),
        dns = listeners(port::GATEWAY_DNS),
        app_excluded = port::APP_EXCLUDED,
        outside_excluded = port::OUTSIDE_EXCLUDED,
        cgroup = cgroup.display(),
    );
    for family in Family::ALL {
        text += &policy(family.addresses());
    }
    text.push_str(extra);
    text
}

/// One family's UDP gateway and rules.
fn policy(who: &Addresses) -> String {
    let mut text = format!(
        "\n[[nat]]\ndirection = \"egress\"\nproto = \"udp\"\nto = \":{}\"\n\
         endpoints = [{{ addr = \"{}\" }}]\n",
        port::ECHO,
        at(who.gateway, port::GATEWAY_UDP),
    );
    let rules: [(IpAddr, u16, &str, &str); 5] = [
        (who.outside_denied, 0, "any", "deny"),
        (who.client_denied, 0, "any", "deny"),
        (who.client_trusted, 0, "any", "trusted"),
        (who.app1, port::APP_TRUSTED, "tcp", "trusted"),
        (who.app2, port::APP_TRUSTED, "tcp", "trusted"),
    ];
    for (addr, port, proto, action) in rules {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[[acl]]\naddr = \"{addr}\"\nport = {port}\nproto = \"{proto}\"\n\
             action = \"{action}\"\n"
        );
    }
    text
}

fn listeners(port: u16) -> String {
    let all = Family::ALL.map(|family| format!("\"{}\"", at(family.addresses().gateway, port)));
    format!("[{}]", all.join(", "))
}

/// HAProxy as the IPv4 gateway: both listeners connect to where the connection was going.
///
/// HAProxy asks for the original destination (SO_ORIGINAL_DST) of IPv4 connections only
/// (`src/sock_inet.c`), so IPv6 listeners are the test proxy's. A server without address and port
/// means "the connection's destination"; one that nobody steered has HAProxy itself as its
/// destination and is refused, or it would connect to itself until its limit. It logs as soon as the far side is connected, as JSON
/// lines like the test proxy's.
pub(super) fn haproxy_cfg() -> String {
    let gateway = Family::V4.addresses().gateway;
    let mut text = String::from(
        "global\n  log stdout format raw daemon info\n  maxconn 8000\n\n\
         defaults\n  mode tcp\n  log global\n  option logasap\n\
         \x20 timeout connect 5s\n  timeout client 120s\n  timeout server 120s\n\
         \x20 log-format '{\"listener\":\"%f\",\"client\":\"%ci:%cp\",\
         \"original\":\"%[dst]:%[dst_port]\"}'\n",
    );
    let listeners = [
        ("outbound", port::GATEWAY_OUTBOUND),
        ("inbound", port::GATEWAY_INBOUND),
    ];
    for (name, port) in listeners {
        let _ = write!(
            text,
            "\nfrontend {name}\n  bind {}\n  tcp-request content reject if {{ dst {gateway} }}\n\
             \x20 default_backend original\n",
            at(gateway, port)
        );
    }
    text + "\nbackend original\n  server original 0.0.0.0\n"
}

/// nginx listening on these ports of both families; `/who` says who came and to where, all else
/// is files from `www`. Its access log is what "never arrived" is judged by.
pub(super) fn nginx_conf(dir: &Path, www: &Path, ports: &[u16]) -> String {
    let dir = dir.display();
    let listens: String = ports
        .iter()
        .map(|port| format!("    listen {port}; listen [::]:{port};\n"))
        .collect();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {dir}/nginx.pid;\n\
         error_log {dir}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n{temp}\
         \x20 log_format who escape=json '{{\"client\":\"$remote_addr\",\
         \"client_port\":$remote_port,\"server\":\"$server_addr\",\
         \"server_port\":$server_port}}';\n\
         \x20 access_log {dir}/access.log who;\n\
         \x20 sendfile on;\n  keepalive_timeout 75s;\n\
         \x20 server {{\n{listens}\
         \x20   default_type application/octet-stream;\n    root {www};\n\
         \x20   location = /who {{\n      default_type application/json;\n\
         \x20     return 200 '{{\"client\":\"$remote_addr\",\"client_port\":$remote_port,\
         \"server\":\"$server_addr\",\"server_port\":$server_port}}\\n';\n    }}\n  }}\n}}\n",
        www = www.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_listeners_have_brackets() {
        assert_eq!(
            listeners(port::GATEWAY_INBOUND),
            "[\"192.168.226.22:15003\", \"[fd22::22]:15003\"]"
        );
    }
}
