//! What the kernel is told of flows, and what their ends are.

use fsm_common::{
    escalate::{Escalated, Judged, taken, verdict},
    flow::FlowKey,
    maps::name,
    parse::{Packet, parse},
    stats::Hook,
};

use super::{
    frame::{ACK, Frame, RST, SYN, TCP, check_sums, fragment_header, tcp, udp},
    stage::{ALLOW, DENY, DROP, RESET, Stage, alone, empty, settled, sh, whole},
};

const V4: [&str; 2] = ["10.0.0.1:1000", "10.0.0.2:80"];
const V6: [&str; 2] = ["[fd00::1]:1000", "[fd00::2]:80"];

fn says(verdict: u8) -> Judged {
    Judged {
        policy: 7,
        born: 11,
        verdict,
        pad: [0; 7],
    }
}

/// Whether the kernel was told this of both directions of the flow, and nothing else.
fn is_told(stage: &Stage, frame: &[u8], verdict: u8) {
    let v4 = empty::<FlowKey<[u8; 4]>>(&stage.pins, name::FSM_VERDICT);
    let v6 = empty::<FlowKey<[u8; 16]>>(&stage.pins, name::FSM_VERDICT6);
    let both = |of: &dyn Fn(usize) -> bool, len: usize| len == 2 && of(0) && of(1);
    let is_so = match parse(frame).unwrap() {
        Packet::V4(p) => {
            let keys = [p.key, p.key.reversed()];
            v6.is_empty() && both(&|i| v4.contains(&(keys[i], says(verdict))), v4.len())
        }
        Packet::V6(p) => {
            let keys = [p.key, p.key.reversed()];
            v4.is_empty() && both(&|i| v6.contains(&(keys[i], says(verdict))), v6.len())
        }
        Packet::Other(_) => false,
    };
    assert!(is_so, "{v4:?} {v6:?}");
}

fn is_told_nothing(stage: &Stage) {
    assert!(empty::<FlowKey<[u8; 4]>>(&stage.pins, name::FSM_VERDICT).is_empty());
    assert!(empty::<FlowKey<[u8; 16]>>(&stage.pins, name::FSM_VERDICT6).is_empty());
}

#[test]
fn the_kernel_is_told_of_both_directions() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let mut judged = 0;
        for [from, to] in [V4, V6] {
            for flow in [tcp(from, to, ACK), udp(from, to)] {
                let with = |byte| flow.clone().payload(&[byte]).bytes();
                stage.out(&with(ALLOW));
                assert_eq!(stage.next(), Some(with(ALLOW)));
                settled(&workers, judged + 1);
                is_told(&stage, &with(ALLOW), verdict::ALLOW);
                stage.out(&with(DENY));
                assert!(stage.is_silent());
                is_told(&stage, &with(DENY), verdict::DENY);
                stage.out(&with(DROP));
                assert!(stage.is_silent());
                is_told_nothing(&stage);
                judged += 3;
            }
        }
        let counters = settled(&workers, judged)[0].counters;
        assert_eq!(
            (counters.allowed, counters.denied, counters.dropped),
            (4, 4, 4)
        );
        assert_eq!(counters.tx_packets, 4);
    });
}

#[test]
fn a_copy_ends_here_and_stops_nothing() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let with = |byte| tcp(V4[0], V4[1], ACK).payload(&[byte]).bytes();
        for byte in [DENY, RESET, DROP, b'p', b'!'] {
            stage.copy(&with(byte));
        }
        assert!(stage.is_silent());
        is_told_nothing(&stage);
        // Its end was cut off.
        let long = tcp(V4[0], V4[1], ACK).payload(&[ALLOW; 100]).bytes();
        stage.copy(&long[..80]);
        let status = settled(&workers, 6);
        is_told(&stage, &with(ALLOW), verdict::ALLOW);
        assert!(stage.is_silent());
        assert_eq!(
            (status[0].counters.copies, status[0].counters.tx_packets),
            (6, 0)
        );
        whole(&status[0].frames);
    });
}

#[test]
fn a_later_fragment_decides_for_itself_only() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let _workers = stage.start();
        let later = Frame {
            exts: vec![fragment_header(9, 10, false)],
            ..udp(V6[0], V6[1]).payload(&[DENY; 16])
        };
        stage.out(&later.bytes());
        assert!(stage.is_silent());
        is_told_nothing(&stage);
    });
}

/// (source port, sequence number, acknowledgement number, flags) of a segment whose checksums hold.
fn numbers(frame: &[u8]) -> (u16, u32, u32, u8) {
    let mut bare = frame.to_vec();
    if bare[12..14] == [0x81, 0] {
        bare.drain(12..16);
    }
    check_sums(&bare).unwrap();
    let (proto, port, rest) = match parse(frame).unwrap() {
        Packet::V4(p) => (p.key.proto, p.key.sport, (p.seq, p.ack, p.tcp_flags)),
        Packet::V6(p) => (p.key.proto, p.key.sport, (p.seq, p.ack, p.tcp_flags)),
        Packet::Other(_) => panic!("not IP"),
    };
    assert_eq!(proto, TCP);
    (u16::from_be_bytes(port), rest.0, rest.1, rest.2)
}

