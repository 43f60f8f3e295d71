//! What the figures were taken on, and where they are kept.

use std::{fs, io, path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The machine, as it stands in every file of results.
#[derive(Serialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that are on.
    pub cores: usize,
    /// UTC, `YYYY-MM-DD`.
    pub date: String,
    /// The last minute's load when the run ended: other work on the machine shows here.
    pub load: f32,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let cpus = read("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .unwrap_or("unknown");
        let load = read("/proc/loadavg")?;
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            cpu: model.trim_start_matches([' ', '\t', ':']).into(),
            cores: cpus
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            date: today(),
            load: load
                .split(' ')
                .next()
                .and_then(|first| first.parse().ok())
                .unwrap_or(0.0),
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "kernel {}, {}, {} cores, load {:.1}",
            self.kernel, self.cpu, self.cores, self.load
        )
    }
}

/// UTC date (Howard Hinnant's `civil_from_days`).
pub fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let days = seconds / 86400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Today's file of results of this kind, in the folder it is called from or the workspace's.
pub fn results(kind: &str) -> Result<PathBuf> {
    let folder = PathBuf::from("bench/results");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder.join(format!("{kind}-{}.json", today())))
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero set is a value, the CPU number is checked by the macro's bounds, and the set
    // lives until the call returns.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Has this process, and those it starts, run before others' work on the machine: the highest priority, and a slice
/// so short that whoever wakes up need not wait for the end of another's (Linux 6.12).
pub fn come_first() -> io::Result<()> {
    /// `struct sched_attr` (`linux/sched/types.h`), as far as it has always gone.
    #[repr(C)]
    struct Wish {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        slice_ns: u64,
        deadline: u64,
        period: u64,
    }
    let wish = Wish {
        size: size_of::<Wish>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: -20,
        priority: 0,
        slice_ns: 200_000,
        deadline: 0,
        period: 0,
    };
    // SAFETY: laid out as the kernel wants it, with its size; it lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The middle value, or the mean of the two; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
