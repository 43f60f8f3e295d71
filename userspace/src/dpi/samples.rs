//! What is said in every protocol, and that each is known as itself and as nothing else. Samples stand beside their
//! parsers; talks of real servers and clients are in `tests/dpi/captures`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    inspect::Inspection,
    registry::{Head, PARSERS, Probe, Side, Transport},
};

/// Who says what, in turn.
pub type Says = Vec<(Side, Vec<u8>)>;

/// The beginning of a talk.
pub struct Sample {
    pub app: &'static str,
    pub transport: Transport,
    pub says: &'static [(Side, &'static [u8])],
    /// What is told of it, as `name=value` with spaces between.
    pub info: &'static str,
}

/// The app that is known of a talk, what is told, and whether nothing more is wanted.
fn play(
    transport: Transport,
    says: &[(Side, Vec<u8>)],
    most: usize,
) -> (Option<&'static str>, String, bool) {
    let mut inspection = Inspection::new(transport, [40000, 40001]);
    for (side, bytes) in says {
        match transport {
            Transport::Udp => inspection.hear(*side, bytes, true),
            Transport::Tcp => {
                for part in bytes.chunks(most) {
                    inspection.hear(*side, part, true);
                }
            }
        }
    }
    let pairs = inspection.info.0.iter();
    let line: Vec<_> = pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    (inspection.app(), line.join(" "), inspection.is_over())
}

/// Which parsers would say yes at some point of a talk, if nobody else were asked.
fn claimed(transport: Transport, says: &[(Side, Vec<u8>)]) -> Vec<&'static str> {
    let mut claims = Vec::new();
    for parser in PARSERS.iter().filter(|parser| parser.is_over(transport)) {
        let mut heads = [Vec::new(), Vec::new()];
        let mut said = [Probe::More; 2];
        'talk: for (side, bytes) in says {
            for byte in bytes {
                heads[*side as usize].push(*byte);
                let is_whole = heads[*side as usize].len() == bytes.len();
                if transport == Transport::Udp && !is_whole {
                    continue;
                }
                let (bytes, other) = (&heads[*side as usize], &heads[side.other() as usize]);
                if said[*side as usize] == Probe::No || bytes.len() > 2048 {
                    continue;
                }
                let now = parser.probe(&Head {
                    bytes,
                    seen: bytes.len() - 1,
                    is_last: transport == Transport::Udp,
                    side: *side,
                    transport,
                    ports: [40000, 40001],
                    other: if transport == Transport::Udp {
                        &[]
                    } else {
                        other
                    },
                });
                said[*side as usize] = now;
                if now == Probe::Yes {
                    claims.push(parser.app());
                    break 'talk;
                }
            }
            if transport == Transport::Udp {
                heads = [Vec::new(), Vec::new()];
                said = [Probe::More; 2];
            }
        }
    }
    claims
}

/// The protocol as which it begins, where the name is a closer one.
fn base<'a>(app: &'a str, info: &str) -> &'a str {
    match app {
        "grpc" => "http2",
        _ if info.contains(" upgrade=") => "http",
        app => app,
    }
}

fn check(name: &str, app: &str, transport: Transport, says: &[(Side, Vec<u8>)], info: &str) {
    assert_eq!(claimed(transport, says), [base(app, info)], "{name}");
    let whole = play(transport, says, usize::MAX);
    assert_eq!((whole.0, whole.1.as_str()), (Some(app), info), "{name}");
    if transport == Transport::Tcp {
        for most in [1, 7] {
            let parts = play(transport, says, most);
            assert_eq!(
                (parts.0, parts.1),
                (whole.0, whole.1.clone()),
                "{name} in {most}"
            );
        }
    }
}

#[test]
fn each_sample_is_known_as_itself_and_nothing_else() {
    let mut missing: Vec<_> = PARSERS.iter().map(|parser| parser.app()).collect();
    for sample in PARSERS.iter().flat_map(|parser| parser.samples()) {
        let says: Says = sample
            .says
            .iter()
            .map(|(side, bytes)| (*side, bytes.to_vec()))
            .collect();
        let name = format!("{} {}", sample.app, sample.info);
        check(&name, sample.app, sample.transport, &says, sample.info);
        missing.retain(|app| *app != sample.app);
    }
    missing.retain(|app| !["http", "tls", "ssh", "dns", "mdns"].contains(app));
    assert_eq!(missing, [""; 0], "without a sample");
}

