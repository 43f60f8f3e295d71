//! What the kernel says of itself: memory, and settings that are put back afterwards.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    os::fd::RawFd,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A setting below `/proc/sys` that has another value until this is dropped. Opened once: so it may be dropped
/// in another namespace.
pub struct Setting {
    file: File,
    before: String,
}

impl Setting {
    /// Sets it to `value` for now.
    pub fn hold(name: &str, value: u64) -> Result<Self> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| path.clone())?;
        let mut before = String::new();
        file.read_to_string(&mut before)?;
        let mut held = Self { file, before };
        held.write(&value.to_string()).with_context(|| path)?;
        Ok(held)
    }

    /// Sets it to `value` for now, unless it is larger.
    pub fn hold_at_least(name: &str, value: u32) -> Result<Self> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let now: u64 = text.trim().parse().with_context(|| path)?;
        Self::hold(name, now.max(u64::from(value)))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file.rewind()?;
        Ok(self.file.write_all(text.as_bytes())?)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let before = self.before.trim().to_owned();
        if let Err(error) = self.write(&before) {
            eprintln!("a setting could not be put back to {before}: {error}");
        }
    }
}

/// CPU time of a process, all its threads, by the scheduler's own count; what a packet costs in the kernel is in it
/// where that is done in the process's name.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let tasks = format!("/proc/{process}/task");
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(&tasks).context(tasks)? {
        // A thread may be gone by now.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let ran = text.split_whitespace().next().unwrap_or("0");
        sum += Duration::from_nanos(ran.parse()?);
    }
    Ok(sum)
}

/// Processes of the kernel that handle packets which nobody has time for.
pub fn packet_threads() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if comm.starts_with("ksoftirqd/") {
            found.push(process);
        }
    }
    Ok(found)
}

/// Bytes that a map takes, by its `fdinfo`.
pub fn map_bytes(map: RawFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{map}");
    let info = fs::read_to_string(&path).with_context(|| path.clone())?;
    info.lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|bytes| bytes.trim().parse().ok())
        .with_context(|| format!("{path}: no memlock"))
}

/// Bytes in the kernel's slabs, of all kinds.
pub fn slab_bytes() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    info.lines()
        .find_map(|line| line.strip_prefix("Slab:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .context("/proc/meminfo: no Slab")
}

/// Objects of a slab cache and the bytes of one; `None` where there is no such cache of its own.
pub fn slab(name: &str) -> Result<Option<(u64, u64)>> {
    let info = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    Ok(info.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some(name) {
            return None;
        }
        let objects = words.next()?.parse().ok()?;
        let bytes = words.nth(1)?.parse().ok()?;
        Some((objects, bytes))
    }))
}
