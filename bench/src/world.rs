//! Where programs are measured: a network and mount namespace of this process's own, and in it the real
//! objects over maps in a private bpffs. All of it goes when the process does.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use fsm_common::{
    Reason, flags,
    flow::FlowKey,
    maps::{IfaceEntry, Xcfg, iface_flag, name, role, sys as system},
    nat::{self, NatEndpoint, NatKey, NatValue},
    policy::{Acl4Key, AclValue, CidrRule, CidrValue, Tagged as _, acl, class, kind},
    stats::{Hook, Verdict},
};
use fsm_fastpath::{
    loader::objects::{Objects, Sizes, program},
    maps::{Maps, pin_dir},
};

use crate::{packet::TCP, sys};

/// Device of every test run (`net/bpf/test_run.c`): the namespace's loopback.
pub const LOOPBACK: u32 = 1;
/// Device of the app to which trusted packets are redirected; it need not exist.
pub const APP: u32 = 2;
/// The generation under which everything is judged.
pub const GENERATION: u32 = 7;
/// ACL kinds of hash entries.
pub const HASH: u32 = kind::EXACT4 | kind::ADDR4;
/// The gateway's listener.
pub const GATEWAY: ([u8; 4], u16) = ([192, 168, 226, 22], 15001);

/// A scratch folder with a bpffs of its own, seen by nobody else.
pub struct Sandbox {
    /// The bpffs.
    pub root: PathBuf,
}

