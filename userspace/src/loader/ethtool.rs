//! The few settings of a device that only ethtool's ioctl reaches (`linux/ethtool.h`).

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Commands.
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`, and the bytes of each of its strings.
const FEATURES: u32 = 4;
const STRING: usize = 32;

/// One device of this thread's namespace.
pub struct Ethtool {
    socket: OwnedFd,
    name: [u8; libc::IF_NAMESIZE],
}

impl Ethtool {
    /// By index.
    ///
    /// # Errors
    /// Where there is no such device.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        // SAFETY: plain call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut name = [0u8; libc::IF_NAMESIZE];
        // SAFETY: the buffer has the size that the call writes at most.
        if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) }.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, name })
    }

    /// Whether generic receive offload is on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn gro(&self) -> io::Result<bool> {
        let mut value = [GET_GRO, 0];
        self.call(&mut value)?;
        Ok(value[1] != 0)
    }

    /// Switches it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_gro(&self, on: bool) -> io::Result<()> {
        self.call(&mut [SET_GRO, u32::from(on)])
    }

    /// Whether a feature is on of which `is_meant` says so, by its name.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_on(&self, is_meant: impl Fn(&str) -> bool) -> io::Result<bool> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        let mut state = vec![0; 2 + 4 * blocks];
        (state[0], state[1]) = (GET_FEATURES, blocks as u32);
        self.call(&mut state)?;
        let is_active = |index: usize| state[4 + 4 * (index / 32)] >> (index % 32) & 1 != 0;
        let mut meant = names.iter().enumerate().filter(|(_, name)| is_meant(name));
        Ok(meant.any(|(index, _)| is_active(index)))
    }

    /// Switches off every feature that `is_meant` says of its name (as `ethtool -k` has it in the kernel's words),
    /// where it can be switched.
    ///
    /// # Errors
    /// What the kernel says; or one stays on.
    pub fn switch_off(&self, is_meant: impl Fn(&str) -> bool) -> io::Result<()> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        // Blocks of four words: available, requested, active, never changed.
        let mut state = vec![0; 2 + 4 * blocks];
        (state[0], state[1]) = (GET_FEATURES, blocks as u32);
        self.call(&mut state)?;
        // Blocks of two: which, and to what.
        let mut wanted = vec![0; 2 + 2 * blocks];
        (wanted[0], wanted[1]) = (SET_FEATURES, blocks as u32);
        for (index, _) in names.iter().enumerate().filter(|(_, name)| is_meant(name)) {
            wanted[2 + 2 * (index / 32)] |= 1 << (index % 32);
        }
        for block in 0..blocks {
            wanted[2 + 2 * block] &= state[2 + 4 * block];
        }
        self.call(&mut wanted)?;
        (state[0], state[1]) = (GET_FEATURES, blocks as u32);
        self.call(&mut state)?;
        let stays = (0..blocks).any(|b| wanted[2 + 2 * b] & state[4 + 4 * b] != 0);
        match stays {
            true => Err(io::Error::other("an offload cannot be switched off")),
            false => Ok(()),
        }
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        // cmd, reserved, mask of sets (64 bits), count
        let mut info = [GET_SET_INFO, 0, 1 << FEATURES, 0, 0];
        self.call(&mut info)?;
        let count = info[4] as usize;
        let mut strings = vec![0u32; 3 + count * STRING / 4];
        strings[..3].copy_from_slice(&[GET_STRINGS, FEATURES, count as u32]);
        self.call(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Ok(bytes.chunks(STRING).map(text).collect())
    }

    /// `request` begins with the command, and is as long as the kernel reads and writes for it.
    fn call(&self, request: &mut [u32]) -> io::Result<()> {
        // SAFETY: zero is a value of this struct of integers and pointers.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        let text = CStr::from_bytes_until_nul(&self.name).map_err(io::Error::other)?;
        for (to, from) in ifreq.ifr_name.iter_mut().zip(text.to_bytes_with_nul()) {
            *to = *from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        let fd = self.socket.as_raw_fd();
        // SAFETY: the request points to memory that lives through the call, and is long enough (see above).
        match unsafe { libc::ioctl(fd, libc::SIOCETHTOOL as _, &raw mut ifreq) } {
            result if result >= 0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
