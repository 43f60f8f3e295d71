//! Programs on devices. Each link is pinned under `links/`, so that it outlives the daemon; a pin that is
//! there already is taken over by putting the new program in, atomically.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramFd, SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};

use super::{
    devices::Device,
    objects::{Objects, program},
    sys::{AttachType, Link, LinkInfo, XDP_GENERIC, XDP_NATIVE},
};
use crate::config::XdpMode;

/// Why a program cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else's XDP program.
    #[error(
        "{name}: another XDP program (id {prog_id}) is attached and stays: detach it \
         (`ip link set dev {name} xdp off`), or set xdp = \"off\" for this interface"
    )]
    ForeignXdp {
        /// Device.
        name: String,
        /// Its program.
        prog_id: u32,
    },
    /// The kernel or the driver refuses.
    #[error("{name}: {what} cannot be attached: {source}")]
    Refused {
        /// Device or cgroup.
        name: String,
        /// Which program.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A pin of ours cannot be read or written.
    #[error("{path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How TC programs are attached on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcKind {
    /// TCX links (Linux 6.6 and later).
    Tcx,
    /// Filters on a clsact qdisc. They stay without a pin.
    Clsact,
}

impl TcKind {
    /// Its word in `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Priority and handle of our clsact filters, by which they are found again.
const FILTER: (u16, TcHandle) = (0xf5, TcHandle::new(0, 0xf5));

/// What is on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnDevice {
    /// XDP link, TC ingress link, TC egress link; 0 where there is none.
    pub links: [u32; 3],
    /// Whether XDP is native; `None`: no XDP.
    pub xdp_native: Option<bool>,
    /// Whether an earlier daemon had attached them.
    pub adopted: bool,
}

/// The folder of the link pins.
pub fn link_dir(dir: &Path) -> PathBuf {
    dir.join("links")
}

fn pin_path(dir: &Path, ifindex: u32, hook: &str) -> PathBuf {
    link_dir(dir).join(format!("{ifindex}-{hook}"))
}

/// Attaches whatever the device is to have, and lets go of what it is not.
///
/// # Errors
/// See [`AttachError`]. What was attached before stays.
pub fn attach(
    objects: &mut Objects,
    dir: &Path,
    device: &Device,
    xdp: XdpMode,
    tc: TcKind,
) -> Result<OnDevice, AttachError> {
    let mut on = OnDevice::default();
    attach_xdp(objects, dir, device, xdp, &mut on)?;
    for (slot, kind, name, hook, direction) in [
        (
            1,
            AttachType::TcxIngress,
            program::TC_INGRESS,
            "in",
            TcAttachType::Ingress,
        ),
        (
            2,
            AttachType::TcxEgress,
            program::TC_EGRESS,
            "out",
            TcAttachType::Egress,
        ),
    ] {
        on.links[slot] = match tc {
            TcKind::Tcx => {
                let path = pin_path(dir, device.ifindex, hook);
                let (link, adopted) = take_over(objects, name, &path, device, |program| {
                    Link::create(program, device.ifindex, kind, 0)
                })?;
                on.adopted |= adopted;
                link.id
            }
            TcKind::Clsact => attach_clsact(objects.tc(name), device, direction)?,
        };
    }
    Ok(on)
}

