//! Map entries in the shapes of the predecessor's dumps (flomesh xnet): `{"key":{…},"value":{…}}`,
//! enums by its names, ports in host order.
//!
//! Two of its slips are not repeated: ACL `id` and `flag` are not swapped, and trace switches are
//! booleans. What it kept and this program does not (sequence numbers) is left out.

mod flow;

use fsm_common::flags::FLAGS;
use fsm_common::maps::{Origin, OriginKey, TraceIp, TraceOn, TracePort, Xcfg, sys};
use fsm_common::nat::{NatEndpoint, NatKey, NatValue, dir};
use fsm_common::policy::{PROTO_OTHER, acl};
use fsm_common::wire::l3::IpProto;
use serde_json::{Map, Value, json};

pub use flow::flow;

use super::{acl::Entry, port, wide_ip};

/// Names of the dumps, as `map dump` takes them.
pub const DUMPS: [&str; 7] = [
    "fsm_xnat",
    "fsm_xflow",
    "fsm_xopt",
    "fsm_xacl",
    "fsm_xcfg",
    "fsm_trip",
    "fsm_trpt",
];

fn entry(key: Value, value: Value) -> Value {
    json!({"key": key, "value": value})
}

fn sys_name(number: u32) -> &'static str {
    const MESH: u32 = sys::MESH as u32;
    const E4LB: u32 = sys::E4LB as u32;
    match number {
        0 => "Noop",
        MESH => "Mesh",
        E4LB => "E4lb",
        _ => "",
    }
}

fn proto_name(number: u8) -> &'static str {
    match IpProto(number) {
        IpProto::TCP => "IPPROTO_TCP",
        IpProto::UDP => "IPPROTO_UDP",
        IpProto::ICMP => "IPPROTO_ICMP",
        IpProto::ICMPV6 => "IPPROTO_ICMPV6",
        IpProto(PROTO_OTHER) => "IPPROTO_OTHER",
        _ => "",
    }
}

/// The colon form of a MAC.
fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Entry of `fsm_xacl`, of one protocol.
pub fn acl(said: &Entry) -> Value {
    let name = match said.acl {
        acl::DENY => "ACL_DENY",
        acl::AUDIT => "ACL_AUDIT",
        acl::TRUSTED => "ACL_TRUSTED",
        _ => "",
    };
    entry(
        json!({
            "sys": sys_name(sys::MESH.into()), "addr": said.addr, "port": said.port,
            "proto": proto_name(said.proto),
        }),
        json!({"acl": name, "id": said.id, "flag": 0}),
    )
}

/// Entry of `fsm_xnat`.
pub fn nat(key: &NatKey, value: &NatValue) -> Value {
    let v6 = key.v6 != 0;
    let used = usize::from(value.ep_cnt).min(value.endpoints.len());
    let endpoints: Vec<Value> = value.endpoints[..used]
        .iter()
        .map(|ep| nat_endpoint(ep, v6))
        .collect();
    let dir = match key.dir {
        dir::INGRESS => "TC_DIR_IGR",
        dir::EGRESS => "TC_DIR_EGR",
        _ => "",
    };
    entry(
        json!({
            "sys": sys_name(key.sys.into()), "daddr": wide_ip(key.daddr, v6), "dport": port(key.dport),
            "proto": proto_name(key.proto), "v6": v6, "tc_dir": dir,
        }),
        json!({"ep_sel": value.ep_sel, "ep_cnt": value.ep_cnt, "eps": endpoints}),
    )
}

fn nat_endpoint(ep: &NatEndpoint, v6: bool) -> Value {
    // The seed's own MAC for the device (omac) is asked of the kernel here, so never set.
    json!({
        "rmac": mac(ep.mac), "raddr": wide_ip(ep.addr, v6), "rport": port(ep.port), "ofi": ep.ifindex,
        "oflags": 0, "omac_set": false, "omac": mac([0; 6]), "active": ep.active != 0,
    })
}

/// Entry of `fsm_xopt`.
pub fn origin(key: &OriginKey, value: &Origin) -> Value {
    let (key_v6, value_v6) = (key.v6 != 0, value.v6 != 0);
    entry(
        json!({
            "sys": sys_name(key.sys.into()), "local_addr": wide_ip(key.laddr, key_v6),
            "remote_addr": wide_ip(key.raddr, key_v6), "local_port": port(key.lport),
            "remote_port": port(key.rport), "proto": proto_name(key.proto), "v6": key_v6,
        }),
        json!({
            "daddr": wide_ip(value.daddr, value_v6), "saddr": wide_ip(value.saddr, value_v6),
            "dport": port(value.dport), "sport": port(value.sport), "proto": proto_name(value.proto),
            "v6": value_v6,
        }),
    )
}

/// Entry of `fsm_trip`.
pub fn trace_ip(key: &TraceIp, value: &TraceOn) -> Value {
    // The key has no family; the seed tells it by the same test.
    let v6 = key.addr[4..] != [0; 12];
    entry(
        json!({"sys": sys_name(key.sys), "addr": wide_ip(key.addr, v6)}),
        trace_on(value),
    )
}

