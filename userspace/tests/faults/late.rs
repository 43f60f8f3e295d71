//! Packets in the middle of connections that the data path knows nothing of.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::sleep;
use std::time::Duration;

use fsm_fastpath::lab::Role;

use crate::endpoints::{name_servers, who_answers};
use crate::traffic::http::{connect, serve};
use crate::traffic::{alone, at, done, drops, flows, lab, notes, on, pattern, spawn_on};

#[test]
fn connections_without_a_flow_go_on_at_their_endpoint_and_make_one_flow_each() {
    let _alone = alone();
    let lab = lab("mid", "");
    for (server, listeners) in [
        (
            "20.0.0.2:7000",
            ["192.168.226.22:7001", "192.168.226.22:7002"],
        ),
        ("[fd20::2]:7000", ["[fd22::22]:7001", "[fd22::22]:7002"]),
    ] {
        name_servers(&lab, listeners);
        let [one, two] = listeners;
        lab.fsm(&[
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "tcp",
            "--to",
            server,
            "--endpoint",
            one,
            "--endpoint",
            two,
        ])
        .unwrap();
        const CONNECTIONS: usize = 40;
        let (to_test, from_app) = mpsc::channel();
        let (to_app, from_test) = mpsc::channel::<()>();
        let app = spawn_on(&lab, Role::App1, move || {
            let mut streams: Vec<_> = (0..CONNECTIONS)
                .map(|_| connect(at(server)).unwrap())
                .collect();
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
        assert_eq!(
            used,
            BTreeSet::from([Ok(0), Ok(1)]),
            "both endpoints are used"
        );
        for _ in 0..3 {
            let made = notes(&lab, "flow_new");
            lab.fsm(&["flow", "flush", "--port", "7000"]).unwrap();
            assert!(flows(&lab, &["--port", "7000"]).is_empty());
            for _ in 0..5 {
                to_app.send(()).unwrap();
                assert_eq!(from_app.recv().unwrap(), first, "{server}");
            }
            assert_eq!(
                notes(&lab, "flow_new") - made,
                CONNECTIONS as u64,
                "{server}"
            );
            assert_eq!(flows(&lab, &["--port", "7000"]).len(), CONNECTIONS);
        }
        drop(to_app);
        done(app);
    }
}

/// The listener's own packets may be the first that are seen afterwards: let out untranslated, they would be
/// answered with a RST that ends the listener's connection.
#[test]
fn an_answer_without_a_flow_waits_for_its_receiver_and_ends_nothing() {
    let _alone = alone();
    let lab = lab("push", "");
    for (role, serves, to) in [
        (Role::App1, Role::Outside, "20.0.0.2:8090"),
        (Role::App1, Role::Outside, "[fd20::2]:8090"),
        (Role::Client, Role::App1, "10.1.0.2:8090"),
        (Role::Client, Role::App1, "[fd10:1::2]:8090"),
    ] {
        let (push, pushes) = mpsc::channel::<()>();
        let pushes = Arc::new(Mutex::new(pushes));
        on(&lab, serves, move || {
            serve(at(to), move |mut stream| {
                let mut question = [0; 4];
                stream.read_exact(&mut question).unwrap();
                stream.write_all(b"one ").unwrap();
                pushes.lock().unwrap().recv().unwrap();
                stream.write_all(&pattern(50_000, 6)).unwrap();
                stream.read_exact(&mut question).unwrap();
                stream.write_all(b"last").unwrap();
            });
        });
        let (to_test, from_app) = mpsc::channel();
        let (to_app, from_test) = mpsc::channel::<()>();
        let app = spawn_on(&lab, role, move || {
            let mut stream = connect(at(to)).unwrap();
            stream.write_all(b"ask ").unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            to_test.send(()).unwrap();
            from_test.recv().unwrap();
            stream.write_all(b"more").unwrap();
            let mut rest = Vec::new();
            let read = stream.read_to_end(&mut rest);
            (read.map_err(|e| e.to_string()), rest)
        });
        from_app.recv().unwrap();
        let before = drops(&lab, "answer_orphan");
        lab.fsm(&["flow", "flush"]).unwrap();
        push.send(()).unwrap();
        sleep(Duration::from_millis(400));
        assert!(drops(&lab, "answer_orphan") > before, "{to}");
        to_app.send(()).unwrap();
        let (read, rest) = done(app);
        assert_eq!(read, Ok(50_004), "{to}");
        assert_eq!(
            rest,
            [pattern(50_000, 6), b"last".to_vec()].concat(),
            "{to}"
        );
    }
    assert_eq!(notes(&lab, "nat_port_moved"), 0);
}
