//! The big file that the lab's web servers serve as `/blob`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::error::{Result, file};
use super::handle::Lab;
use super::shell;

/// Size of the file.
pub const BLOB_MIB: u64 = 100;

impl Lab {
    /// Makes the big file if this lab has none yet; gives the SHA-256 that it must arrive with.
    pub fn blob_sum(&self) -> Result<String> {
        let path = self.plan().path("www").join("blob");
        if !path.exists() {
            fill(&path)?;
        }
        let line = shell::run("sha256sum", [&path])?;
        Ok(line
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    }
}

/// Random bytes: whatever is changed, repeated or swapped on the way shows in the sum.
fn fill(path: &Path) -> Result<()> {
    let random = "/dev/urandom";
    let mut source = File::open(random).map_err(file(random))?;
    let mut target = File::create(path).map_err(file(path))?;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..BLOB_MIB {
        source.read_exact(&mut block).map_err(file(random))?;
        target.write_all(&block).map_err(file(path))?;
    }
    Ok(())
}
