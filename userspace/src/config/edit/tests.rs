//! `--save` changes what it must and no more.

use std::fs;

use super::super::{AclAction, load, network};
use super::*;

const UPLINK: &str = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";

fn full_toml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/full.toml")
}

/// A copy of an example that a test may change; removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("fsm-config-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("node.toml");
        fs::write(&file, text).unwrap();
        Self(file)
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn rule(addr: &str, action: AclAction) -> Acl {
    Acl {
        addr: network(addr).unwrap(),
        port: PortRange::ANY,
        proto: AclProto::Tcp,
        action,
        id: 0,
    }
}

#[test]
fn saving_a_rule_keeps_the_rest() {
    let full = fs::read_to_string(full_toml()).unwrap();
    let file = Scratch::new("acl", &full);
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o640)).unwrap();

    let new = rule("10.9.0.0/16", AclAction::Audit);
    assert!(add_acl(&file.0, &new).unwrap());
    assert!(!add_acl(&file.0, &new).unwrap());
    let added = "[[acl]]\naddr = \"10.9.0.0/16\"\nproto = \"tcp\"\naction = \"audit\"\n";
    assert_eq!(file.text().replacen(&format!("\n{added}"), "", 1), full);
    assert_eq!(load(&file.0).unwrap().acl.last(), Some(&new));

    assert!(add_acl(&file.0, &rule("10.9.0.0/16", AclAction::Deny)).unwrap());
    assert_eq!(load(&file.0).unwrap().acl[2].action, AclAction::Deny);
    assert!(del_acl(&file.0, new.addr, new.port, new.proto).unwrap());
    assert!(!del_acl(&file.0, new.addr, new.port, new.proto).unwrap());
    assert_eq!(file.text(), full);

    let mode = fs::metadata(&file.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(fs::read_dir(file.0.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn saving_keeps_comments_behind_values() {
    let text = format!(
        "{UPLINK}\n# clients\n[[acl]]\naddr = \"10.0.0.1\"\nproto = \"tcp\"\n\
         action = \"deny\" # for now\n"
    );
    let file = Scratch::new("comment", &text);
    assert!(add_acl(&file.0, &rule("10.0.0.1", AclAction::Trusted)).unwrap());
    assert_eq!(file.text(), text.replace("\"deny\"", "\"trusted\""));
}

#[test]
fn saving_understands_inline_lists() {
    let text = format!("acl = [\n    {{ addr = \"10.0.0.1\", action = \"deny\" }},\n]\n{UPLINK}");
    let file = Scratch::new("inline", &text);
    let new = rule("10.0.0.2", AclAction::Deny);
    assert!(add_acl(&file.0, &new).unwrap());
    assert_eq!(load(&file.0).unwrap().acl[1], new);
    assert!(del_acl(&file.0, new.addr, new.port, new.proto).unwrap());
    assert_eq!(file.text(), text);
}

#[test]
fn saving_nat_and_flags() {
    let file = Scratch::new("nat", UPLINK);
    let endpoints = vec![Endpoint::new("192.0.2.1:15001".parse().unwrap())];
    let mut entry = Nat::new(Direction::Egress, NatProto::Tcp, NatTarget::Any, endpoints);
    entry.select = Select::RoundRobin;
    assert!(add_nat(&file.0, &entry).unwrap());
    assert!(!add_nat(&file.0, &entry).unwrap());
    entry.endpoints[0].active = false;
    assert!(add_nat(&file.0, &entry).unwrap());
    assert_eq!(load(&file.0).unwrap().nat, vec![entry.clone()]);
    let del = |family| {
        let key = (entry.system, entry.direction, entry.proto, entry.to);
        del_nat(&file.0, key.0, key.1, key.2, key.3, family)
    };
    assert!(!del(Some(Family::Ipv6)).unwrap());
    assert!(del(None).unwrap());
    assert_eq!(file.text(), UPLINK);

    assert!(set_flag(&file.0, Family::Ipv6, "deny_all", true).unwrap());
    assert!(!set_flag(&file.0, Family::Ipv6, "deny_all", true).unwrap());
    assert!(load(&file.0).unwrap().flags.ipv6.get("deny_all").unwrap());
    assert!(
        file.text().ends_with("\n[flags.ipv6]\ndeny_all = true\n"),
        "{}",
        file.text()
    );
    let unknown = set_flag(&file.0, Family::Ipv4, "deny_al", true);
    assert!(matches!(unknown, Err(EditError::Value(_))));
}

#[test]
fn saving_never_breaks_a_file() {
    let file = Scratch::new("broken", "[node]\nlog = \"loud\"\n");
    let refused = add_acl(&file.0, &rule("10.0.0.1", AclAction::Deny));
    assert!(matches!(refused, Err(EditError::Config(_))));
    assert_eq!(file.text(), "[node]\nlog = \"loud\"\n");
    fs::write(&file.0, UPLINK).unwrap();
    let mut entry = rule("10.0.0.1", AclAction::Deny);
    entry.port = PortRange {
        first: 80,
        last: 90,
    };
    assert!(add_acl(&file.0, &entry).unwrap());
    let before = file.text();
    entry.port = PortRange {
        first: 85,
        last: 99,
    };
    entry.action = AclAction::Audit;
    assert!(matches!(
        add_acl(&file.0, &entry),
        Err(EditError::Config(_))
    ));
    assert_eq!(file.text(), before);
}

#[test]
fn traces_are_put_in_and_taken_out() {
    let folder = std::env::temp_dir().join(format!("fsm-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("node.toml");
    std::fs::write(&file, "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n").unwrap();
    let ip = "10.0.0.1".parse().unwrap();
    assert!(set_trace_ip(&file, ip, true).unwrap());
    assert!(!set_trace_ip(&file, ip, true).unwrap());
    assert!(set_trace_port(&file, 80, true).unwrap());
    let config = crate::config::load(&file).unwrap();
    assert_eq!((config.trace.ips, config.trace.ports), (vec![ip], vec![80]));
    assert!(set_trace_ip(&file, ip, false).unwrap());
    assert!(!set_trace_port(&file, 81, false).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn saving_a_load_balancers_entry_keeps_all_of_it() {
    let file = Scratch::new("e4lb", UPLINK);
    let endpoints = vec![Endpoint::new("192.0.2.1:80".parse().unwrap())];
    let to = "198.51.100.9:80".parse().unwrap();
    let mut entry = Nat::new(Direction::Ingress, NatProto::Tcp, to, endpoints);
    entry.system = System::E4lb;
    entry.source = Source::Vip;
    entry.on_removed = OnRemoved::Reset;
    entry.announce_s = 0;
    entry.interface = Some("eth0".to_owned());
    let health = "http:/ready".parse::<Health>().unwrap();
    entry.health = Some(Health {
        interval_s: 1,
        port: Some(8081),
        ..health
    });
    assert!(add_nat(&file.0, &entry).unwrap());
    assert_eq!(load(&file.0).unwrap().nat, vec![entry.clone()]);
    assert!(!add_nat(&file.0, &entry).unwrap());
    let mesh = del_nat(
        &file.0,
        System::Mesh,
        entry.direction,
        entry.proto,
        to,
        None,
    );
    assert!(!mesh.unwrap(), "another system's entry");
    let e4lb = del_nat(
        &file.0,
        System::E4lb,
        entry.direction,
        entry.proto,
        to,
        None,
    );
    assert!(e4lb.unwrap());
    assert_eq!(file.text(), UPLINK);
}
