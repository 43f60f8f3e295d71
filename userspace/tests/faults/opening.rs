//! The begin of a connection: data in the first segment.

use std::io::{Error, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use fsm_fastpath::lab::Role;

use crate::traffic::http::{bind, raw_address, serve_on, socket};
use crate::traffic::{alone, at, flows, lab, on, set_option};

/// `TCP_FASTOPEN` (`linux/tcp.h`).
const TCP_FASTOPEN: i32 = 23;
/// `TCPI_OPT_SYN_DATA` in `tcp_info.tcpi_options`: the SYN's data was acknowledged.
const SYN_DATA: u8 = 32;

/// Opens a connection with `data` in its SYN where the cookie is known; gives the echo, and whether the SYN
/// has carried it.
fn fast_open(to: std::net::SocketAddr, data: &[u8]) -> (Vec<u8>, bool) {
    let fd = socket(to, libc::SOCK_STREAM, 0).unwrap();
    let (raw, length) = raw_address(to);
    // SAFETY: pointers and lengths describe `data` and `raw`.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_FASTOPEN,
            (&raw const raw).cast(),
            length,
        )
    };
    assert_eq!(sent, data.len() as isize, "{}", Error::last_os_error());
    let mut stream = TcpStream::from(fd);
    stream
        .set_read_timeout(Some(crate::traffic::http::PATIENCE))
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).unwrap();
    let mut info = [0_u8; 64];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `info`; the kernel cuts `tcp_info` to what fits.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0);
    // tcpi_state, ca_state, retransmits, probes, backoff, options
    (echo, info[5] & SYN_DATA != 0)
}

#[test]
fn data_in_the_syn_goes_through_nat() {
    let _alone = alone();
    let lab = lab("tfo", "");
    for host in [lab.app1(), lab.node()] {
        host.cmd("sysctl", ["-qw", "net.ipv4.tcp_fastopen=3"])
            .unwrap();
    }
    for (server, listener) in [
        ("20.0.0.2:7000", "192.168.226.22:7001"),
        ("[fd20::2]:7000", "[fd22::22]:7001"),
    ] {
        let entry = [
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            "tcp",
            "--to",
            server,
        ];
        lab.fsm(&[entry.as_slice(), &["--endpoint", listener]].concat())
            .unwrap();
        on(&lab, Role::Node, move || {
            let fd = socket(at(listener), libc::SOCK_STREAM, 0).unwrap();
            bind(&fd, at(listener)).unwrap();
            set_option(&fd, libc::IPPROTO_TCP, TCP_FASTOPEN, 16).unwrap();
            // SAFETY: takes numbers only.
            assert_eq!(unsafe { libc::listen(fd.as_raw_fd(), 16) }, 0);
            serve_on(fd.into(), |mut stream| {
                let mut data = Vec::new();
                stream.read_to_end(&mut data).unwrap();
                stream.write_all(&data).unwrap();
            });
        });
        let rounds = on(&lab, Role::App1, move || {
            (0..4_u8)
                .map(|round| fast_open(at(server), &[round; 700]))
                .collect::<Vec<_>>()
        });
        for (round, (echo, in_syn)) in rounds.iter().enumerate() {
            assert_eq!(echo, &vec![round as u8; 700], "{server}");
            // The first one asks for the cookie.
            assert_eq!(*in_syn, round > 0, "{server}: round {round}");
        }
    }
    let rows = flows(&lab, &["--src", "10.1.0.2", "--port", "7000"]);
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(
        rows.iter().all(|row| row["state"] == "TIME_WAIT"),
        "{rows:?}"
    );
}
