//! The yardstick's binary: `xdpsock.c`, compiled where the benchmark runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = include_str!("xdpsock.c");

/// Compiles it into a folder.
pub fn compile(dir: &Path) -> Result<PathBuf> {
    let (source, binary) = (dir.join("xdpsock.c"), dir.join("xdpsock"));
    std::fs::write(&source, SOURCE).with_context(|| source.display().to_string())?;
    let output = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&binary, &source])
        .args(["-lxdp", "-lbpf"])
        .output()
        .context("cc")?;
    ensure!(
        output.status.success(),
        "libxdp's loop does not compile; Debian has what it needs in gcc and libxdp-dev: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(binary)
}
