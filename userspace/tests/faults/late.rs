//! Packets in the middle of connections that the data path knows nothing of.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::http::{connect, serve};
use crate::traffic::{alone, at, done, flows, lab, notes, on, pattern, spawn_on};

/// Servers on the node that answer each byte with their own number.
fn name_servers(lab: &Lab, listeners: [&'static str; 2]) {
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

fn who_answers(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut byte = [0];
    stream.write_all(&[9])?;
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

#[test]
fn connections_without_a_flow_go_on_at_their_endpoint_and_make_one_flow_each() {
    let _alone = alone();
    let lab = lab("mid", "");
    for (server, listeners) in [
        ("20.0.0.2:7000", ["192.168.226.22:7001", "192.168.226.22:7002"]),
        ("[fd20::2]:7000", ["[fd22::22]:7001", "[fd22::22]:7002"]),
    ] {
        name_servers(&lab, listeners);
        let [one, two] = listeners;
        lab.fsm(&[
            "nat", "add", "--direction", "egress", "--proto", "tcp", "--to", server, "--endpoint",
            one, "--endpoint", two,
        ])
        .unwrap();
        const CONNECTIONS: usize = 40;
        let (to_test, from_app) = std::sync::mpsc::channel();
        let (to_app, from_test) = std::sync::mpsc::channel::<()>();
        let app = spawn_on(&lab, Role::App1, move || {
            let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect(at(server)).unwrap()).collect();
            let mut all = || -> Vec<_> {
                streams
                    .iter_mut()
                    .map(|stream| who_answers(stream).map_err(|e| e.to_string()))
                    .collect()
            };
            to_test.send(all()).unwrap();
            while from_test.recv().is_ok() {
                to_test.send(all()).unwrap();
            }
        });
        let first = from_app.recv().unwrap();
        let used: BTreeSet<_> = first.iter().cloned().collect();
        assert_eq!(used, BTreeSet::from([Ok(0), Ok(1)]), "both endpoints are used");
        for _ in 0..3 {
            let made = notes(&lab, "flow_new");
            lab.fsm(&["flow", "flush", "--port", "7000"]).unwrap();
            assert!(flows(&lab, &["--port", "7000"]).is_empty());
            for _ in 0..5 {
                to_app.send(()).unwrap();
                assert_eq!(from_app.recv().unwrap(), first, "{server}");
            }
            assert_eq!(notes(&lab, "flow_new") - made, CONNECTIONS as u64, "{server}");
            assert_eq!(flows(&lab, &["--port", "7000"]).len(), CONNECTIONS);
        }
        drop(to_app);
        done(app);
    }
}

/// A flush while the app receives: the listener's own packets may be the first that are seen.
#[test]
fn a_transfer_goes_on_through_flushes() {
    let _alone = alone();
    let lab = lab("flush", "");
    const BYTES: usize = 60_000_000;
    on(&lab, Role::Outside, || {
        serve(at("20.0.0.2:8090"), |mut stream| {
            let data = pattern(BYTES, 3);
            for part in data.chunks(200_000) {
                if stream.write_all(part).is_err() {
                    return;
                }
                sleep(Duration::from_millis(10));
            }
        });
    });
    let app = spawn_on(&lab, Role::App1, || {
        let mut stream = connect(at("20.0.0.2:8090")).unwrap();
        let mut data = Vec::new();
        let read = stream.read_to_end(&mut data);
        (read.map_err(|e| e.to_string()), data == pattern(BYTES, 3))
    });
    for _ in 0..8 {
        sleep(Duration::from_millis(300));
        lab.fsm(&["flow", "flush"]).unwrap();
    }
    assert_eq!(done(app), (Ok(BYTES), true));
}
