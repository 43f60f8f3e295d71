//! What the host must have, asked before anything is changed: each lack is one sentence with its cure.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Something is missing.
#[derive(Debug, thiserror::Error)]
pub enum Lack {
    /// Not root.
    #[error(
        "eBPF programs can only be loaded as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and \
         CAP_SYS_ADMIN: run this with sudo"
    )]
    Privileges,
    /// No BTF.
    #[error(
        "{0} is missing: the kernel has no type information; it must be built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    Btf(PathBuf),
    /// Too old.
    #[error("Linux {found} is too old: 5.15 is the oldest that has what the programs use")]
    Kernel {
        /// Its version.
        found: String,
    },
    /// bpffs cannot be mounted.
    #[error("{path}: bpffs cannot be mounted there: {source}")]
    Bpffs {
        /// `node.bpffs`
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a cgroup v2.
    #[error("gateway.original_dst = \"{path}\" is no cgroup v2 folder{hint}")]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// Where one is.
        hint: String,
    },
}

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// `BPF_FS_MAGIC` and `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
const BPF_FS: i64 = 0xcafe_4a11;
const CGROUP2: i64 = 0x6367_7270;

/// Asks everything but the mounts.
///
/// # Errors
/// The first lack.
pub fn check(cgroup: Option<&Path>) -> Result<(), Lack> {
    // SAFETY: takes no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Err(Lack::Privileges);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_some_and(|version| version < (5, 15)) {
        return Err(Lack::Kernel {
            found: release.trim().to_owned(),
        });
    }
    if !Path::new(BTF).exists() {
        return Err(Lack::Btf(BTF.into()));
    }
    match cgroup {
        Some(path) if magic(path).ok() != Some(CGROUP2) => Err(Lack::Cgroup {
            path: path.to_owned(),
            hint: cgroup_hint(),
        }),
        _ => Ok(()),
    }
}

/// Mounts bpffs at `path` if it is not one already; whether it was mounted now.
///
/// # Errors
/// [`Lack::Bpffs`].
pub fn mount_bpffs(path: &Path) -> Result<bool, Lack> {
    let fail = |source| Lack::Bpffs {
        path: path.to_owned(),
        source,
    };
    if magic(path).ok() == Some(BPF_FS) {
        return Ok(false);
    }
    // Below a bpffs a folder is enough.
    if path
        .parent()
        .is_some_and(|parent| magic(parent).ok() == Some(BPF_FS))
    {
        return fs::create_dir_all(path).map(|()| false).map_err(fail);
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let target = if parent == Path::new("/sys/fs/bpf") {
        parent
    } else {
        path
    };
    if target == path {
        fs::create_dir_all(path).map_err(fail)?;
    }
    let text = std::ffi::CString::new(target.as_os_str().as_encoded_bytes())
        .map_err(|e| fail(e.into()))?;
    // SAFETY: four strings that end in zero, and no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            text.as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    fs::create_dir_all(path).map_err(fail)?;
    Ok(true)
}

/// Unmounts a bpffs that `mount_bpffs` has made, which is never the host's own at /sys/fs/bpf.
pub fn unmount_own(path: &Path) -> bool {
    let is_mount_point = || {
        let device = |path: &Path| {
            fs::metadata(path)
                .map(|m| std::os::unix::fs::MetadataExt::dev(&m))
                .ok()
        };
        device(path) != path.parent().and_then(device)
    };
    if path == Path::new("/sys/fs/bpf") || magic(path).ok() != Some(BPF_FS) || !is_mount_point() {
        return false;
    }
    let Ok(text) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) else {
        return false;
    };
    // SAFETY: a string that ends in zero.
    if unsafe { libc::umount2(text.as_ptr(), 0) } != 0 {
        return false;
    }
    let _ = fs::remove_dir(path);
    true
}

/// Major and minor number of a release as `uname -r` gives it.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether the kernel has TCX (6.6).
pub fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel_version(&release).is_none_or(|version| version >= (6, 6))
}

fn magic(path: &Path) -> io::Result<i64> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: zero is a value of this struct of integers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both point to memory that lives through the call.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } {
        0 => Ok(stat.f_type as i64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the host has its cgroup v2.
fn cgroup_hint() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| format!(": this host has it at {place}"))
    });
    found.unwrap_or_else(|| ": this host has none mounted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::kernel_version;

    #[test]
    fn a_release_gives_its_two_numbers() {
        assert_eq!(kernel_version("6.18.44-fc\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(kernel_version("odd"), None);
    }
}