impl Sandbox {
    /// Leaves the host's network and mounts.
    pub fn enter() -> Result<Self> {
        let root = std::env::temp_dir().join(format!("fsm-bench-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| root.display().to_string())?;
        let sandbox = Self { root };
        // SAFETY: no other thread of this process exists yet.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET) })
            .context("unshare (needs root)")?;
        mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE)
            .context("mount namespace")?;
        mount(Some("bpf"), &sandbox.root, Some("bpf"), 0).context("bpffs")?;
        Ok(sandbox)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.root.as_os_str().as_encoded_bytes()) {
            // SAFETY: a valid string. Without it the mount goes with its namespace all the same.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        let _already_gone = fs::remove_dir(&self.root);
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn mount(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let source = CString::new(source.unwrap_or("none"))?;
    let target = CString::new(target.as_os_str().as_encoded_bytes())?;
    let kind = kind.map(CString::new).transpose()?;
    let kind = kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr());
    // SAFETY: strings that live until the call returns, or null.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    })
}

/// The addresses for which every world's ACL has an entry; ports are `ACL_PORT`.
pub mod peer {
    /// Exact entry: deny, trusted.
    pub const EXACT: [[u8; 4]; 2] = [[20, 0, 1, 1], [20, 0, 3, 1]];
    /// Address entry: deny, trusted.
    pub const ADDR: [[u8; 4]; 2] = [[20, 0, 1, 2], [20, 0, 3, 2]];
    /// CIDR /24: deny, trusted.
    pub const CIDR: [[u8; 4]; 2] = [[20, 0, 2, 9], [20, 0, 4, 9]];
    /// No entry.
    pub const NONE: [u8; 4] = [20, 0, 0, 2];
    /// Port of the exact entries.
    pub const PORT: u16 = 8080;
}

/// One set of maps with its programs.
pub struct World {
    /// The programs.
    pub objects: Objects,
    /// The maps.
    pub maps: Maps,
    /// `fsm_xflow`, for batches.
    pub flow4: OwnedFd,
    /// `fsm_half`, likewise.
    pub half4: OwnedFd,
    /// `fsm_xopt`, likewise.
    pub xopt: OwnedFd,
    csum_ipv6_flag: u32,
}

impl World {
    /// Loads programs over new maps for `flows` flows, and an ACL of `acl` entries more than the peers.
    pub fn new(root: &Path, label: &str, flows: u32, acl: u32) -> Result<Self> {
        let bpffs = root.join(label);
        let dir = pin_dir(&bpffs);
        let mut objects = Objects::load(
            &dir,
            Sizes {
                flows,
                half_open: 1 << 18,
            },
        )?;
        let csum_ipv6_flag = objects.csum_ipv6_flag()?;
        let open = |name: &str| sys::pinned(&dir.join(name)).with_context(|| name.to_owned());
        let mut world = Self {
            maps: Maps::open(&bpffs)?,
            flow4: open(name::FSM_XFLOW)?,
            half4: open(name::FSM_HALF)?,
            xopt: open(name::FSM_XOPT)?,
            objects,
            csum_ipv6_flag,
        };
        fill_acl(&mut world.maps, acl)?;
        for proto in [TCP, crate::packet::UDP] {
            for v6 in [0, 1] {
                world.add_nat(proto, v6)?;
            }
        }
        Ok(world)
    }

    /// Settings with these flags and ACL kinds.
    pub fn settings(&self, flags: u64, acl_kinds: u32) -> Xcfg {
        Xcfg {
            ipv4: flags,
            ipv6: flags,
            generation: GENERATION,
            acl_kinds: acl_kinds | (acl_kinds << kind::V6_SHIFT),
            nat_kinds: [false, true].into_iter().fold(0, |kinds, v6| {
                let shift = |is_udp| nat::kind::shift(nat::dir::EGRESS, is_udp, v6);
                kinds | nat::kind::ANY << shift(false) | nat::kind::ANY << shift(true)
            }),
            features: 0,
            fail_open: 1,
            csum_ipv6_flag: self.csum_ipv6_flag,
            idle_check_ns: u64::MAX >> 1,
            ..Xcfg::ZERO
        }
    }

    /// Makes the loopback a device of this role, and sets the settings.
    pub fn place(&mut self, role: u8, settings: &Xcfg) -> Result<()> {
        let here = IfaceEntry {
            ifindex: LOOPBACK,
            mtu: 65536,
            mac: [2, 0, 0, 0, 0, 1],
            role,
            flags: 0,
        };
        let flags = iface_flag::PEER | iface_flag::XDP_TX | iface_flag::REDIRECT;
        let app = IfaceEntry {
            ifindex: APP,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 9],
            role: role::ENDPOINT,
            flags,
        };
        self.maps.iface.set(LOOPBACK, here, 0)?;
        self.maps.iface.set(APP, app, 0)?;
        self.maps.set_settings(*settings)?;
        Ok(())
    }

    /// The programs for what apps send, and for what they are sent.
    pub fn tc(&mut self) -> Result<[OwnedFd; 2]> {
        let open =
            |name| -> Result<OwnedFd> { Ok(self.objects.fd(name)?.as_fd().try_clone_to_owned()?) };
        Ok([open(program::TC_INGRESS)?, open(program::TC_EGRESS)?])
    }

    /// Below which its maps are pinned.
    pub fn bpffs(&self) -> Result<PathBuf> {
        let parent = self.maps.dir.parent().context("no bpffs")?;
        Ok(parent.to_owned())
    }

    /// Packets counted for this reason.
    pub fn reason(&self, reason: Reason) -> Result<u64> {
        let cpus = self.maps.reason.get(&(reason as u32), 0)?;
        Ok(cpus.iter().sum())
    }

    /// Packets counted at the loopback.
    pub fn counted(&self, hook: Hook, verdict: Verdict) -> Result<u64> {
        let all = self.maps.ifstats.get(&LOOPBACK, 0)?;
        Ok(all
            .iter()
            .map(|cpu| cpu.counts[hook as usize][verdict as usize].packets)
            .sum())
    }

    fn add_nat(&mut self, proto: u8, v6: u8) -> Result<()> {
        let key = NatKey {
            proto,
            dir: nat::dir::EGRESS,
            v6,
            sys: system::MESH,
            ..NatKey::ZERO
        };
        let mut endpoint = NatEndpoint {
            weight: 1,
            active: 1,
            ..NatEndpoint::ZERO
        };
        endpoint.addr = if v6 == 1 {
            crate::packet::key6(proto, [0; 4], 0, GATEWAY.0, 0).daddr
        } else {
            fsm_common::flow::Address::widen(GATEWAY.0)
        };
        endpoint.port = GATEWAY.1.to_be_bytes();
        let mut value = NatValue {
            ep_cnt: 1,
            usable: 1,
            ..NatValue::ZERO
        };
        value.endpoints[0] = endpoint;
        self.maps.xnat.insert(key, value, 0)?;
        Ok(())
    }
}

/// Flags of the measured paths; `with_origin` fills `fsm_xopt`.
pub const fn default_flags(with_origin: bool) -> u64 {
    if with_origin {
        flags::DEFAULT
    } else {
        flags::DEFAULT & !(flags::TCP_OPT | flags::UDP_OPT)
    }
}

/// A tuple whose listener is the gateway, for the answer's direction.
pub fn to_gateway(key: &FlowKey<[u8; 4]>) -> FlowKey<[u8; 4]> {
    FlowKey {
        daddr: GATEWAY.0,
        dport: GATEWAY.1.to_be_bytes(),
        ..*key
    }
}

fn fill_acl(maps: &mut Maps, more: u32) -> Result<()> {
    let entry = |addr, port: u16, acl| {
        let key = Acl4Key {
            addr,
            port: port.to_be_bytes(),
            proto: 0,
            sys: system::MESH,
        };
        let value = AclValue {
            from: 0,
            now: AclValue::with(AclValue::NOTHING, class::TCP, acl),
            was: AclValue::NOTHING,
            tag: key.tag(),
            ids: [1; class::COUNT],
        };
        (key, value)
    };
    for (at, verdict) in [acl::DENY, acl::TRUSTED].into_iter().enumerate() {
        for (addr, port) in [(peer::EXACT[at], peer::PORT), (peer::ADDR[at], 0)] {
            let (key, value) = entry(addr, port, verdict);
            maps.acl4.insert(key, value, 0)?;
        }
        let [a, b, c, _] = peer::CIDR[at];
        maps.cidr4
            .insert(&Key::new(24, [a, b, c, 0]), rules(verdict), 0)?;
    }
    // a third of them addresses, the others exact; none is a measured packet's peer
    let others: Vec<(Acl4Key, AclValue)> = (0..more)
        .map(|i| {
            let [_, b, c, d] = i.to_be_bytes();
            entry([30, b, c, d], if i % 3 == 0 { 0 } else { 80 }, acl::DENY)
        })
        .collect();
    maps.bulk(name::FSM_XACL)?.write(&others)?;
    // one CIDR for every ten entries
    for i in 0..more / 10 {
        let [_, b, c, d] = (i << 4).to_be_bytes();
        maps.cidr4
            .insert(&Key::new(28, [40, b, c, d]), rules(acl::DENY), 0)?;
    }
    Ok(())
}

fn rules(acl: u8) -> CidrValue {
    let rule = CidrRule {
        port_lo: 0,
        port_hi: u16::MAX,
        proto: 0,
        acl,
        id: 1,
    };
    CidrValue {
        now: rule,
        was: CidrRule::SILENT,
        from: 0,
        pad: 0,
    }
}
