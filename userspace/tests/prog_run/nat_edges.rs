//! Translation where it is easily got wrong: checksums of zero, resets, mid-stream packets, what stands around
//! the headers.

use fsm_common::{nat::dir, reason::Reason};

use crate::{
    nat::{Case, taken},
    support::{
        Hook, LO, alone,
        frame::{ACK, Frame, L4, RST, SYN, UDP, check_sums, ext, tcp, udp},
    },
};

const NEW: &[Reason] = &[Reason::FlowNew];

#[test]
fn udp_without_a_checksum_stays_so() {
    alone(|node| {
        node.nat(dir::EGRESS, UDP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        let query = udp("10.1.0.2:40000", "20.0.0.2:53").without_sum();
        let out = node
            .run(Hook::TcIn, LO, &query.bytes())
            .translated("udp 10.1.0.2:40000 > 20.0.0.2:53", NEW);
        assert_eq!(
            out,
            query
                .with_tuple("10.1.0.2:40000", "10.0.0.1:15001")
                .without_sum()
                .bytes()
        );
        assert_eq!(out[40..42], [0, 0]);
    });
}

#[test]
fn a_checksum_of_zero_is_sent_as_ffff() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let at = if case.app.starts_with('[') { 60 } else { 40 };
        // A payload of the checksum itself makes the sum come out as 0xffff, so its complement as zero.
        let after = udp(app, gateway).payload(&[0, 0]).bytes();
        let query = udp(app, server).payload(&after[at..at + 2]);
        let out = node
            .run(Hook::TcIn, LO, &query.bytes())
            .translated(&format!("udp {app} > {server}"), NEW);
        assert_eq!(out[at..at + 2], [0xff, 0xff]);
        assert_eq!(out, query.with_tuple(app, gateway).bytes());
    });
}

#[test]
fn a_reset_of_an_unknown_flow_makes_none_and_ends_no_port() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        for flags in [RST, RST | ACK] {
            node.run(Hook::TcIn, LO, &tcp(app, server, flags).bytes())
                .untouched(&[]);
            node.run(Hook::TcOut, LO, &tcp(gateway, app, flags).bytes())
                .untouched(&[]);
        }
        let there = format!("tcp {app} > {server}");
        let _ = node
            .run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes())
            .translated(&there, NEW);
        let _ = node
            .run(Hook::TcIn, LO, &tcp(app, server, RST).at(2, 0).bytes())
            .translated(&there, &[]);
    });
}

#[test]
fn mid_stream_packets_options_and_data_in_a_syn_are_taken_too() {
    taken(|node, case| {
        let Case {
            app,
            server,
            other_server,
            gateway,
        } = case;
        let data = tcp(app, server, ACK).payload(b"in the middle");
        let out = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&format!("tcp {app} > {server}"), NEW);
        assert_eq!(out, data.with_tuple(app, gateway).bytes());
        // RFC 7413
        let options = vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
        let open = Frame {
            l4: L4::Tcp {
                flags: SYN,
                options,
            },
            ..tcp(app, other_server, SYN)
        }
        .payload(b"GET /");
        let seen = node.run(Hook::TcIn, LO, &open.bytes());
        let out = seen.translated(
            &format!("tcp {app} > {other_server}"),
            &[Reason::NatPortMoved, Reason::FlowNew],
        );
        assert_eq!(&out[out.len() - 5..], b"GET /");
    });
}

#[test]
fn tags_options_and_extension_headers_stay_around_what_is_translated() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let is_v6 = case.app.starts_with('[');
        let mut syn = tcp(app, server, SYN).tag(0x88a8, 7).tag(0x8100, 5);
        if is_v6 {
            syn = syn.ext(ext(0, 8)).ext(ext(60, 24));
        } else {
            syn.options = vec![1; 40];
        }
        let seen = node.run(Hook::TcIn, LO, &syn.bytes());
        assert_eq!(seen.frame, syn.with_tuple(app, gateway).bytes());
        let untagged = [&seen.frame[..12], &seen.frame[20..]].concat();
        assert_eq!(check_sums(&untagged), Ok(()));
    });
}

#[test]
fn a_device_that_is_not_ours_is_left_alone() {
    taken(|node, case| {
        node.maps
            .iface
            .set(LO, fsm_common::maps::IfaceEntry::ZERO, 0)
            .unwrap();
        for hook in [Hook::Xdp, Hook::TcIn, Hook::TcOut] {
            let seen = node.run(hook, LO, &tcp(case.app, case.server, SYN).bytes());
            assert_eq!(
                (seen.verdict, &seen.frame, seen.made),
                (None, &seen.before, 0)
            );
            assert_eq!(seen.action, if hook == Hook::Xdp { 2 } else { -1 });
        }
    });
}
