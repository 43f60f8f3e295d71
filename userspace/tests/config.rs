//! `node.toml`: every example loads, every mistake is one line with its place,
//! and no text panics.

use std::fs;
use std::path::{Path, PathBuf};

use fsm_fastpath::config::{
    Config, ConfigErrors, DpiMode, Host, NatTarget, PortRange, Role, XdpMode, load, parse, parse_on,
};

const UPLINK: &str = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn toml_files(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(path)).expect(path);
    let paths = entries.map(|entry| entry.expect(path).path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    files
}

fn parsed(text: &str) -> Config {
    let text = format!("{UPLINK}{text}");
    parse(&text, Path::new("node.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(text: &str) -> Vec<String> {
    let errors = parse(text, Path::new("node.toml")).expect_err(text);
    errors.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn every_example_loads() {
    let files = toml_files("../configs");
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let config = load(&file).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.not_built_yet(), Vec::<String>::new());
        assert_eq!(config.hash().len(), 16);
        serde_json::to_string(&config).expect("JSON");
    }
}

#[test]
fn the_full_example_has_every_key() {
    fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    found.push(key.clone());
                    keys(value, found);
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let file = folder("../configs/full.toml");
    let text = fs::read_to_string(&file).unwrap();
    let config = load(&file).unwrap();
    let mut found = Vec::new();
    keys(&serde_json::to_value(&config).unwrap(), &mut found);
    assert!(found.len() > 100);
    let words: Vec<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    for key in found {
        assert!(words.contains(&key.as_str()), "{key} is not in full.toml");
    }
}

#[test]
fn the_full_example_shows_the_defaults() {
    let full = load(&folder("../configs/full.toml")).unwrap();
    let empty = parsed("");
    assert_eq!(full.flags, empty.flags);
    assert_eq!(full.conntrack, empty.conntrack);
    assert_eq!(full.forward, empty.forward);
    assert_eq!(full.events, empty.events);
    assert_eq!(full.trace, empty.trace);
    assert_eq!(full.dpi.meter, empty.dpi.meter);
    assert_eq!(full.dpi.stream_depth, empty.dpi.stream_depth);
    assert_eq!(full.node.metrics, empty.node.metrics);
    assert_eq!(full.node.bpffs, empty.node.bpffs);
    assert_eq!(empty.dpi.mode, DpiMode::Off);
    assert_eq!(empty.interfaces[0].xdp, XdpMode::Auto);
    assert!(!empty.node.name.is_empty());
}

#[test]
fn every_mistake_is_one_line_with_its_place() {
    let files = toml_files("tests/broken");
    assert!(files.len() >= 35);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let expected = text
            .lines()
            .next()
            .and_then(|l| l.strip_prefix("# expect: "));
        let expected = expected.unwrap_or_else(|| panic!("{}: no expectation", file.display()));
        let expected = format!("{}:{expected}", file.display());
        let got = match load(&file) {
            Ok(_) => "it loads".to_owned(),
            Err(errors) => errors.to_string(),
        };
        if !got.starts_with(&expected) || got.lines().count() != 1 {
            wrong.push(format!("expected {expected}\n     got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_mistakes_are_shown_in_order() {
    let lines = refused(
        "[trace]\nports = [0, 80, 65536]\nipps = []\n[node]\nlog = \"loud\"\n\
         [[interface]]\nname = \"eth0\"\nrol = \"uplink\"\n",
    );
    let places: Vec<&str> = lines
        .iter()
        .map(|l| l.split(": ").next().unwrap())
        .collect();
    let expected = [
        "node.toml:2:10",
        "node.toml:2:17",
        "node.toml:3:1",
        "node.toml:5:7",
        "node.toml:6:1",
        "node.toml:8:1",
    ];
    assert_eq!(places, expected, "{lines:#?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let errors = load(Path::new("absent/node.toml")).unwrap_err();
    assert!(matches!(errors, ConfigErrors::Unreadable { .. }));
    let text = errors.to_string();
    assert!(
        text.starts_with("absent/node.toml: cannot be read: "),
        "{text}"
    );
}

#[test]
fn cores_are_those_of_the_machine() {
    let text = format!("{UPLINK}[dpi]\nmode = \"monitor\"\ncores = [3]\n");
    let on = |cpus| parse_on(&text, Path::new("node.toml"), &Host { cpus });
    assert!(on(4).is_ok());
    let error = on(3).unwrap_err().to_string();
    assert!(
        error.ends_with("this machine has no core 3; allowed: 0 to 2"),
        "{error}"
    );
    let off = text.replace("monitor", "off");
    assert!(parse_on(&off, Path::new("node.toml"), &Host { cpus: 1 }).is_ok());
}

#[test]
fn what_is_not_built_yet_is_named() {
    let config = parsed(
        "[[interface]]\nname = \"eth0\"\nrole = \"endpoint\"\nattach = \"inside\"\nnetns = \"app1\"\n\
         [gateway]\nexclude_uids = [1337]\n[forward]\nsockmap = true\n[dpi]\nmode = \"monitor\"\n\
         [[dpi.policy]]\nto = \"*.example.com\"\naction = \"deny\"\n\
         [[dpi.signature]]\nname = \"a\"\nkind = \"waf\"\nrules = [\"a\"]\n\
         [dpi.meter]\nsyn_flood_pps = 1\n[events]\neve = \"/var/log/eve.json\"\n\
         [trace]\nips = [\"10.0.0.1\"]\nports = [80]\n",
    );
    let lines = config.not_built_yet();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(lines[0].starts_with("node.toml:7:10: interface[1].attach: not built yet: "));
    assert!(lines[2].starts_with("node.toml:16:6: dpi.policy[0].to: not built yet: "));
    assert!(parsed("").not_built_yet().is_empty());
}

#[test]
fn an_exact_interface_goes_before_a_glob() {
    let config = parsed(
        "[[interface]]\nname = \"veth-*\"\nrole = \"endpoint\"\n\
         [[interface]]\nname = \"veth-up\"\nrole = \"uplink\"\n\
         [[interface]]\nname = \"veth-a*\"\nrole = \"uplink\"\n",
    );
    let role = |name| config.interface_for(name).map(|interface| interface.role);
    assert_eq!(role("veth-up"), Some(Role::Uplink));
    assert_eq!(role("veth-a1"), Some(Role::Endpoint));
    assert_eq!(role("veth"), None);
    let all = parsed("[[interface]]\nname = \"*\"\nrole = \"endpoint\"\n");
    assert!(all.interface_for("eth0").is_some());
    assert!(
        all.interface_for("dpi0").is_none(),
        "the way to the workers"
    );
}

#[test]
fn the_gateway_stands_for_nat_entries() {
    let config = parsed(
        "[gateway]\noutbound = [\"192.0.2.1:15001\", \"[2001:db8::1]:15001\", \"192.0.2.2:15001\"]\n\
         dns = [\"192.0.2.1:15053\"]\n",
    );
    let shown: Vec<String> = config
        .all_nat()
        .iter()
        .map(|nat| {
            format!(
                "{} {} {} {}",
                nat.direction,
                nat.proto,
                nat.to,
                nat.endpoints.len()
            )
        })
        .collect();
    let expected = [
        "egress tcp any 2",
        "egress tcp any 1",
        "egress udp :53 1",
        "egress tcp :53 1",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn more_exact_rules_may_lie_in_others() {
    let rule = |addr: &str, port: &str, action: &str| {
        format!(
            "[[acl]]\naddr = \"{addr}\"\nport = \"{port}\"\nproto = \"tcp\"\naction = \"{action}\"\n"
        )
    };
    parsed(&format!(
        "{}{}{}{}",
        rule("10.0.0.0/8", "any", "audit"),
        rule("10.0.0.0/8", "8000-8099", "deny"),
        rule("10.0.0.0/8", "8080", "trusted"),
        rule("10.1.0.0/16", "8050-8200", "trusted"),
    ));
}

#[test]
fn values_are_shown_as_they_are_read() {
    for text in [
        "10.0.0.1:80",
        "[fd00::1]:80",
        "10.0.0.1",
        "fd00::1",
        ":53",
        "any",
    ] {
        assert_eq!(text.parse::<NatTarget>().unwrap().to_string(), text);
    }
    for text in ["any", "80", "8000-8099"] {
        assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
    }
}

/// Repeatable noise (xorshift64*).
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }
}

#[test]
fn no_text_panics() {
    let full = fs::read_to_string(folder("../configs/full.toml")).unwrap();
    let file = Path::new("node.toml");
    let mut noise = Noise(0x5eed);
    for end in (0..full.len())
        .filter(|end| full.is_char_boundary(*end))
        .step_by(11)
    {
        let _ = parse(&full[..end], file);
    }
    for _ in 0..300 {
        let mut bytes = full.clone().into_bytes();
        for _ in 0..=noise.below(4) {
            let at = noise.below(bytes.len());
            bytes[at] = b"[]{}\"'=.,#\n0a-\\\xff"[noise.below(16)];
        }
        let _ = parse(&String::from_utf8_lossy(&bytes), file);
    }
    for _ in 0..300 {
        let size = noise.below(200);
        let bytes: Vec<u8> = (0..size).map(|_| noise.below(256) as u8).collect();
        let _ = parse(&String::from_utf8_lossy(&bytes), file);
    }
    for deep in ["a=[", "[a.", "a={a=", "a."] {
        let _ = parse(&deep.repeat(20_000), file);
    }
}

#[test]
fn lists_are_read_and_a_mistake_in_one_has_its_place_there() {
    let folder = std::env::temp_dir().join(format!("fsm-lists-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let node = folder.join("node.toml");
    let load = |lists: &[(&str, &str)]| {
        let names: Vec<String> = lists.iter().map(|(name, _)| format!("{name:?}")).collect();
        for (name, text) in lists {
            fs::write(folder.join(name), text).unwrap();
        }
        let files = names.join(", ");
        let text = format!(
            "acl_files = [{files}]\n{UPLINK}[[acl]]\naddr = \"10.0.0.1\"\naction = \"audit\"\n"
        );
        parse(&text, &node).map_err(|errors| errors.to_string())
    };
    let one = load(&[
        ("a.txt", "10.0.0.1\n10.0.0.2\n"),
        ("b.txt", "10.0.0.2 deny\n"),
    ])
    .unwrap();
    assert_eq!(one.acl_count(), 4);
    let other = load(&[("a.txt", "10.0.0.1\n10.0.0.3\n"), ("b.txt", "")]).unwrap();
    assert_ne!(
        one.hash(),
        other.hash(),
        "a list is part of the configuration"
    );

    let at = |name: &str| folder.join(name).display().to_string();
    let error = load(&[("a.txt", "# feed\n10.0.0.1\n  10.0.0.2 dny\n")]).unwrap_err();
    let start = format!("{}:3:12: action: unknown action `dny`", at("a.txt"));
    assert!(error.starts_with(&start), "{error}");
    let error = load(&[("a.txt", "10.0.0.2\n"), ("b.txt", "\n10.0.0.2 trusted\n")]).unwrap_err();
    let text = format!(
        "{}:2:1: addr: trusted contradicts deny in {}:1:1",
        at("b.txt"),
        at("a.txt")
    );
    assert!(error.starts_with(&text), "{error}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_mistake_in_a_long_acl_has_its_place_too() {
    let mut text = UPLINK.to_owned();
    for i in 0..2000 {
        text += &format!(
            "[[acl]]\naddr = \"10.0.{}.{}\"\naction = \"deny\"\n",
            i / 250,
            i % 250
        );
    }
    text += "[[acl]]\naddr = \"10.0.0.7\"\naction = \"audit\"\n";
    let problems = refused(&text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0]
            .starts_with("node.toml:6005:8: acl[2000].addr: audit contradicts deny in line 25;"),
        "{problems:?}"
    );
}