/// Entry of `fsm_trpt`.
pub fn trace_port(key: &TracePort, value: &TraceOn) -> Value {
    entry(
        json!({"sys": sys_name(key.sys), "port": port(key.port)}),
        trace_on(value),
    )
}

fn trace_on(value: &TraceOn) -> Value {
    json!({"trace_tc_ingress_on": value.ingress != 0, "trace_tc_egress_on": value.egress != 0})
}

/// Entry of `fsm_xcfg`.
pub fn cfg(number: u32, value: &Xcfg) -> Value {
    let flags = json!({"IPv4": flag_word(value.ipv4), "IPv6": flag_word(value.ipv6)});
    entry(json!(sys_name(number)), json!({"flags": flags}))
}

fn flag_word(bits: u64) -> Value {
    let mut word = Map::new();
    word.insert("magic".into(), format!("{bits:X}").into());
    word.insert("mask".into(), format!("{bits:064b}").into());
    for (name, mask, _) in FLAGS {
        word.insert((*name).into(), (bits & mask != 0).into());
    }
    word.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_entries_have_the_seeds_shape() {
        let said = Entry {
            addr: "10.0.0.1".parse().unwrap(),
            port: 8080,
            proto: 6,
            acl: 2,
            id: 7,
        };
        let expected = json!({
            "key": {"sys": "Mesh", "addr": "10.0.0.1", "port": 8080, "proto": "IPPROTO_TCP"},
            "value": {"acl": "ACL_TRUSTED", "id": 7, "flag": 0},
        });
        assert_eq!(acl(&said), expected);
        let icmp = acl(&Entry { proto: 58, ..said });
        assert_eq!(icmp["key"]["proto"], "IPPROTO_ICMPV6");
    }

    #[test]
    fn nat_entries_show_the_endpoints_in_use() {
        let key = NatKey {
            proto: 17,
            dir: 1,
            sys: 1,
            dport: [0, 53],
            ..NatKey::ZERO
        };
        let mut value = NatValue {
            ep_cnt: 1,
            ..NatValue::ZERO
        };
        value.endpoints[0] = NatEndpoint {
            port: [0x3a, 0xcd],
            active: 1,
            ..NatEndpoint::ZERO
        };
        value.endpoints[0].addr[..4].copy_from_slice(&[192, 168, 0, 1]);
        let expected = json!({
            "key": {"sys": "Mesh", "daddr": "0.0.0.0", "dport": 53, "proto": "IPPROTO_UDP",
                "v6": false, "tc_dir": "TC_DIR_EGR"},
            "value": {"ep_sel": 0, "ep_cnt": 1, "eps": [{
                "rmac": "00:00:00:00:00:00", "raddr": "192.168.0.1", "rport": 15053, "ofi": 0,
                "oflags": 0, "omac_set": false, "omac": "00:00:00:00:00:00", "active": true,
            }]},
        });
        assert_eq!(nat(&key, &value), expected);
    }

    #[test]
    fn a_count_beyond_the_endpoints_does_not_panic() {
        let value = NatValue {
            ep_cnt: u16::MAX,
            ..NatValue::ZERO
        };
        let eps = &nat(&NatKey::ZERO, &value)["value"]["eps"];
        assert_eq!(eps.as_array().map(Vec::len), Some(128));
    }

    #[test]
    fn flags_are_a_word_and_names() {
        let dump = cfg(
            1,
            &Xcfg {
                ipv4: 1 << 22,
                ..Xcfg::ZERO
            },
        );
        let word = &dump["value"]["flags"]["IPv4"];
        assert_eq!(
            (&dump["key"], &word["magic"]),
            (&json!("Mesh"), &json!("400000"))
        );
        assert_eq!(word["mask"].as_str().map(str::len), Some(64));
        assert_eq!(
            (&word["acl_check_on"], &word["deny_all"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(word.as_object().map(Map::len), Some(32));
    }

    #[test]
    fn traces_and_origins_have_the_seeds_shape() {
        let on = TraceOn {
            ingress: 1,
            ..TraceOn::ZERO
        };
        let port = trace_port(
            &TracePort {
                sys: 1,
                port: [0, 80],
                pad: [0; 2],
            },
            &on,
        );
        assert_eq!(port["key"], json!({"sys": "Mesh", "port": 80}));
        assert_eq!(
            port["value"],
            json!({"trace_tc_ingress_on": true, "trace_tc_egress_on": false})
        );
        let mut addr = TraceIp {
            sys: 1,
            ..TraceIp::ZERO
        };
        addr.addr[..4].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(
            trace_ip(&addr, &on)["key"],
            json!({"sys": "Mesh", "addr": "1.2.3.4"})
        );
        let key = OriginKey {
            proto: 6,
            sys: 1,
            rport: [0, 9],
            ..OriginKey::ZERO
        };
        let dump = origin(
            &key,
            &Origin {
                proto: 6,
                dport: [0, 80],
                ..Origin::ZERO
            },
        );
        assert_eq!(dump["key"]["remote_port"], 9);
        assert_eq!(dump["value"]["dport"], 80);
    }
}
