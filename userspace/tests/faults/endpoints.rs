//! Endpoints that come and go under connections.

use std::io::{Read, Write};
use std::net::TcpStream;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::http::{connect, serve};
use crate::traffic::{alone, at, done, lab, on, spawn_on};

/// Servers on the node that answer each byte with their own number.
pub fn name_servers(lab: &Lab, listeners: [&'static str; 2]) {
    on(lab, Role::Node, move || {
        for (number, listener) in listeners.into_iter().enumerate() {
            serve(at(listener), move |mut stream| {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    if stream.write_all(&[number as u8]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Which server a connection is at.
pub fn who_answers(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut byte = [0];
    stream.write_all(&[9])?;
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

#[test]
fn an_endpoint_that_goes_takes_no_new_connection_and_keeps_those_it_has() {
    let _alone = alone();
    let lab = lab("drain", "");
    name_servers(&lab, ["192.168.226.22:7001", "192.168.226.22:7002"]);
    let set = |endpoints: &[&str]| {
        let mut words = vec!["nat", "add", "--direction", "egress", "--proto", "tcp"];
        words.extend(["--to", "20.0.0.2:7000"]);
        for endpoint in endpoints {
            words.extend(["--endpoint", endpoint]);
        }
        lab.fsm(&words).unwrap();
    };
    let open = |count: usize| {
        on(&lab, Role::App1, move || {
            let ask = |_| {
                let mut stream = connect(at("20.0.0.2:7000")).unwrap();
                let who = who_answers(&mut stream).unwrap();
                (stream, who)
            };
            (0..count).map(ask).collect::<Vec<_>>()
        })
    };
    let again = |streams: Vec<(TcpStream, u8)>, when: &str| {
        let asked = spawn_on(&lab, Role::App1, move || {
            streams
                .into_iter()
                .map(|(mut stream, who)| {
                    let now = who_answers(&mut stream).map_err(|e| e.to_string());
                    (now == Ok(who), (stream, who))
                })
                .collect::<Vec<_>>()
        });
        let asked = done(asked);
        assert!(
            asked.iter().all(|(same, _)| *same),
            "{when}: a connection has moved or ended"
        );
        asked
            .into_iter()
            .map(|(_, stream)| stream)
            .collect::<Vec<_>>()
    };
    set(&["192.168.226.22:7001", "192.168.226.22:7002"]);
    let first = open(40);
    let at_first = first.iter().filter(|(_, who)| *who == 0).count();
    assert!(
        (1..40).contains(&at_first),
        "both are used: {at_first} of 40"
    );
    // A weight of 0 drains; not to be named at all removes.
    for endpoints in [
        ["192.168.226.22:7001", "192.168.226.22:7002@0"].as_slice(),
        &["192.168.226.22:7001"],
    ] {
        set(endpoints);
        let new = open(20);
        assert!(new.iter().all(|(_, who)| *who == 0), "{endpoints:?}");
    }
    let first = again(first, "after the endpoint has gone");
    set(&["192.168.226.22:7001", "192.168.226.22:7002"]);
    again(first, "after it has come back");
    assert!(
        open(40).iter().any(|(_, who)| *who == 1),
        "it takes new ones again"
    );
}
