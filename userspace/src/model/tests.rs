//! What a configuration becomes, checked by asking as the kernel asks.

use std::path::Path;

use fsm_common::{
    maps::sys,
    policy::{AclTables, acl, decide},
};

use super::*;
use crate::config;

fn compile(text: &str) -> Model {
    let text = format!("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n{text}");
    let config = config::parse(&text, Path::new("node.toml")).unwrap();
    Model::compile(&config).unwrap()
}

impl AclTables<[u8; 4]> for Model {
    fn exact(&self, addr: &[u8; 4], port: [u8; 2], class: u32) -> u8 {
        let key = Acl4Key {
            addr: *addr,
            port,
            proto: 0,
            sys: sys::MESH,
        };
        self.acl4
            .get(&key)
            .map_or(acl::SILENT, |said| said.acl >> (2 * class) & 3)
    }

    fn cidr(&self, addr: &[u8; 4], proto: u8, port: u16) -> u8 {
        let longest = (0..=32u32).rev().find_map(|prefix_len| {
            let mask = u32::MAX.checked_shl(32 - prefix_len).unwrap_or(0);
            let addr = (u32::from_be_bytes(*addr) & mask).to_be_bytes();
            self.cidr4.get(&Cidr4Key { prefix_len, addr })
        });
        let rule = longest.and_then(|rules| rules.list().iter().find(|r| r.matches(proto, port)));
        rule.map_or(acl::SILENT, |rule| rule.acl)
    }

    fn kinds(&self) -> u32 {
        self.acl_kinds
    }
}

fn ask(model: &Model, addr: [u8; 4], port: u16, proto: u8) -> Option<u8> {
    let verdict = decide(model, &addr, port.to_be_bytes(), proto);
    (verdict != acl::SILENT).then_some(verdict)
}

#[test]
fn an_exact_port_goes_before_a_range_before_the_address_before_its_network() {
    let model = compile(
        r#"
        [[acl]]
        addr = "10.0.0.0/8"
        action = "deny"
        [[acl]]
        addr = "10.0.0.1"
        action = "trusted"
        [[acl]]
        addr = "10.0.0.1"
        port = "8000-8099"
        proto = "tcp"
        action = "deny"
        [[acl]]
        addr = "10.0.0.1"
        port = 8080
        proto = "tcp"
        action = "audit"
        "#,
    );
    assert_eq!(ask(&model, [10, 0, 0, 1], 8080, 6), Some(acl::AUDIT));
    assert_eq!(ask(&model, [10, 0, 0, 1], 8081, 6), Some(acl::DENY));
    assert_eq!(ask(&model, [10, 0, 0, 1], 8081, 17), Some(acl::TRUSTED));
    assert_eq!(ask(&model, [10, 0, 0, 1], 22, 6), Some(acl::TRUSTED));
    assert_eq!(ask(&model, [10, 0, 0, 2], 22, 6), Some(acl::DENY));
    assert_eq!(ask(&model, [11, 0, 0, 2], 22, 6), None);
}

#[test]
fn an_inner_network_that_does_not_speak_of_a_port_leaves_it_to_the_outer_one() {
    let model = compile(
        r#"
        [[acl]]
        addr = "10.0.0.0/8"
        port = "1-1023"
        action = "deny"
        [[acl]]
        addr = "10.1.0.0/16"
        port = "8000-9000"
        proto = "tcp"
        action = "trusted"
        "#,
    );
    assert_eq!(ask(&model, [10, 1, 0, 1], 22, 6), Some(acl::DENY));
    assert_eq!(ask(&model, [10, 1, 0, 1], 8080, 6), Some(acl::TRUSTED));
    assert_eq!(ask(&model, [10, 1, 0, 1], 9001, 6), None);
}

#[test]
fn a_rule_that_names_the_protocol_goes_before_one_for_any() {
    let model = compile(
        r#"
        [[acl]]
        addr = "10.0.0.1"
        proto = "udp"
        action = "deny"
        [[acl]]
        addr = "10.0.0.1"
        action = "trusted"
        "#,
    );
    assert_eq!(ask(&model, [10, 0, 0, 1], 53, 17), Some(acl::DENY));
    assert_eq!(ask(&model, [10, 0, 0, 1], 53, 6), Some(acl::TRUSTED));
    assert_eq!(ask(&model, [10, 0, 0, 1], 0, 1), Some(acl::TRUSTED));
    assert_eq!(ask(&model, [10, 0, 0, 1], 0, 132), Some(acl::TRUSTED));
}

