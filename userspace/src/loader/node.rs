//! The data path of one node: programs, maps and devices, kept in step with the configuration and the host.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use fsm_common::{
    maps::{IFACE_PROBES, IFACE_SLOTS, IfaceEntry, MAPS, iface_flag, name, role},
    nat::{NatKey, NatValue, endpoint_flag},
};
use rtnetlink::Handle;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::{
    apply::{ApplyError, Kernel, ToWorkers, apply},
    attach::{self, AttachError, OnDevice, TcKind},
    devices::{self, Device},
    down::restore,
    dpi,
    objects::{LoadError, Objects, Sizes},
    peer, preflight, syn_cookie, vip,
    workers::{self, Inspection},
};
use crate::{
    api,
    config::{Attach, Config, Interface, NatProto, Role, XdpMode},
    maps::{Maps, PinError, check_pin, pin_dir},
    model::{Model, ModelError, nat_key, plan::InForce, wide},
    worker::Told,
};

/// Why the data path is not as configured.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] preflight::Lack),
    /// Programs or maps cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Pins cannot be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A program cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The configuration does not fit into the tables.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The policy cannot be put in force.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A map cannot be written.
    #[error("the maps cannot be written: {0}")]
    Map(#[from] aya::maps::MapError),
    /// Virtual addresses.
    #[error("virtual addresses cannot be kept: {0}")]
    Vip(std::io::Error),
    /// The pair of devices that leads to the workers.
    #[error(transparent)]
    Pair(#[from] super::dpi::DpiError),
    /// Workers.
    #[error("inspection cannot start: {0}")]
    Workers(crate::worker::WorkerError),
    /// A policy of inspection.
    #[error("{0}")]
    Policy(String),
    /// Netlink.
    #[error("the host's devices cannot be listed: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// An interface named exactly is not there.
    #[error("{at}: interface {name} does not exist on this host")]
    NoInterface {
        /// Place in the file.
        at: String,
        /// Its name.
        name: String,
    },
    /// More interfaces than fit.
    #[error("interface {name}: no slot is free among {IFACE_SLOTS}; detach other interfaces first")]
    NoSlot {
        /// Its name.
        name: String,
    },
}

/// One device with our programs.
#[derive(Debug, Clone)]
struct Attached {
    device: Device,
    interface: Interface,
    on: OnDevice,
    flags: u8,
}

/// The data path.
pub struct Node {
    config: Config,
    objects: Objects,
    /// The pinned maps.
    pub maps: Maps,
    dir: PathBuf,
    tc: TcKind,
    csum_ipv6_flag: u32,
    /// What the maps hold; `None` where a change has failed half-way.
    known: Option<InForce>,
    attached: BTreeMap<u32, Attached>,
    /// Endpoints whose probes have failed.
    down: HashSet<(NatKey, SocketAddr)>,
    /// Virtual addresses, as the host has been left.
    vips: Vec<vip::OnDevice>,
    /// Workers, where `dpi.mode` is not off.
    inspection: Option<Inspection>,
    /// Where workers' events go.
    events: Sender<Told>,
    /// Whether an earlier daemon's programs were taken over.
    pub adopted: bool,
}

impl Node {
    /// Loads, fills the maps and attaches. Nothing is attached before everything is loaded and checked.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(
        config: Config,
        handle: &mut Handle,
        events: Sender<Told>,
    ) -> Result<Self, NodeError> {
        preflight::check(config.gateway.original_dst.as_deref())?;
        let model = Model::compile(&config)?;
        let devices = devices::list(handle).await?;
        check_devices(&config, &devices)?;
        preflight::mount_bpffs(&config.node.bpffs)?;
        let dir = pin_dir(&config.node.bpffs);
        let sizes = Sizes {
            flows: config.conntrack.max_flows,
            half_open: config.conntrack.max_half_open,
        };
        // What an earlier daemon has left waits for workers; programs take seconds to load.
        let early = if workers::is_wanted(&config) && are_pinned(&dir) {
            Inspection::start(&config, &devices, &dir, handle, events.clone())
                .await
                .ok()
        } else {
            None
        };
        let mut objects = Objects::load(&dir, sizes)?;
        let links = attach::link_dir(&dir);
        std::fs::create_dir_all(&links).map_err(|source| AttachError::Pin {
            path: links,
            source,
        })?;
        let csum_ipv6_flag = objects.csum_ipv6_flag().unwrap_or(0);
        let maps = Maps::open(&config.node.bpffs)?;
        let (wanted, there) = (
            sizes.flows.saturating_mul(2),
            maps.max_entries(name::FSM_XFLOW)?,
        );
        if there != wanted {
            warn!(
                "{}: the flow table in use holds {} flows and stays; another size takes `down` and a new start",
                config.at("conntrack.max_flows"),
                there / 2
            );
        }
        let tc = if preflight::has_tcx() {
            TcKind::Tcx
        } else {
            TcKind::Clsact
        };
        let adopted = !attach::attached(&dir)?.is_empty();
        let mut node = Self {
            config,
            objects,
            maps,
            dir,
            tc,
            csum_ipv6_flag,
            known: None,
            attached: BTreeMap::new(),
            down: HashSet::new(),
            vips: Vec::new(),
            inspection: early,
            events,
            adopted,
        };
        node.down = node.known_down()?;
        if let Some(inspection) = &node.inspection {
            inspection.attach(&mut node.objects, &node.dir, node.tc)?;
        }
        node.staff(&devices, handle).await?;
        node.apply(model)?;
        node.attach_cgroup(None)?;
        node.reconcile_with(devices, handle).await?;
        Ok(node)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes another configuration over; where it cannot be, the old one stays.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn reload(&mut self, config: Config, handle: &mut Handle) -> Result<(), NodeError> {
        preflight::check(config.gateway.original_dst.as_deref())?;
        let model = Model::compile(&config)?;
        let devices = devices::list(handle).await?;
        check_devices(&config, &devices)?;
        let old = std::mem::replace(&mut self.config, config);
        let result = self.take_over(&old, model, devices, handle).await;
        if result.is_err() {
            self.config = old;
            // The old model compiled once; put everything back as far as the kernel lets us.
            if let (Ok(model), Ok(devices)) =
                (Model::compile(&self.config), devices::list(handle).await)
            {
                if let Err(error) = self.staff(&devices, handle).await {
                    warn!("inspection: {error}");
                }
                let _ = self.apply(model);
                let _ = self.reconcile_with(devices, handle).await;
            }
        }
        result
    }

    async fn take_over(
        &mut self,
        old: &Config,
        model: Model,
        devices: Vec<Device>,
        handle: &mut Handle,
    ) -> Result<(), NodeError> {
        // Before the kernel goes by the new policy: what is taken under it is judged by it.
        self.staff(&devices, handle).await?;
        self.apply(model)?;
        self.attach_cgroup(Some(old))?;
        self.dismiss(handle).await?;
        self.reconcile_with(devices, handle).await
    }

    /// Workers as the configuration has them: others where that takes others, else told of it.
    async fn staff(&mut self, devices: &[Device], handle: &mut Handle) -> Result<(), NodeError> {
        if !workers::is_wanted(&self.config) {
            return Ok(());
        }
        if let Some(there) = &self.inspection
            && !there.must_restart(&self.config, devices)
        {
            return there.configure(&self.config);
        }
        // The old ones first: a queue takes one socket.
        self.inspection = None;
        let (config, dir) = (&self.config, &self.dir);
        let inspection =
            Inspection::start(config, devices, dir, handle, self.events.clone()).await?;
        inspection.attach(&mut self.objects, dir, self.tc)?;
        self.inspection = Some(inspection);
        Ok(())
    }

    /// Workers that nobody sends packets to any more go, and the way to them.
    async fn dismiss(&mut self, handle: &mut Handle) -> Result<(), NodeError> {
        if workers::is_wanted(&self.config) {
            return Ok(());
        }
        if self.inspection.take().is_some() {
            info!("inspection is off");
        }
        dpi::remove(handle, &self.dir, dpi::NAMES).await?;
        Ok(())
    }

    /// Workers that have ended by themselves, or whose device is gone, are started anew.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn keep_staffed(&mut self, handle: &mut Handle) -> Result<(), NodeError> {
        if !self.inspection.as_ref().is_some_and(Inspection::has_ended) {
            return Ok(());
        }
        warn!("a worker has ended; all are started anew");
        let devices = devices::list(handle).await?;
        self.staff(&devices, handle).await?;
        self.apply(Model::compile(&self.config)?)
    }

    /// Workers, where `dpi.mode` is not off.
    pub fn inspection(&self) -> Option<&Inspection> {
        self.inspection.as_ref()
    }

    /// Puts a model into the maps.
    fn apply(&mut self, mut model: Model) -> Result<(), NodeError> {
        let probed: HashSet<_> = probed(&self.config).collect();
        self.down.retain(|endpoint| probed.contains(endpoint));
        for entry in self.config.nat.iter().filter(|e| e.health.is_some()) {
            model.set_health(entry, |key, addr| self.down.contains(&(*key, addr)));
        }
        // Sysctls may have changed since the start.
        let kernel = Kernel {
            csum_ipv6_flag: self.csum_ipv6_flag,
            syn_cookie: syn_cookie::Sysctls::read().offer(),
            workers: self
                .inspection
                .as_ref()
                .map_or_else(ToWorkers::default, Inspection::way),
        };
        apply(&mut self.maps, &mut self.known, model, &kernel)?;
        Ok(())
    }

    /// What the maps say of probed endpoints: an earlier daemon's word, until ours know better.
    fn known_down(&self) -> Result<HashSet<(NatKey, SocketAddr)>, NodeError> {
        let mut down = HashSet::new();
        let bank = self.maps.settings()?.nat_bank as u8;
        for (key, addr) in probed(&self.config) {
            let in_force = NatKey { bank, ..key };
            let Ok(value) = self.maps.xnat.get(&in_force, 0) else {
                continue;
            };
            let is_down = value.endpoints[..usize::from(value.ep_cnt)]
                .iter()
                .any(|e| {
                    (e.addr, e.port) == (wide(addr.ip()), addr.port().to_be_bytes())
                        && e.flags & endpoint_flag::DOWN != 0
                });
            if is_down {
                down.insert((key, addr));
            }
        }
        Ok(down)
    }

    /// Takes an endpoint out for new flows, or in again. Established ones keep theirs, so the policy is the same.
    /// `false`: there is no such endpoint (any more).
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_health(
        &mut self,
        (key, addr): (NatKey, SocketAddr),
        is_up: bool,
    ) -> Result<bool, NodeError> {
        let entry = self.config.nat.iter().find(|e| {
            e.health.is_some()
                && nat_key(e).0 == key
                && e.endpoints.iter().any(|endpoint| endpoint.addr == addr)
        });
        let (Some(entry), Some(known)) = (entry, self.known.as_mut()) else {
            return Ok(false);
        };
        if is_up {
            self.down.remove(&(key, addr));
        } else {
            self.down.insert((key, addr));
        }
        let is_down = |key: &NatKey, addr| self.down.contains(&(*key, addr));
        let (key, value) = known.model.set_health(entry, is_down);
        let bank = self.maps.settings()?.nat_bank as u8;
        self.maps.xnat.insert(NatKey { bank, ..key }, value, 0)?;
        Ok(true)
    }

    /// Endpoints whose probes have failed.
    pub fn down(&self) -> &HashSet<(NatKey, SocketAddr)> {
        &self.down
    }

    /// NAT entries in force.
    pub fn nat(&self) -> impl Iterator<Item = (&NatKey, &NatValue)> {
        self.known.iter().flat_map(|known| &known.model.nat)
    }

    /// Virtual addresses, where they are.
    pub fn vips(&self) -> &[vip::OnDevice] {
        &self.vips
    }

    async fn sync_vips(
        &mut self,
        devices: &[Device],
        handle: &mut Handle,
    ) -> Result<(), NodeError> {
        let is_uplink = |device: &&Device| {
            self.attached
                .get(&device.ifindex)
                .is_some_and(|attached| attached.interface.role == Role::Uplink)
        };
        let uplinks: Vec<Device> = devices.iter().filter(is_uplink).cloned().collect();
        let wanted = vip::wanted(&self.config, &uplinks);
        // Nothing to do is the common case: no netlink for it.
        if !wanted.is_empty() || !self.vips.is_empty() || self.maps.vip.keys().next().is_some() {
            vip::sync(&mut self.maps, handle, &wanted)
                .await
                .map_err(NodeError::Vip)?;
        }
        self.vips = wanted;
        Ok(())
    }

    /// Brings devices and programs in step with the host as it is now.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn reconcile(&mut self, handle: &mut Handle) -> Result<(), NodeError> {
        let devices = devices::list(handle).await?;
        self.reconcile_with(devices, handle).await
    }

    /// Has every live flow judged again by its next packet: routes or neighbours have changed.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next_generation(&mut self) -> Result<u32, NodeError> {
        Ok(self.maps.apply_settings(|_| {})?)
    }

    async fn reconcile_with(
        &mut self,
        devices: Vec<Device>,
        handle: &mut Handle,
    ) -> Result<(), NodeError> {
        let mut gone = attach::attached(&self.dir)?;
        gone.extend(self.attached.keys());
        let (mut first_error, mut changed) = (None, false);
        for device in &devices {
            let Some(interface) = self.config.interface_for(&device.name).cloned() else {
                continue;
            };
            gone.remove(&device.ifindex);
            let known = self.attached.get(&device.ifindex);
            if known.is_some_and(|a| same_device(&a.device, device) && a.interface == interface) {
                continue;
            }
            changed = true;
            if let Err(error) = self.attach_device(device, &interface, handle).await {
                warn!("{error}");
                first_error.get_or_insert(error);
            }
        }
        for ifindex in gone {
            changed = true;
            if let Err(error) = self.let_go(ifindex, handle).await {
                first_error.get_or_insert(error);
            }
        }
        // Once for all of them: it waits for the programs that run.
        if changed {
            self.next_generation()?;
        }
        self.sync_vips(&devices, handle).await?;
        match first_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn attach_device(
        &mut self,
        device: &Device,
        interface: &Interface,
        handle: &mut Handle,
    ) -> Result<(), NodeError> {
        let (slot, old) = self.slot(device)?;
        let mut entry = IfaceEntry {
            ifindex: device.ifindex,
            mtu: device.mtu,
            mac: device.mac,
            role: match interface.role {
                Role::Uplink => role::UPLINK,
                Role::Endpoint => role::ENDPOINT,
            },
            flags: old.flags & (iface_flag::GRO_SET | iface_flag::CLSACT_SET),
        };
        if interface.role == Role::Endpoint && self.config.forward.same_node {
            entry.flags |= self.redirect_flags(device, handle).await;
        }
        if self.tc == TcKind::Clsact && attach::ensure_clsact(device)? {
            entry.flags |= iface_flag::CLSACT_SET;
        }
        // The entry first: a program without one passes everything.
        self.maps.iface.set(slot, entry, 0)?;
        let on = attach::attach(&mut self.objects, &self.dir, device, interface.xdp, self.tc)
            .inspect_err(|_| {
                if !self.attached.contains_key(&device.ifindex) {
                    let _ = self.maps.iface.set(slot, IfaceEntry::ZERO, 0);
                    let _ = attach::detach(&self.dir, device.ifindex);
                }
            })?;
        if on.xdp_native == Some(true) && interface.role == Role::Uplink {
            entry.flags |= checksum_flag(device, handle).await;
            self.maps.iface.set(slot, entry, 0)?;
        }
        self.warn_of_veth(device, interface, &on);
        let xdp = xdp_word(&on);
        info!(
            interface = device.name,
            role = interface.role.as_str(),
            xdp,
            adopted = on.adopted,
            "attached"
        );
        let attached = Attached {
            device: device.clone(),
            interface: interface.clone(),
            on,
            flags: entry.flags,
        };
        self.attached.insert(device.ifindex, attached);
        Ok(())
    }

    /// What native XDP sends back by a veth arrives only where the far end has an XDP program (`veth_xdp_flush`
    /// of the kernel's driver); else it is lost without a word.
    fn warn_of_veth(&self, device: &Device, interface: &Interface, on: &OnDevice) {
        let answers = self.config.protect.iter().any(|p| p.proto == NatProto::Tcp);
        if answers
            && interface.role == Role::Uplink
            && on.xdp_native == Some(true)
            && device.is_pair
        {
            warn!(
                interface = device.name,
                "SYN cookies leave this veth only if its far end has an XDP program: attach one there, or set \
                 xdp = \"generic\" here"
            );
        }
    }

    /// How frames can be sent to an app past the stack, once the far end is made ready for it.
    async fn redirect_flags(&self, device: &Device, handle: &mut Handle) -> u8 {
        let mut flags = iface_flag::REDIRECT;
        let (true, Some(peer), Some(_)) = (device.is_pair, device.peer, device.peer_nsid) else {
            return flags;
        };
        flags |= iface_flag::PEER;
        let uses_xdp = self
            .config
            .interfaces
            .iter()
            .any(|i| i.role == Role::Uplink && i.xdp != XdpMode::Off);
        if !uses_xdp {
            return flags;
        }
        let set = match peer::namespace(handle, device).await {
            Ok(namespace) => peer::set_gro(namespace, peer, true),
            Err(error) => Err(error),
        };
        match set {
            Ok(peer::Gro::Was) => flags | iface_flag::XDP_TX,
            Ok(peer::Gro::Set) => flags | iface_flag::XDP_TX | iface_flag::GRO_SET,
            Err(error) => {
                warn!(
                    interface = device.name,
                    "XDP cannot redirect to this app, TC does: its end of the veth cannot be reached ({error})"
                );
                flags
            }
        }
    }

    /// The slot that the programs find a device in: its own, or a free one.
    fn slot(&self, device: &Device) -> Result<(u32, IfaceEntry), NodeError> {
        let mut free = None;
        for probe in 0..IFACE_PROBES {
            let slot = (device.ifindex + probe) & (IFACE_SLOTS - 1);
            let entry = self.maps.iface.get(&slot, 0)?;
            if entry.ifindex == device.ifindex {
                return Ok((slot, entry));
            }
            if entry.ifindex == 0 {
                free.get_or_insert((slot, entry));
            }
        }
        free.ok_or_else(|| NodeError::NoSlot {
            name: device.name.clone(),
        })
    }

    async fn let_go(&mut self, ifindex: u32, handle: &mut Handle) -> Result<(), NodeError> {
        attach::detach(&self.dir, ifindex)?;
        let attached = self.attached.remove(&ifindex);
        if let Some(Attached { device, flags, .. }) = &attached {
            restore(device, *flags, self.tc, handle).await;
            info!(interface = device.name, "detached");
        }
        for probe in 0..IFACE_PROBES {
            let slot = (ifindex + probe) & (IFACE_SLOTS - 1);
            if self.maps.iface.get(&slot, 0)?.ifindex == ifindex {
                self.maps.iface.set(slot, IfaceEntry::ZERO, 0)?;
            }
        }
        Ok(())
    }

    fn attach_cgroup(&self, old: Option<&Config>) -> Result<(), NodeError> {
        let wanted = self.config.gateway.original_dst.as_deref();
        let moved = old.is_some_and(|old| old.gateway.original_dst.as_deref() != wanted);
        if moved || wanted.is_none() {
            attach::detach_origin(&self.dir)?;
        }
        if let Some(cgroup) = wanted {
            attach::attach_origin(&self.objects, &self.dir, cgroup)?;
        }
        Ok(())
    }

    /// What `status` shows of the devices.
    pub fn interfaces(&self) -> Vec<api::Interface> {
        self.attached
            .values()
            .map(|a| api::Interface {
                name: a.device.name.clone(),
                ifindex: a.device.ifindex,
                role: a.interface.role.to_string(),
                xdp: xdp_word(&a.on).to_owned(),
                tc: self.tc.as_str().to_owned(),
                links: a.on.links,
                redirect: redirect_word(a.flags),
            })
            .collect()
    }
}