/// A talk as it is written down: `C` or `S` and hexadecimal bytes a line; `# info: ` says what is told of it.
fn talk(text: &str) -> (String, Says) {
    let hex = |digits: &str| -> Vec<u8> {
        let pairs = digits.as_bytes().chunks(2);
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.map(byte).collect()
    };
    let mut info = String::new();
    let mut says = Vec::new();
    for line in text.lines() {
        match line.split_at_checked(2) {
            Some(("C ", digits)) => says.push((Side::Client, hex(digits))),
            Some(("S ", digits)) => says.push((Side::Server, hex(digits))),
            _ => {
                if let Some(told) = line.strip_prefix("# info: ") {
                    told.clone_into(&mut info);
                }
            }
        }
    }
    (info, says)
}

/// Name, app, transport, what is said and told, of each talk that is kept.
fn captures() -> Vec<(String, String, Transport, Says, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dpi/captures");
    let files = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |file: &PathBuf| {
        // As `mysql-mariadb.tcp`.
        let name = file.file_name().unwrap().to_str().unwrap();
        let app = name.split(['-', '.']).next().unwrap();
        let transport = match file.extension().unwrap().to_str().unwrap() {
            "tcp" => Transport::Tcp,
            _ => Transport::Udp,
        };
        let (info, says) = talk(&fs::read_to_string(file).unwrap());
        (name.to_owned(), app.to_owned(), transport, says, info)
    };
    files.iter().map(read).collect()
}

#[test]
fn talks_of_real_servers_and_clients() {
    let all = captures();
    assert!(all.len() > 30);
    for (name, app, transport, says, info) in all {
        println!("{name}: {}", play(transport, &says, usize::MAX).1);
        check(&name, &app, transport, &says, &info);
    }
}

#[test]
fn changed_talks_panic_nowhere_and_are_read_alike_however_cut() {
    let mut state = 0x0123_4567_89ab_cdef;
    let samples = PARSERS.iter().flat_map(|parser| parser.samples());
    let owned = |sample: &Sample| {
        let says = sample
            .says
            .iter()
            .map(|(side, bytes)| (*side, bytes.to_vec()));
        (sample.transport, says.collect::<Says>())
    };
    let mut all: Vec<(Transport, Says)> = samples.map(owned).collect();
    all.extend(
        captures()
            .into_iter()
            .map(|(_, _, transport, says, _)| (transport, says)),
    );
    for (transport, says) in all {
        for _ in 0..60 {
            let mut says = says.clone();
            for _ in 0..1 + random(&mut state) % 3 {
                let turn = random(&mut state) as usize % says.len();
                let bytes = &mut says[turn].1;
                // Most of what is judged stands in front.
                let at = random(&mut state) as usize % bytes.len().clamp(1, 80);
                match (random(&mut state) % 4, bytes.get_mut(at)) {
                    (0, _) => bytes.truncate(at),
                    (1, Some(byte)) => {
                        *byte = [0, 1, 0x7f, 0x80, 0xff][random(&mut state) as usize % 5]
                    }
                    (_, Some(byte)) => *byte ^= 1 << (random(&mut state) % 8),
                    _ => {}
                }
            }
            let whole = play(transport, &says, usize::MAX);
            let parts = play(transport, &says, 1);
            assert_eq!(whole.0, parts.0, "{says:?}");
            if whole.0.is_some() && transport == Transport::Udp {
                assert_eq!(whole.1, parts.1);
            }
        }
    }
}

/// A generator that is the same everywhere (xorshift).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn noise_and_prose_stay_unknown() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let words = [
        "the", "GET", "set", "name", "220", "OK", "* OK", "PING", "HELLO", "a1", "stat", "mail",
        "OPTIONS", "\r\n", "\n", "<13>", ":", "CONNECT", "get", "version", "1", "0", "info",
        "QUIT", "ready", "AUTH", "{}", "=",
    ];
    for round in 0..40_000 {
        let len = 1 + random(&mut state) as usize % 90;
        let bytes = |state: &mut u64| -> Vec<u8> {
            match round % 4 {
                // Small numbers, as binary protocols have them.
                0 => (0..len)
                    .map(|_| {
                        [0, 0, 0, 1, 2, 3, 4, 0x10, 0x30, 0x80, 0xff][random(state) as usize % 11]
                    })
                    .collect(),
                1 => {
                    let text: Vec<_> = (0..len / 6 + 1)
                        .map(|_| words[random(state) as usize % words.len()])
                        .collect();
                    text.join(" ").into_bytes()
                }
                _ => (0..len).map(|_| random(state) as u8).collect(),
            }
        };
        let (client, server) = (bytes(&mut state), bytes(&mut state));
        for transport in [Transport::Tcp, Transport::Udp] {
            let first = if round % 8 < 4 {
                Side::Client
            } else {
                Side::Server
            };
            let says = [(first, client.clone()), (first.other(), server.clone())];
            let (app, info, _) = play(transport, &says, usize::MAX);
            assert_eq!(
                app,
                None,
                "{info}: {} | {}",
                client.escape_ascii(),
                server.escape_ascii()
            );
        }
    }
}
