//! The golden packets: files of hexadecimal digits with a description and what parsing says of them. Host
//! tests, `prog_run` and benches read the same files.

use std::path::Path;

/// One file of `common/tests/packets`.
#[derive(Debug)]
pub struct Golden {
    /// File name without `.hex`.
    pub name: String,
    /// Its first line.
    pub description: String,
    /// What the parser says: see `packets/README`.
    pub expect: String,
    /// The frame.
    pub frame: Vec<u8>,
}

/// All files, by name.
pub fn all() -> Vec<Golden> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/tests/packets");
    let mut found: Vec<Golden> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .map(|path| read(&path))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(
        found.len() > 20,
        "golden packets are missing in {}",
        dir.display()
    );
    found
}

fn read(path: &Path) -> Golden {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let line = |label: &str| {
        let prefix = format!("# {label}: ");
        let found = text.lines().find_map(|line| line.strip_prefix(&prefix));
        found
            .unwrap_or_else(|| panic!("{}: no line `{prefix}`", path.display()))
            .to_string()
    };
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::bytes)
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let frame = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    Golden {
        name,
        description: line("description"),
        expect: line("expect"),
        frame,
    }
}