fn attach_xdp(
    objects: &Objects,
    dir: &Path,
    device: &Device,
    mode: XdpMode,
    on: &mut OnDevice,
) -> Result<(), AttachError> {
    let path = pin_path(dir, device.ifindex, "xdp");
    let own = Link::open(&path)
        .and_then(|link| link.map(|link| link.info()).transpose())
        .map_err(|source| AttachError::Pin {
            path: path.clone(),
            source,
        })?;
    let own = own.filter(|info| info.ifindex == device.ifindex);
    let is_native = device.xdp.is_some_and(|state| state.native);
    let fits = match mode {
        XdpMode::Off => false,
        XdpMode::Auto => true,
        XdpMode::Native => is_native,
        XdpMode::Generic => !is_native,
    };
    if own.is_none() || !fits {
        remove_pin(&path)?;
    }
    if mode == XdpMode::Off {
        return Ok(());
    }
    if own.is_none()
        && let Some(state) = device.xdp
    {
        return Err(AttachError::ForeignXdp {
            name: device.name.clone(),
            prog_id: state.prog_id,
        });
    }
    let flags: &[u32] = match mode {
        XdpMode::Native => &[XDP_NATIVE],
        XdpMode::Generic => &[XDP_GENERIC],
        _ => &[XDP_NATIVE, XDP_GENERIC],
    };
    let mut used = if is_native { XDP_NATIVE } else { XDP_GENERIC };
    let (link, adopted) = take_over(objects, program::XDP, &path, device, |program| {
        let mut last = io::Error::from(io::ErrorKind::Unsupported);
        for &flag in flags {
            match Link::create(program, device.ifindex, AttachType::Xdp, flag) {
                Ok(link) => {
                    used = flag;
                    return Ok(link);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    })?;
    on.links[0] = link.id;
    on.adopted |= adopted;
    on.xdp_native = Some(used == XDP_NATIVE);
    Ok(())
}

/// Puts the program into the pinned link, or attaches it and pins the link.
pub(super) fn take_over(
    objects: &Objects,
    name: &'static str,
    path: &Path,
    device: &Device,
    create: impl FnOnce(&ProgramFd) -> io::Result<Link>,
) -> Result<(LinkInfo, bool), AttachError> {
    let refused = |source| AttachError::Refused {
        name: device.name.clone(),
        what: name,
        source,
    };
    let pin = |source| AttachError::Pin {
        path: path.to_owned(),
        source,
    };
    let program = objects
        .fd(name)
        .map_err(|error| refused(io::Error::other(error)))?;
    if let Some(link) = Link::open(path).map_err(pin)? {
        match link.update(program) {
            Ok(()) => return Ok((link.info().map_err(pin)?, true)),
            // The device of that number has gone since, and another has come.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => remove_pin(path)?,
            Err(error) => return Err(refused(error)),
        }
    }
    let link = create(program).map_err(refused)?;
    link.pin(path).map_err(pin)?;
    Ok((link.info().map_err(pin)?, false))
}

/// A filter of ours outlives the daemon without a pin; one that is there already is replaced in place.
pub(super) fn attach_clsact(
    program: &mut SchedClassifier,
    device: &Device,
    direction: TcAttachType,
) -> Result<u32, AttachError> {
    let refused = |source| AttachError::Refused {
        name: device.name.clone(),
        what: "TC filter",
        source,
    };
    let (priority, handle) = FILTER;
    let old = SchedClassifierLink::attached(&device.name, direction, priority, handle, None)
        .map_err(refused)?;
    let options = NlOptions {
        priority,
        handle,
        classid: None,
    };
    let link = program
        .attach_to_link(old)
        .or_else(|_| {
            program.attach_with_options(&device.name, direction, TcAttachOptions::Netlink(options))
        })
        .and_then(|id| program.take_link(id))
        .map_err(|error| refused(io::Error::other(error)))?;
    // Dropping it would detach the filter.
    std::mem::forget(link);
    Ok(0)
}

/// Makes sure that the device has a clsact qdisc; whether it had none.
///
/// # Errors
/// See [`AttachError`].
pub fn ensure_clsact(device: &Device) -> Result<bool, AttachError> {
    match tc::qdisc_add_clsact(&device.name) {
        Ok(()) => Ok(true),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            Ok(false)
        }
        Err(error) => Err(AttachError::Refused {
            name: device.name.clone(),
            what: "clsact qdisc",
            source: io::Error::other(error),
        }),
    }
}

/// Removes our clsact filters, if any.
pub fn detach_clsact(name: &str) {
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (priority, handle) = FILTER;
        if let Ok(link) = SchedClassifierLink::attached(name, direction, priority, handle, None) {
            let _ = link.detach();
        }
    }
}

/// Attaches the program that answers SO_ORIGINAL_DST to a cgroup.
///
/// # Errors
/// See [`AttachError`].
pub fn attach_origin(objects: &Objects, dir: &Path, cgroup: &Path) -> Result<u32, AttachError> {
    let device = Device {
        name: cgroup.display().to_string(),
        ..Device::default()
    };
    let path = link_dir(dir).join("origin");
    let open = || std::fs::File::open(cgroup);
    let (link, _) = take_over(objects, program::ORIGIN, &path, &device, |program| {
        let folder = open()?;
        Link::create(
            program,
            folder.as_fd().as_raw_fd() as u32,
            AttachType::CgroupGetsockopt,
            0,
        )
    })?;
    Ok(link.id)
}

/// Lets go of the cgroup.
///
/// # Errors
/// Where the pin cannot be removed.
pub fn detach_origin(dir: &Path) -> Result<(), AttachError> {
    remove_pin(&link_dir(dir).join("origin"))
}

/// Lets go of a device.
///
/// # Errors
/// Where a pin cannot be removed.
pub fn detach(dir: &Path, ifindex: u32) -> Result<(), AttachError> {
    for hook in ["xdp", "in", "out"] {
        remove_pin(&pin_path(dir, ifindex, hook))?;
    }
    Ok(())
}

/// Indices of the devices that have a pinned link.
///
/// # Errors
/// Where the folder cannot be read.
pub fn attached(dir: &Path) -> Result<BTreeSet<u32>, AttachError> {
    let path = link_dir(dir);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(AttachError::Pin { path, source }),
    };
    let index = |name: &str| name.split('-').next().and_then(|index| index.parse().ok());
    Ok(entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str().and_then(index))
        .collect())
}

/// Removes a pin; fine where there is none.
pub(super) fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AttachError::Pin {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
