//! ICMP errors about translated packets reach the app with its own addresses outside and inside.

use fsm_common::reason::Reason;

use crate::{
    nat::{Case, taken},
    support::{
        Hook, LO,
        frame::{ACK, Frame, icmp, tcp},
    },
};

/// Address of "address:port".
fn host(socket: &str) -> String {
    socket
        .parse::<std::net::SocketAddr>()
        .unwrap()
        .ip()
        .to_string()
}

/// An error that quotes the IP header and eight bytes of `about`; "fragmentation needed", "packet too big".
fn error(src: &str, dst: &str, about: &Frame) -> Frame {
    let (kind, code, header) = if about.src.is_ipv6() {
        (2, 0, 40)
    } else {
        (3, 4, 20)
    };
    let payload = [&[0, 0, 5, 0], &about.bytes()[14..14 + header + 8]].concat();
    let mut error = icmp(&host(src), &host(dst), kind).payload(&payload);
    error.l4 = crate::support::frame::L4::Icmp(kind, code);
    error
}

#[test]
fn an_error_by_the_gateway_or_a_router_names_what_the_app_has_sent() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let router = if app.starts_with('[') {
            "[fd77::1]:0"
        } else {
            "77.0.0.1:0"
        };
        let _ = node.run(Hook::TcIn, LO, &tcp(app, server, ACK).bytes());
        let (sent, seen) = (tcp(app, server, ACK), tcp(app, gateway, ACK));
        for (from, expected) in [(gateway, server), (&router, &router)] {
            let out = node
                .run(Hook::TcOut, LO, &error(from, app, &seen).bytes())
                .error_translated();
            assert_eq!(out, error(expected, app, &sent).bytes(), "{from}");
        }
    });
}

#[test]
fn an_error_by_the_app_names_what_the_gateway_has_sent() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let _ = node.run(Hook::TcIn, LO, &tcp(app, server, ACK).bytes());
        let (sent, seen) = (tcp(gateway, app, ACK), tcp(server, app, ACK));
        let out = node
            .run(Hook::TcIn, LO, &error(app, server, &seen).bytes())
            .error_translated();
        assert_eq!(out, error(app, gateway, &sent).bytes());
    });
}

#[test]
fn an_error_about_no_translated_flow_passes_untouched() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let about = tcp(app, gateway, ACK);
        node.run(Hook::TcOut, LO, &error(gateway, app, &about).bytes())
            .untouched(&[]);
        let _ = node.run(Hook::TcIn, LO, &tcp(app, server, ACK).bytes());
        // Too little of it is quoted.
        let whole = error(gateway, app, &about);
        for len in 0..whole.payload.len() - 4 {
            let short = whole.clone().payload(&whole.payload[..len]).bytes();
            node.run(Hook::TcOut, LO, &short).untouched(&[]);
        }
    });
}

#[test]
fn an_error_is_denied_with_its_protocol() {
    taken(|node, case| {
        let about = tcp(case.app, case.gateway, ACK);
        let _ = node.run(Hook::TcIn, LO, &tcp(case.app, case.server, ACK).bytes());
        let error = error(case.gateway, case.app, &about).bytes();
        node.set(|settings| {
            settings.ipv4 |= fsm_common::flags::OTH_DENY;
            settings.ipv6 |= fsm_common::flags::OTH_DENY;
        });
        node.run(Hook::TcOut, LO, &error).dropped(Reason::ProtoDeny);
        node.flags(fsm_common::flags::DEFAULT);
    });
}
