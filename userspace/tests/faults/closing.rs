//! The end of a connection: half-close, resets that are not its own, a port used again at once.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread::sleep;
use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::http::{ask, ask_last, connect, connect_from, serve};
use crate::traffic::{alone, at, flows, frame, lab, notes, on, pattern, raw, set_option, spawn_on};

/// Bytes of the long answer.
const ANSWER: usize = 20_000_000;

#[test]
fn a_client_that_shuts_its_sending_side_still_gets_all_of_the_answer() {
    let _alone = alone();
    let lab = lab("half", "");
    for server in ["20.0.0.2:8090", "[fd20::2]:8090"] {
        let server = at(server);
        on(&lab, Role::Outside, move || {
            serve(server, |mut stream| {
                let mut question = Vec::new();
                stream.read_to_end(&mut question).unwrap();
                assert_eq!(question, b"all of it");
                stream.write_all(&pattern(ANSWER, 1)).unwrap();
            });
        });
        let answer = on(&lab, Role::App1, move || {
            let mut stream = connect(server).unwrap();
            stream.write_all(b"all of it").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            (read.map_err(|e| e.to_string()), answer)
        });
        assert_eq!(answer.0, Ok(ANSWER), "{server}");
        assert!(answer.1 == pattern(ANSWER, 1), "{server}: other bytes");
    }
    // Also inbound, and the connection has gone through all of its states.
    let answered = on(&lab, Role::Client, || {
        let mut stream = connect(at("10.1.0.2:80")).unwrap();
        let text = "GET /who HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answered.contains("\"server\":\"10.1.0.2\""), "{answered}");
    let rows = flows(&lab, &["--proto", "tcp"]);
    let open: Vec<_> = rows.iter().filter(|r| r["state"] != "TIME_WAIT").collect();
    assert!(open.is_empty(), "not seen through to the end: {open:?}");
}

/// Sends resets of a client's connection to `10.1.0.2:80` from another host, as somebody who guesses would.
fn forge(lab: &Lab, port: u16, numbers: Vec<u32>) {
    let node = raw::mac(lab, Role::Node, "up0");
    on(lab, Role::Outside, move || {
        let socket = raw::open("eth0");
        for number in numbers {
            let src = format!("20.0.0.10:{port}");
            let reset = frame::tcp(&src, "10.1.0.2:80", frame::RST).at(number, 0);
            socket
                .send(&raw::address(reset, "eth0", node).bytes())
                .unwrap();
        }
    });
}

#[test]
fn a_reset_that_is_not_the_connections_own_closes_nothing() {
    let _alone = alone();
    let lab = lab("rst", "\n[conntrack]\ntcp_close_s = 1\n");
    let (to_test, from_client) = std::sync::mpsc::channel();
    let (to_client, from_test) = std::sync::mpsc::channel::<()>();
    let client = spawn_on(&lab, Role::Client, move || {
        let listener = raw::open("eth0");
        let mut stream = connect(at("10.1.0.2:80")).unwrap();
        ask(&mut stream, "/who").unwrap();
        let port = stream.local_addr().unwrap().port();
        // What the node has acknowledged last is the next number of the client's.
        let mut next = 0;
        raw::listen(&listener, Duration::from_millis(300), |bytes| {
            if let Some(seen) = raw::tcp4(bytes).filter(|seen| seen.ports == (80, port)) {
                next = seen.numbers.1;
            }
            false
        })
        .unwrap();
        to_test.send((port, next)).unwrap();
        let mut bodies = Vec::new();
        while from_test.recv().is_ok() {
            bodies.push(ask(&mut stream, "/who").map_err(|e| e.to_string()));
        }
        bodies
    });
    let (port, next) = from_client.recv().unwrap();
    assert_ne!(next, 0, "the connection was not seen");
    let filter = port.to_string();
    let filter = ["--src", "20.0.0.10", "--port", &filter];
    let before = notes(&lab, "tcp_out_of_window");

    // All over the space of numbers, and some within the window that are not the next one.
    let mut numbers: Vec<u32> = (0..64_u32)
        .map(|n| next.wrapping_add(n << 26 | 1 << 25))
        .collect();
    numbers.extend([1, 100, 1000, 20_000].map(|n| next.wrapping_add(n)));
    numbers.extend([1, 100, 1000].map(|n| next.wrapping_sub(n)));
    let count = numbers.len() as u64;
    forge(&lab, port, numbers);
    sleep(Duration::from_millis(200));
    let rows = flows(&lab, &filter);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["state"], "ESTABLISHED", "{rows:?}");
    assert_eq!(notes(&lab, "tcp_out_of_window") - before, count);
    to_client.send(()).unwrap();
    // Longer than a closed flow may be idle.
    sleep(Duration::from_secs(4));
    assert_eq!(flows(&lab, &filter)[0]["state"], "ESTABLISHED");
    to_client.send(()).unwrap();
    drop(to_client);
    let bodies = crate::traffic::done(client);
    assert!(
        bodies.len() == 2 && bodies.iter().all(Result::is_ok),
        "{bodies:?}"
    );
}

#[test]
fn a_reset_at_the_next_number_closes_the_flow() {
    let _alone = alone();
    let lab = lab("rstok", "");
    let port = on(&lab, Role::Client, || {
        let mut stream = connect(at("10.1.0.2:80")).unwrap();
        ask(&mut stream, "/who").unwrap();
        // Closed with unread data or lingering off, a socket sends RST.
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let length = size_of::<libc::linger>() as libc::socklen_t;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
        // SAFETY: pointer and length describe `linger`.
        let set = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                length,
            )
        };
        assert_eq!(set, 0);
        stream.local_addr().unwrap().port()
    });
    sleep(Duration::from_millis(100));
    let rows = flows(&lab, &["--src", "20.0.0.10", "--port", &port.to_string()]);
    assert_eq!(rows[0]["state"], "CLOSE", "{rows:?}");
}

#[test]
fn one_source_port_serves_a_thousand_connections_one_after_the_other() {
    let _alone = alone();
    let lab = lab("reuse", "");
    const ROUNDS: usize = 1000;
    for (role, from, to) in [
        (Role::App1, "10.1.0.2:23456", "20.0.0.2:8080"),
        (Role::Client, "[fd20::10]:23456", "[fd10:1::2]:80"),
    ] {
        let failed = on(&lab, role, move || {
            let mut failed = Vec::new();
            for round in 0..ROUNDS {
                let answered = connect_from(at(from), at(to)).and_then(|mut stream| {
                    set_option(&stream, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
                    // The server closes first, so that the waiting is not on this side.
                    ask_last(&mut stream, "/who")
                });
                if let Err(error) = answered {
                    failed.push((round, error.to_string()));
                }
            }
            failed
        });
        assert!(
            failed.is_empty(),
            "{from}: {} failed: {:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
    }
    assert_eq!(
        flows(&lab, &["--port", "23456"]).len(),
        2,
        "one flow a tuple"
    );
    assert_eq!(notes(&lab, "nat_port_moved"), 0);
}
