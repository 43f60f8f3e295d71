//! The cgroup that the gateway's processes are put into: programs that answer SO_ORIGINAL_DST are
//! attached to it and so concern nobody else on the host.

use std::path::PathBuf;

use super::error::{Error, Result, file};
use super::plan::Plan;

/// Where the lab's cgroup is or would be.
pub(super) fn path(plan: &Plan) -> Result<PathBuf> {
    let mounts = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(mounts).map_err(file(mounts))?;
    mount_point(&text)
        .map(|root| root.join(&plan.name))
        .ok_or(Error::NoCgroup2)
}

/// Makes the lab's cgroup.
pub(super) fn create(plan: &Plan) -> Result<PathBuf> {
    let path = path(plan)?;
    std::fs::create_dir(&path).map_err(file(&path))?;
    Ok(path)
}

/// Removes the lab's cgroup if it is there. Its processes have been ended; the kernel may need a
/// moment to let go of them.
pub(super) fn remove(plan: &Plan) -> Result<()> {
    let path = path(plan)?;
    for _ in 0..50 {
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file(path)(error));
            }
            _ => return Ok(()),
        }
    }
    std::fs::remove_dir(&path).map_err(file(path))
}

/// The first cgroup v2 mount in a mountinfo text: it is the fifth field, and the file system's
/// type follows a lone dash.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let is_cgroup2 = source.split_whitespace().next() == Some("cgroup2");
        let point = mount.split_whitespace().nth(4)?;
        is_cgroup2.then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_version_two_beside_version_one() {
        let text = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(text),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(mount_point(""), None);
    }
}
