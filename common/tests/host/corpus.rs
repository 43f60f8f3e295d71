//! The committed inputs of the fuzz targets, checked as the fuzzer checks them: what a fuzzer once found
//! stays found.

use std::{fs, path::Path};

use crate::fuzz::CHECKS;

#[test]
fn every_input_of_the_corpora_holds() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (target, check) in CHECKS {
        let dir = corpora.join(target);
        let mut inputs: Vec<_> = fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(inputs.len() >= 10, "{}: inputs are missing", dir.display());
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let name = format!("{target}/{}", input.file_name().unwrap().to_string_lossy());
            std::panic::catch_unwind(|| check(&bytes))
                .unwrap_or_else(|_| panic!("{name} does not hold"));
        }
    }
}

/// Writes the golden packets and a few conversations as inputs: `cargo test -p fsm-common -- --ignored seeds`.
#[test]
#[ignore = "writes into the repository; for when the form of an input changes"]
fn seeds_of_the_corpora_are_written() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(corpora.join(target)).unwrap();
        fs::write(corpora.join(target).join(name), bytes).unwrap();
    };
    let to = [0x5au8; 36];
    for packet in crate::golden::all() {
        let frame = &packet.frame[..];
        write("parse", &packet.name, frame);
        write("rewrite", &packet.name, &[&to, frame].concat());
        if packet.name.contains("tcp") || packet.name.contains("udp") {
            write(
                "icmp_inner",
                &packet.name,
                &[&[14][..], &to, frame].concat(),
            );
        }
    }
    for (name, script) in conversations() {
        write("track", name, &script);
    }
}

/// Segments in the form of `fuzz/track.rs`: (end, flags, payload), numbers as an honest end has them.
fn conversations() -> Vec<(&'static str, Vec<u8>)> {
    use crate::frame::{ACK, FIN, RST, SYN};
    let open: &[(u8, u8, u16)] = &[(0, SYN, 0), (1, SYN | ACK, 0), (0, ACK, 0)];
    let script = |isn: u32, segments: &[&[(u8, u8, u16)]]| {
        let mut bytes = [isn.to_be_bytes(), 7u32.to_be_bytes()].concat();
        for &(end, flags, len) in segments.iter().copied().flatten() {
            let [hi, lo] = len.to_be_bytes();
            bytes.extend([end, flags, 0xff, 0xff, 0, 0, 0, 0, 128, hi, lo, 7]);
        }
        bytes
    };
    let data: &[(u8, u8, u16)] = &[(0, ACK, 1000), (1, ACK, 9000), (0, ACK, 0)];
    let close: &[(u8, u8, u16)] = &[
        (0, FIN | ACK, 0),
        (1, ACK, 0),
        (1, FIN | ACK, 0),
        (0, ACK, 0),
    ];
    let wrong = |flags| {
        let mut bytes = script(1, &[open, data]);
        bytes.extend([0xdc, flags, 0, 9, 0x77, 0x11, 0x22, 0x33, 1, 0, 9, 3]);
        bytes.extend([0xdd, flags, 0, 9, 0x99, 0x11, 0x22, 0x33, 1, 0, 9, 3]);
        bytes.extend(&script(0, &[close])[8..]);
        bytes
    };
    vec![
        ("closed", script(1, &[open, data, close])),
        ("wraps", script(u32::MAX - 500, &[open, data, data, close])),
        ("reused", script(1, &[open, data, close, open, data, close])),
        (
            "fast-open",
            script(
                1,
                &[
                    &[(0, SYN, 500), (1, SYN | ACK, 0), (1, ACK, 800), (0, ACK, 0)],
                    close,
                ],
            ),
        ),
        (
            "simultaneous",
            script(
                1,
                &[
                    &[
                        (0, SYN, 0),
                        (1, SYN, 0),
                        (0, SYN | ACK, 0),
                        (1, SYN | ACK, 0),
                    ],
                    data,
                ],
            ),
        ),
        (
            "refused",
            script(1, &[&[(0, SYN, 0), (1, RST | ACK, 0)], open]),
        ),
        ("reset", script(1, &[open, data, &[(1, RST, 0)], open])),
        (
            "half-closed",
            script(
                1,
                &[
                    open,
                    &[(1, FIN | ACK, 0), (0, ACK, 700), (1, ACK, 0)],
                    close,
                ],
            ),
        ),
        ("seen-late", script(1, &[data, data, close])),
        ("wrong-fin", wrong(FIN | ACK)),
        ("wrong-reset", wrong(RST)),
        ("wrong-syn", wrong(SYN)),
        ("wrong-ack", wrong(ACK)),
    ]
}
