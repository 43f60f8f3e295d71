//! `pcap` by the real program, over captures that the tests write byte by byte: every container and link type that is
//! understood, what is broken, and the records. Needs no privileges.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

#[path = "../../common/tests/support/frame.rs"]
#[expect(dead_code, reason = "the frames of all tests")]
mod frame;

use frame::{ACK, FIN, SYN, tcp, udp};

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "20.0.0.2:8080";
const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: example.org\r\nUser-Agent: t/1\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
const ETHERNET: u32 = 1;
/// 2025-01-01.
const START_S: u32 = 1_735_689_600;

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fsm-pcap-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pcap(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsm-fastpath"));
    command.arg("pcap").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The rows of a run that must succeed and have nothing to complain of.
#[track_caller]
fn rows(args: &[&str]) -> Vec<Value> {
    let output = pcap(&[args, &["-o", "json"]].concat());
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    lines(&output.stdout)
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = text(bytes);
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(parse).collect()
}

/// An HTTP exchange of 9 packets, and a DNS query.
fn frames() -> Vec<Vec<u8>> {
    exchange(CLIENT, SERVER, GET, OK)
        .into_iter()
        .chain([udp("10.0.0.1:5000", "20.0.0.53:53").payload(QUERY).bytes()])
        .collect()
}

fn exchange(client: &str, server: &str, ask: &[u8], answer: &[u8]) -> Vec<Vec<u8>> {
    let (c, s) = (100 + ask.len() as u32, 700 + answer.len() as u32);
    let from_client = |flags, at, payload: &[u8]| {
        tcp(client, server, flags)
            .at(at, 700)
            .payload(payload)
            .bytes()
    };
    let from_server = |flags, at, payload: &[u8]| {
        tcp(server, client, flags)
            .at(at, c)
            .payload(payload)
            .bytes()
    };
    vec![
        from_client(SYN, 99, b""),
        tcp(server, client, SYN | ACK).at(699, 100).bytes(),
        from_client(ACK, 100, b""),
        from_client(ACK, 100, ask),
        from_server(ACK, 700, answer),
        from_client(ACK, c, b""),
        from_client(FIN | ACK, c, b""),
        from_server(FIN | ACK, s, b""),
        from_client(ACK, c + 1, b""),
    ]
}

/// A pcap file in either byte order, of micro- or nanoseconds.
fn classic(link: u32, frames: &[Vec<u8>], is_big: bool, is_nano: bool) -> Vec<u8> {
    let u32_ = |value: u32| {
        if is_big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let u16_ = |value: u16| {
        if is_big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let mut file = u32_(if is_nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    file.extend([u16_(2), u16_(4)].concat());
    for value in [0, 0, 262_144, link] {
        file.extend(u32_(value));
    }
    for (at, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        for value in [START_S + at as u32, 5, len, len] {
            file.extend(u32_(value));
        }
        file.extend(frame);
    }
    file
}

fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    classic(ETHERNET, frames, false, false)
}

/// A pcapng file whose interfaces have these link types; each frame says which it is of.
fn next_generation(links: &[u16], frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let len = (body.len() as u32 + 12).to_le_bytes();
        [&kind.to_le_bytes()[..], &len, &body, &len].concat()
    };
    let section = [
        &0x1a2b_3c4d_u32.to_le_bytes()[..],
        &[1, 0, 0, 0],
        &[0xff; 8],
    ]
    .concat();
    let mut file = block(0x0a0d_0d0a, &section);
    for link in links {
        // Option 9, if_tsresol: nanoseconds.
        let options = [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let body = [&link.to_le_bytes()[..], &[0, 0], &[0, 0, 4, 0], &options].concat();
        file.extend(block(1, &body));
    }
    for (at, (interface, frame)) in frames.iter().enumerate() {
        let time = (u64::from(START_S) + at as u64) * 1_000_000_000;
        let len = (frame.len() as u32).to_le_bytes();
        let mut body = interface.to_le_bytes().to_vec();
        body.extend(((time >> 32) as u32).to_le_bytes());
        body.extend((time as u32).to_le_bytes());
        body.extend([len, len].concat());
        body.extend(frame);
        file.extend(block(6, &body));
    }
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

/// Both flows of [`frames`], in whatever order they ended.
#[track_caller]
fn assert_both(mut rows: Vec<Value>) {
    assert_eq!(rows.len(), 2, "{rows:#?}");
    rows.sort_by_key(|row| row["proto"].to_string());
    let http = &rows[0];
    assert_eq!(http["app"], "http");
    assert_eq!(http["info"]["host"], "example.org");
    assert_eq!(http["packets"], json!({"orig": 6, "reply": 3}));
    assert_eq!(
        (&rows[1]["app"], &rows[1]["info"]["query"]),
        (&json!("dns"), &json!("example.org"))
    );
}

#[test]
fn a_row_has_every_field() {
    let folder = Folder::new("fields");
    let file = folder.put("a.pcap", &capture(&exchange(CLIENT, SERVER, GET, OK)));
    let bytes: usize = exchange(CLIENT, SERVER, GET, OK).iter().map(Vec::len).sum();
    let rows = rows(&[&file]);
    let reply = rows[0]["bytes"]["reply"].as_u64().unwrap();
    let want = json!({
        "src": "10.0.0.1", "sport": 40000, "dst": "20.0.0.2", "dport": 8080, "proto": "tcp",
        "app": "http", "app_by": "payload", "version": "1.1",
        "packets": {"orig": 6, "reply": 3},
        "bytes": {"orig": bytes as u64 - reply, "reply": reply},
        "info": {
            "method": "GET", "host": "example.org", "path": "/a", "user_agent": "t/1",
            "version": "1.1", "status": "200",
        },
        "threats": [], "verdict": "allow",
    });
    assert_eq!(rows, [want]);
}

#[test]
fn what_is_not_recognised_is_not_guessed() {
    let folder = Folder::new("unknown");
    let frames = exchange(CLIENT, "20.0.0.2:80", b"\0\0\0\0hello", b"\0\0\0\0hello");
    let file = folder.put("a.pcap", &capture(&frames));
    let row = &rows(&[&file])[0];
    assert_eq!(
        (&row["app"], &row["app_by"], &row["version"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let table = text(&pcap(&[&file]).stdout);
    assert!(table.contains("unknown"), "{table}");
}

#[test]
fn containers() {
    let folder = Folder::new("containers");
    let numbered: Vec<_> = frames().into_iter().map(|frame| (0, frame)).collect();
    let next = next_generation(&[1], &numbered);
    for (name, bytes) in [
        ("little.pcap", capture(&frames())),
        ("big.pcap", classic(ETHERNET, &frames(), true, false)),
        ("nano.pcap", classic(ETHERNET, &frames(), false, true)),
        ("bignano.pcap", classic(ETHERNET, &frames(), true, true)),
        ("a.pcapng", next.clone()),
        (
            "two-sections.pcapng",
            [next_generation(&[101], &[]), next.clone()].concat(),
        ),
        ("a.pcap.gz", gzip(&capture(&frames()))),
        ("a.pcapng.gz", gzip(&next)),
        ("members.gz", {
            let whole = capture(&frames());
            [gzip(&whole[..100]), gzip(&whole[100..])].concat()
        }),
    ] {
        assert_both(rows(&[&folder.put(name, &bytes)]));
    }
}

#[test]
fn link_types() {
    let folder = Folder::new("links");
    let ip = |frame: &Vec<u8>| frame[14..].to_vec();
    let with = |head: &[u8]| -> Vec<Vec<u8>> {
        let each = |frame: &Vec<u8>| [head, &ip(frame)].concat();
        frames().iter().map(each).collect()
    };
    let sll = [0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0];
    let sll2 = [8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
    for (link, head) in [
        (101, &[][..]),
        (12, &[]),
        (228, &[]),
        (113, &sll),
        (276, &sll2),
        (0, &[2, 0, 0, 0]),
        (0, &[0, 0, 0, 2]),
        (108, &[0, 0, 0, 2]),
    ] {
        let bytes = classic(link, &with(head), false, false);
        assert_both(rows(&[&folder.put(&format!("{link}.pcap"), &bytes)]));
    }
    // IPv6 over a loopback of BSD, whose family is not Linux's.
    let frames: Vec<_> = exchange("[fd00::1]:40000", "[fd20::2]:8080", GET, OK)
        .iter()
        .map(|frame| [&[30, 0, 0, 0], &frame[14..]].concat())
        .collect();
    let rows_ = rows(&[&folder.put("v6.pcap", &classic(0, &frames, false, false))]);
    assert_eq!(
        (&rows_[0]["src"], &rows_[0]["app"]),
        (&json!("fd00::1"), &json!("http"))
    );
    // Two interfaces, each with its own.
    let mixed: Vec<_> = self::frames()
        .iter()
        .enumerate()
        .map(|(at, frame)| match at % 2 {
            0 => (0, frame.clone()),
            _ => (1, ip(frame)),
        })
        .collect();
    assert_both(rows(&[
        &folder.put("mixed.pcapng", &next_generation(&[1, 101], &mixed))
    ]));
}

#[test]
fn a_folder_is_read_in_order_and_what_is_bad_in_it_is_named() {
    let folder = Folder::new("folder");
    let http = |port: u16| capture(&exchange(&format!("10.0.0.1:{port}"), SERVER, GET, OK));
    folder.put("b/2.pcap", &http(2));
    folder.put("b/deep/3.pcapng.gz", &gzip(&http(3)));
    folder.put("a.pcap", &http(1));
    folder.put(".hidden", b"not looked at");
    let folder_path = folder.0.display().to_string();
    let ports: Vec<_> = rows(&[&folder_path])
        .iter()
        .map(|row| row["sport"].clone())
        .collect();
    assert_eq!(ports, [1, 2, 3]);
    folder.put(
        "b/1-garbage.pcap",
        b"this is no capture at all, whatever its name",
    );
    folder.put("b/empty", b"");
    let radio = folder.put("radio.pcap", &classic(127, &frames(), false, false));
    let output = pcap(&[&folder_path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines(&output.stdout).len(), 3);
    let errors = text(&output.stderr);
    assert_eq!(errors.lines().count(), 3, "{errors}");
    assert!(
        errors.contains("1-garbage.pcap: not a pcap or pcapng file: it begins with 74 68 69 73"),
        "{errors}"
    );
    assert!(
        errors.contains("b/empty: not a pcap or pcapng file: empty"),
        "{errors}"
    );
    assert!(
        errors.contains(&format!(
            "{radio}: 10 packets of link type 127 are not understood"
        )),
        "{errors}"
    );
}

#[test]
fn what_there_is_of_a_torn_file_is_processed() {
    let folder = Folder::new("torn");
    let frames = exchange(CLIENT, SERVER, GET, OK);
    let whole = capture(&frames);
    let torn_gzip = gzip(&whole);
    for (name, bytes) in [
        ("a.pcap", &whole[..whole.len() - 10]),
        ("a.pcap.gz", &torn_gzip[..torn_gzip.len() - 4]),
    ] {
        let file = folder.put(name, bytes);
        let output = pcap(&[&file, "-o", "json"]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{errors}");
        assert!(
            errors.starts_with(&format!("warning: {file}: cut short after ")),
            "{errors}"
        );
        assert_eq!(lines(&output.stdout)[0]["app"], "http");
    }
    // In the middle of the header, and nonsense in the middle.
    let file = folder.put("head.pcap", &whole[..20]);
    let output = pcap(&[&file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("shorter than a capture's header"));
    let numbered: Vec<_> = frames.into_iter().map(|frame| (0, frame)).collect();
    let mut broken = next_generation(&[1], &numbered);
    // A block whose two lengths differ.
    broken.extend([&[6, 0, 0, 0, 36, 0, 0, 0][..], &[0; 24], &[1, 0, 0, 0]].concat());
    let output = pcap(&[&folder.put("broken.pcapng", &broken), "-o", "json"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("broken after 9 packets"), "{errors}");
    assert_eq!(lines(&output.stdout)[0]["app"], "http");
    // What is not there at all.
    let output = pcap(&["/nowhere/a.pcap"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: /nowhere/a.pcap: No such file"));
}

#[test]
fn what_a_card_was_to_do_is_no_damage_and_what_is_damaged_is_said() {
    let folder = Folder::new("sums");
    // TCP's checksum at 14 + 20 + 16.
    let change = |to: &dyn Fn(&[u8]) -> [u8; 2]| -> Vec<Vec<u8>> {
        let mut frames = exchange(CLIENT, SERVER, GET, OK);
        for frame in &mut frames {
            let sum = to(frame);
            frame[50..52].copy_from_slice(&sum);
        }
        frames
    };
    let pseudo = |frame: &[u8]| {
        let mut words: Vec<u16> = frame[26..34]
            .chunks(2)
            .map(|w| u16::from_be_bytes([w[0], w[1]]))
            .collect();
        words.extend([6, (frame.len() - 34) as u16]);
        let sum: u32 = words.into_iter().map(u32::from).sum();
        (((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
    };
    let offloaded = folder.put("offloaded.pcap", &capture(&change(&pseudo)));
    let row = &rows(&[&offloaded])[0];
    assert_eq!((&row["app"], &row["threats"]), (&json!("http"), &json!([])));
    let damaged = folder.put("damaged.pcap", &capture(&change(&|_| [0xab, 0xcd])));
    let output = pcap(&[&damaged, "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("warning: 9 packets have wrong checksums"),
        "{said}"
    );
    let row = &lines(&output.stdout)[0];
    assert_eq!(
        (&row["app"], &row["threats"]),
        (&Value::Null, &json!(["bad_checksum"]))
    );
    assert_eq!(rows(&[&damaged, "--no-checksums"])[0]["app"], "http");
    // A capture of the first 100 bytes of each packet.
    let mut cut = classic(ETHERNET, &[], false, false);
    for (at, frame) in exchange(CLIENT, SERVER, &[GET, &[b'x'; 500]].concat(), OK)
        .iter()
        .enumerate()
    {
        let kept = frame.len().min(100);
        for value in [START_S + at as u32, 0, kept as u32, frame.len() as u32] {
            cut.extend(value.to_le_bytes());
        }
        cut.extend(&frame[..kept]);
    }
    let row = &rows(&[&folder.put("cut.pcap", &cut)])[0];
    assert_eq!((&row["app"], &row["threats"]), (&json!("http"), &json!([])));
}

#[test]
fn verdicts_are_those_of_the_policy_in_its_mode() {
    let folder = Folder::new("verdicts");
    let file = folder.put("a.pcap", &capture(&frames()));
    for (mode, http, dns) in [
        ("monitor", "violate", "violate"),
        ("protect", "reset", "deny"),
        ("learn", "allow", "inspect"),
    ] {
        let toml = format!(
            "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n[dpi]\nmode = \"{mode}\"\ncores = [0]\n\
             [[dpi.policy]]\napps = [\"http\", \"dns\"]\naction = \"deny\"\n"
        );
        let config = folder.put("node.toml", toml.as_bytes());
        let rows = rows(&[&file, "--config", &config]);
        for row in &rows {
            let want = if row["app"] == "http" { http } else { dns };
            assert_eq!(row["verdict"], want, "{mode}: {row}");
        }
    }
    let output = pcap(&[&file, "--config", "/nowhere.toml"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn people_get_flows_then_apps_then_threats() {
    let folder = Folder::new("table");
    let mut all = frames();
    all.push(tcp(CLIENT, "20.0.0.9:1", SYN | FIN).bytes());
    let file = folder.put("a.pcap", &capture(&all));
    let output = text(&pcap(&[&file]).stdout);
    let at = |what: &str| {
        output
            .find(what)
            .unwrap_or_else(|| panic!("{what} in {output}"))
    };
    assert!(at("PROTO") < at("host=example.org"));
    assert!(
        at("host=example.org") < at("\nAPP") && at("\nAPP") < at("THREAT"),
        "{output}"
    );
    assert!(
        output.contains("tcp_bad_flags  1      10.0.0.1:40000"),
        "{output}"
    );
    // A threat whose packets open no flow has a row of its own.
    let rows = rows(&[&file]);
    let row = rows.iter().find(|row| row["dport"] == 1).unwrap();
    assert_eq!(
        (&row["threats"], &row["packets"]["orig"]),
        (&json!(["tcp_bad_flags"]), &json!(0))
    );
}

#[test]
fn records_have_suricatas_fields() {
    let folder = Folder::new("eve");
    let mut all = frames();
    all.push(tcp(CLIENT, "20.0.0.9:1", SYN | FIN).bytes());
    let mut damaged = udp(CLIENT, SERVER).bytes();
    *damaged.last_mut().unwrap() ^= 1;
    all.push(damaged);
    let file = folder.put("a.pcap", &capture(&all));
    let eve = folder.0.join("eve.json");
    rows(&[&file, "--eve", eve.to_str().unwrap()]);
    let records = lines(&fs::read(Path::new(&eve)).unwrap());
    for record in &records {
        assert!(
            record["flow_id"].as_u64().is_some_and(|id| id < 1 << 53),
            "{record}"
        );
        let time = record["timestamp"].as_str().unwrap();
        assert!(
            time.starts_with("2025-01-01T00:00:") && time.ends_with("+0000"),
            "{record}"
        );
        for (field, is_there) in [
            ("src_ip", true),
            ("dest_ip", true),
            ("src_port", true),
            ("dest_port", true),
        ] {
            assert_eq!(record.get(field).is_some(), is_there, "{record}");
        }
    }
    let of = |kind: &str| -> Vec<&Value> {
        records
            .iter()
            .filter(|record| record["event_type"] == kind)
            .collect()
    };
    assert_eq!(of("http")[0]["http"]["hostname"], "example.org");
    assert_eq!(
        of("http")[0]["timestamp"],
        "2025-01-01T00:00:04.000005+0000"
    );
    assert_eq!(of("http")[0]["proto"], "TCP");
    assert_eq!(
        of("dns")[0]["dns"],
        json!({"type": "query", "rrname": "example.org", "rrtype": "A"})
    );
    assert_eq!(of("alert")[0]["alert"]["signature"], "tcp_bad_flags");
    assert_eq!(of("anomaly")[0]["anomaly"]["event"], "bad_checksum");
    let flows = of("flow");
    let http = flows
        .iter()
        .find(|record| record["app_proto"] == "http")
        .unwrap();
    assert_eq!(http["flow_id"], of("http")[0]["flow_id"]);
    assert_eq!(
        (&http["flow"]["state"], &http["flow"]["age"]),
        (&json!("closed"), &json!(8))
    );
    assert_eq!(
        (
            &http["flow"]["pkts_toserver"],
            &http["flow"]["pkts_toclient"]
        ),
        (&json!(6), &json!(3))
    );
    assert_eq!(flows.len(), 2);
}