/// What native XDP may do with frames of a device, by their checksums. Those of a wire are finished.
async fn checksum_flag(device: &Device, handle: &mut Handle) -> u8 {
    let (true, Some(peer)) = (device.is_pair, device.peer) else {
        return iface_flag::ESCALATE;
    };
    let namespace = match device.peer_nsid {
        Some(_) => peer::namespace(handle, device).await.map(Some),
        None => Ok(None),
    };
    match namespace.and_then(|namespace| peer::leaves_checksums(namespace, peer)) {
        Ok(false) => iface_flag::ESCALATE,
        Ok(true) => {
            warn!(
                interface = device.name,
                "the far end of this veth leaves checksums to a card, so XDP sends nothing past the stack, TC does: \
                 `ethtool -K DEVICE tx off` there, then restart"
            );
            iface_flag::UNFINISHED
        }
        // As on a wire, as far as redirects go.
        Err(error) => {
            warn!(
                interface = device.name,
                "the far end of this veth cannot be asked ({error}): XDP hands no frames to workers, TC does"
            );
            0
        }
    }
}

fn xdp_word(on: &OnDevice) -> &'static str {
    match on.xdp_native {
        Some(true) => "native",
        Some(false) => "generic",
        None => "off",
    }
}

fn redirect_word(flags: u8) -> String {
    if flags & iface_flag::REDIRECT == 0 {
        return "off".to_owned();
    }
    let way = if flags & iface_flag::PEER != 0 {
        "peer"
    } else {
        "plain"
    };
    let xdp = if flags & iface_flag::XDP_TX != 0 {
        "+xdp"
    } else {
        ""
    };
    format!("{way}{xdp}")
}