/// One RST goes on as the segment would have, the other one back to where it came from: here out of the same
/// device, for a segment that had come in.
#[test]
fn a_reset_reaches_both_ends() {
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let workers = stage.start();
        let mut judged = 0;
        for [from, to] in [V4, V6] {
            let segment = tcp(from, to, ACK).at(1000, 5000).payload(&[RESET; 10]);
            let frame = segment.bytes();
            // To the receiver, out of the device; the sender's goes into the stack, which has no such connection.
            stage.out(&frame);
            let rst = stage.next().unwrap();
            assert_eq!(numbers(&rst), (1000, 1000, 5000, RST | ACK));
            assert_eq!(rst[..12], frame[..12]);
            judged += 1;
            settled(&workers, judged);
            is_told(&stage, &frame, verdict::RESET);
            // To the sender, out of the device that the segment came from.
            let said = stage.said(&frame, Hook::TcIngress);
            let (flags, vlan) = (taken::TAGGED, 5);
            stage.inject(
                &Escalated {
                    flags,
                    vlan,
                    ..said
                },
                &frame,
            );
            let rst = stage.next().unwrap();
            assert_eq!(numbers(&rst), (80, 5000, 1010, RST | ACK));
            assert_eq!((&rst[..6], &rst[6..12]), (&frame[6..12], &frame[..6]));
            assert_eq!(rst[12..16], [0x81, 0, 0, 5]);
            assert!(stage.is_silent());
            judged += 1;
            is_told(&stage, &frame, verdict::RESET);
        }
        let counters = settled(&workers, judged)[0].counters;
        assert_eq!(
            (counters.reset, counters.rsts, counters.tx_packets),
            (4, 8, 8)
        );
        // Its receiver has not seen a SYN; nobody answers an RST.
        stage.out(&tcp(V4[0], V4[1], SYN).payload(&[RESET]).bytes());
        stage.out(&tcp(V4[0], V4[1], RST).payload(&[RESET]).bytes());
        stage.out(&udp(V4[0], V4[1]).payload(&[RESET]).bytes());
        assert!(stage.is_silent());
        assert_eq!(settled(&workers, 7)[0].counters.rsts, 9);
    });
}

/// The kernel's own TCP believes these RSTs: a connection that is open ends at both ends.
#[test]
fn tcp_believes_the_resets() {
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };
    alone(|loaded| {
        let mut stage = Stage::new(loaded, 1);
        let _workers = stage.start();
        // Both ends are here; their segments go over `lo`.
        sh("ip addr add 10.0.0.2/32 dev lo");
        let listener = TcpListener::bind("10.0.0.2:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        let [seq, ack] = queues(&client);
        // The segment that the client would send next, as if taken on its way into this host.
        let from = client.local_addr().unwrap().to_string();
        let to = listener.local_addr().unwrap().to_string();
        let segment = tcp(&from, &to, ACK).at(seq, ack).payload(&[RESET; 10]);
        sh("echo 1 > /proc/sys/net/ipv4/conf/near/accept_local; echo 0 > /proc/sys/net/ipv4/conf/near/rp_filter
            echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter");
        let dmac = fsm_fastpath::lab::wire::socket::mac_of("near").unwrap();
        let frame = Frame { dmac, ..segment }.bytes();
        stage.inject(&stage.said(&frame, Hook::TcIngress), &frame);
        let rst = stage.next().expect("the sender's");
        server
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        let error = server.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The sender's went out of the device; it is brought back in, as its host would get it.
        let mut rst = rst;
        rst[..6].copy_from_slice(&dmac);
        client
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        stage.far.send(&rst).unwrap();
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

/// The next sequence numbers of both directions, which the kernel tells in repair mode.
fn queues(stream: &std::net::TcpStream) -> [u32; 2] {
    use std::os::fd::AsRawFd as _;
    let fd = stream.as_raw_fd();
    let set = |option, value: i32| {
        let len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: pointer and length describe `value`.
        let result = unsafe {
            libc::setsockopt(
                fd,
                libc::IPPROTO_TCP,
                option,
                (&raw const value).cast(),
                len,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    const TCP_SEND_QUEUE: i32 = 2;
    const TCP_RECV_QUEUE: i32 = 1;
    set(libc::TCP_REPAIR, 1);
    let numbers = [TCP_SEND_QUEUE, TCP_RECV_QUEUE].map(|queue| {
        set(libc::TCP_REPAIR_QUEUE, queue);
        let mut number = 0u32;
        let mut len = size_of::<u32>() as libc::socklen_t;
        let to = (&raw mut number).cast();
        // SAFETY: pointer and length describe `number`.
        let result =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, to, &mut len) };
        assert_eq!(result, 0);
        number
    });
    // TCP_REPAIR_OFF_NO_WP: without a window probe.
    set(libc::TCP_REPAIR, -1);
    numbers
}