#[test]
fn the_gateway_is_trusted_and_its_listeners_are_audited() {
    let model = compile("[gateway]\noutbound = [\"192.168.226.22:15001\"]\n");
    assert_eq!(
        ask(&model, [192, 168, 226, 22], 40000, 6),
        Some(acl::TRUSTED)
    );
    assert_eq!(ask(&model, [192, 168, 226, 22], 15001, 6), Some(acl::AUDIT));
}

#[test]
fn sixteen_rules_over_one_prefix_are_refused_by_name() {
    let mut text = String::from("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n");
    for i in 0..16 {
        text += &format!(
            "[[acl]]\naddr = \"10.0.0.0/24\"\nport = \"{}-{}\"\nproto = \"tcp\"\naction = \"deny\"\n",
            100 * i + 1,
            100 * i + 2
        );
    }
    let config = config::parse(&text, Path::new("node.toml")).unwrap();
    let error = Model::compile(&config).unwrap_err().to_string();
    assert!(
        error.contains("10.0.0.0/24") && error.contains("16"),
        "{error}"
    );
}

#[test]
fn a_load_balancers_entry_has_its_own_kinds_and_what_is_down_takes_nothing() {
    let text = "[[nat]]\nsystem = \"e4lb\"\nproto = \"udp\"\nto = \"10.0.0.9\"\nsource = \"vip\"\n\
        on_removed = \"reset\"\nhealth = { kind = \"tcp\" }\n\
        endpoints = [{ addr = \"10.0.0.1:53\" }, { addr = \"10.0.0.2:53\" }, { addr = \"10.0.0.3:53\", active = false }]\n";
    let mut model = compile(text);
    assert_eq!(model.nat_kinds, 0);
    let shift = nat::kind::shift(dir::INGRESS, true, false);
    assert_eq!(model.balance_kinds, nat::kind::ADDR << shift);
    assert_eq!(model.features, feature::E4LB);
    let (key, value) = model.nat.iter().next().unwrap();
    assert_eq!((key.sys, key.dir), (sys::E4LB, dir::INGRESS));
    assert_eq!(value.options, option::SOURCE_VIP | option::RESET);
    let head = format!("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n{text}");
    let config = config::parse(&head, Path::new("node.toml")).unwrap();
    let down = "10.0.0.1:53".parse::<SocketAddr>().unwrap();
    let (_, value) = model.set_health(&config.nat[0], |_, addr| addr == down);
    let seen: Vec<_> = value.endpoints[..3]
        .iter()
        .map(|e| (e.active, e.flags & endpoint_flag::DOWN != 0))
        .collect();
    assert_eq!(seen, [(0, true), (1, false), (0, false)]);
    assert!(value.table[..1021].iter().all(|at| *at == 1) && value.usable == 1);
    let (_, value) = model.set_health(&config.nat[0], |_, _| true);
    assert_eq!(value.usable, 0, "then `fail` decides");
}

#[test]
fn a_protected_destination_without_an_address_has_a_bucket_in_each_family() {
    let model = compile(
        r#"
        [[protect]]
        to = "10.0.0.1:80"
        proto = "tcp"
        new_per_s = 1000
        [[protect]]
        to = "any"
        proto = "udp"
        new_per_s = 1
        "#,
    );
    let mut keys: Vec<_> = model
        .guard
        .iter()
        .map(|(k, b)| (k.v6, k.proto, b.per_s))
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, [(0, 6, 1000), (0, 17, 1), (1, 17, 1)]);
    let any = nat::kind::ANY;
    let expected = nat::kind::ADDR_PORT << guard::shift(false, false)
        | any << guard::shift(true, false)
        | any << guard::shift(true, true);
    assert_eq!(model.guard_kinds, expected);
    assert_eq!(compile("").guard_kinds, 0);
}
