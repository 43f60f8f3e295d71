//! Back to nothing: what was attached, pinned or switched on goes, and the host is as it was.

use std::path::Path;

use fsm_common::maps::{IFACE_PROBES, IFACE_SLOTS, iface_flag};
use rtnetlink::Handle;

use super::{
    attach::{self, AttachError, TcKind},
    devices::{self, Device},
    dpi,
    node::NodeError,
    peer, preflight, vip,
};
use crate::maps::{Maps, pin_dir};

/// Undoes what attaching changed beside the links.
pub async fn restore(device: &Device, flags: u8, tc: TcKind, handle: &mut Handle) {
    if flags & iface_flag::GRO_SET != 0
        && let Some(peer) = device.peer
        && let Ok(namespace) = peer::namespace(handle, device).await
    {
        let _ = peer::set_gro(namespace, peer, false);
    }
    if tc == TcKind::Clsact {
        attach::detach_clsact(&device.name);
        if flags & iface_flag::CLSACT_SET != 0 {
            let _ = devices::remove_clsact(handle, device.ifindex).await;
        }
    }
}

/// Removes everything that any daemon of this layout has left below `bpffs`; says what.
///
/// # Errors
/// Where a pin cannot be removed.
pub async fn down(bpffs: &Path, handle: &mut Handle) -> Result<Vec<String>, NodeError> {
    let dir = pin_dir(bpffs);
    let mut done = Vec::new();
    let devices = devices::list(handle).await?;
    if let Ok(mut maps) = Maps::open(bpffs) {
        for addr in vip::remove(&mut maps, handle, |_| true)
            .await
            .map_err(NodeError::Vip)?
        {
            done.push(format!("{addr}: virtual address removed"));
        }
        for device in &devices {
            for probe in 0..IFACE_PROBES {
                let entry = maps
                    .iface
                    .get(&((device.ifindex + probe) & (IFACE_SLOTS - 1)), 0)?;
                if entry.ifindex == device.ifindex {
                    let tc = if preflight::has_tcx() {
                        TcKind::Tcx
                    } else {
                        TcKind::Clsact
                    };
                    restore(device, entry.flags, tc, handle).await;
                    done.push(format!("{}: programs removed", device.name));
                }
            }
        }
    }
    if dpi::remove(handle, &dir, dpi::NAMES).await? {
        done.push(format!("{}, {}: removed", dpi::NAMES[0], dpi::NAMES[1]));
    }
    remove_tree(&dir)?;
    // A bpffs has two files of the kernel's own, maps.debug and progs.debug.
    let is_ours = |name: &std::ffi::OsStr| !name.as_encoded_bytes().ends_with(b".debug");
    let is_empty = std::fs::read_dir(bpffs)
        .is_ok_and(|mut entries| !entries.any(|e| e.is_ok_and(|e| is_ours(&e.file_name()))));
    if is_empty {
        if preflight::unmount_own(bpffs) {
            done.push(format!("{}: unmounted", bpffs.display()));
        } else if std::fs::remove_dir(bpffs).is_ok() {
            done.push(format!("{}: removed", bpffs.display()));
        }
    }
    Ok(done)
}

fn remove_tree(dir: &Path) -> Result<(), AttachError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(AttachError::Pin {
            path: dir.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