/// Whether all maps are pinned, as this program has them.
fn are_pinned(dir: &Path) -> bool {
    MAPS.iter()
        .all(|spec| matches!(check_pin(dir, spec), Ok(true)))
}

/// Endpoints that a configuration has probed.
fn probed(config: &Config) -> impl Iterator<Item = (NatKey, SocketAddr)> {
    config
        .nat
        .iter()
        .filter(|entry| entry.health.is_some())
        .flat_map(|entry| {
            let (key, _) = nat_key(entry);
            entry.endpoints.iter().map(move |e| (key, e.addr))
        })
}

/// Whether nothing has changed that the data path depends on.
fn same_device(a: &Device, b: &Device) -> bool {
    let of = |d: &Device| (d.name.clone(), d.mac, d.mtu, d.peer, d.peer_nsid);
    of(a) == of(b)
}

/// Exactly named interfaces must exist; programs inside namespaces are refused before this.
fn check_devices(config: &Config, devices: &[Device]) -> Result<(), NodeError> {
    for (i, interface) in config.interfaces.iter().enumerate() {
        let is_here = interface.attach == Attach::Host && interface.name.is_exact();
        if is_here && !devices.iter().any(|d| interface.name.matches(&d.name)) {
            return Err(NodeError::NoInterface {
                at: config.at(&format!("interface[{i}].name")),
                name: interface.name.to_string(),
            });
        }
    }
    for device in devices {
        let Some(interface) = config.interface_for(&device.name) else {
            continue;
        };
        let own = pin_dir(&config.node.bpffs)
            .join("links")
            .join(format!("{}-xdp", device.ifindex));
        if let Some(state) = device.xdp
            && interface.xdp != XdpMode::Off
            && !own.exists()
        {
            let (name, prog_id) = (device.name.clone(), state.prog_id);
            return Err(AttachError::ForeignXdp { name, prog_id }.into());
        }
    }
    Ok(())
}
