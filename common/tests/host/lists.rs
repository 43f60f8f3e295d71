//! Lists that other programs rely on: flags, reasons, counters, maps.

use std::collections::HashSet;

use fsm_common::{
    flags::{self, FLAGS},
    maps::{IFACE_PROBES, IFACE_SLOTS, MAPS, MapKind, iface_flag, skip},
    reason::{REASON_SLOTS, Reason},
    stats::{Hook, IfaceStats, Verdict},
};

/// The seed's flags, in the order of its documentation.
const SEED: &str = "deny_all allow_all tcp_proto_deny_all tcp_proto_allow_all tcp_proto_allow_nat_escape \
    udp_proto_deny_all udp_proto_allow_all udp_proto_allow_nat_escape oth_proto_deny_all \
    tcp_nat_by_ip_port_on tcp_nat_by_ip_on tcp_nat_all_off tcp_nat_opt_on tcp_nat_opt_with_local_addr_on \
    tcp_nat_opt_with_local_port_on udp_nat_by_ip_port_on udp_nat_by_ip_on udp_nat_by_port_on udp_nat_all_off \
    udp_nat_opt_on udp_nat_opt_with_local_addr_on udp_nat_opt_with_local_port_on acl_check_on trace_hdr_on \
    trace_nat_on trace_opt_on trace_acl_on trace_flow_on trace_by_ip_on trace_by_port_on";

fn is_snake_case(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn flags_have_the_seeds_names_and_a_bit_each() {
    let names: Vec<&str> = FLAGS.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(names, SEED.split_whitespace().collect::<Vec<_>>());
    for (position, (name, bit, help)) in FLAGS.iter().enumerate() {
        assert_eq!(*bit, 1 << position, "{name}");
        assert!(!help.is_empty(), "{name}");
    }
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
}

#[test]
fn by_default_nothing_is_denied_or_let_through_as_a_whole() {
    let known = FLAGS.iter().fold(0, |all, (_, bit, _)| all | bit);
    assert_eq!(flags::DEFAULT & !known, 0);
    let sweeping = flags::DENY_ALL
        | flags::ALLOW_ALL
        | flags::TCP_DENY
        | flags::TCP_ALLOW
        | flags::UDP_DENY
        | flags::UDP_ALLOW
        | flags::OTH_DENY;
    assert_eq!(flags::DEFAULT & sweeping, 0);
    assert_ne!(flags::DEFAULT & flags::ACL_ON, 0);
}

#[test]
fn reasons_have_a_counter_and_a_name_each() {
    let numbers: Vec<u32> = Reason::ALL.iter().map(|&reason| reason as u32).collect();
    assert!(numbers.iter().all(|&number| number < REASON_SLOTS));
    assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len());
    let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        assert!(
            is_snake_case(reason.name()) && !reason.help().is_empty(),
            "{reason:?}"
        );
    }
    assert!(Reason::AclDeny.is_drop() && !Reason::TableFullOpen.is_drop());
}

#[test]
fn reasons_are_listed_in_the_order_of_their_numbers() {
    assert!(Reason::ALL.is_sorted_by_key(|&reason| reason as u32));
}

#[test]
fn counters_are_indexed_by_their_order() {
    for (position, hook) in Hook::ALL.into_iter().enumerate() {
        assert_eq!(hook as usize, position);
    }
    for (position, verdict) in Verdict::ALL.into_iter().enumerate() {
        assert_eq!(verdict as usize, position);
    }
    let counts = IfaceStats::ZERO.counts;
    assert_eq!(
        (counts.len(), counts[0].len()),
        (Hook::ALL.len(), Verdict::ALL.len())
    );
    let labels: HashSet<_> = Hook::ALL.iter().map(|hook| hook.labels()).collect();
    assert_eq!(labels.len(), Hook::ALL.len());
}

#[test]
fn maps_have_names_that_the_kernel_takes_and_sizes_that_it_aligns() {
    let names: HashSet<&str> = MAPS.iter().map(|map| map.name).collect();
    assert_eq!(names.len(), MAPS.len());
    for map in MAPS {
        // BPF_OBJ_NAME_LEN
        assert!(
            is_snake_case(map.name) && map.name.len() < 16,
            "{}",
            map.name
        );
        assert!(map.max_entries > 0 && map.key_size % 4 == 0, "{}", map.name);
        if matches!(
            map.kind,
            MapKind::Array | MapKind::PerCpuArray | MapKind::ProgramArray
        ) {
            assert_eq!(map.key_size, 4, "{}", map.name);
        }
    }
    let reasons = MAPS.iter().find(|map| map.name == "fsm_reason").unwrap();
    assert_eq!(reasons.max_entries, REASON_SLOTS);
}

#[test]
fn interface_slots_can_be_masked_and_bits_do_not_overlap() {
    assert!(IFACE_SLOTS.is_power_of_two() && IFACE_PROBES < IFACE_SLOTS);
    assert_eq!(
        iface_flag::PEER | iface_flag::XDP_TX | iface_flag::REDIRECT,
        7
    );
    assert_eq!(skip::INBOUND | skip::OUTBOUND, 3);
}
