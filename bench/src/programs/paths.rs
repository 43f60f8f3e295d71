//! The measured paths: which program, which packet, which state, and what must become of it.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    rc::Rc,
};

use anyhow::Result;
use fsm_common::{
    flow::nf,
    maps::{Xcfg, role},
    policy::kind,
    stats::{Hook, Verdict},
    wire::l4::tcp_flag,
};
use fsm_fastpath::loader::objects::program;

use crate::{
    asm::{self, Wrapper},
    entries::{self, Headers},
    packet::{TCP, UDP, frame4, frame6, key4, key6},
    sys::ProgramKind,
    world::{HASH, World, default_flags, peer, to_gateway},
};

/// What xnet needed, and which part of it the issue asks for.
#[derive(Clone, Copy)]
pub enum Target {
    /// xnet's ns a packet, and the factor wanted.
    Ratio(f64, f64),
    /// Wanted ns in xnet's harness, the empty program's 8 included.
    Whole(f64),
    /// xnet's figure, for comparison only.
    Known(f64),
    /// Nothing to compare with.
    None,
}

/// How a program is started.
pub enum Runner {
    /// On one frame, again and again.
    Direct(OwnedFd),
    /// Behind a wrapper; the second one is before the empty program.
    Wrapped(Wrapper, Wrapper),
}

/// Removes what a sample has made; gives the number of entries.
pub type Cleanup = Box<dyn Fn() -> std::io::Result<usize>>;

/// A path that makes map entries, which are removed after each sample.
pub struct Fresh {
    /// Packets of a sample.
    pub packets: u32,
    /// Flows that it makes.
    pub flows: u32,
    /// Map entries that are to be removed afterwards.
    pub entries: usize,
    /// What goes before a sample, not measured: a wrapper and its packets.
    pub prepare: Option<(Wrapper, u32)>,
    /// Removes them.
    pub cleanup: Cleanup,
}

/// One measured path.
pub struct Path {
    /// Name in tables.
    pub name: String,
    /// Which hook.
    pub kind: ProgramKind,
    /// Index of the world.
    pub world: usize,
    /// What runs.
    pub runner: Runner,
    /// On what.
    pub frame: Vec<u8>,
    /// The device's role.
    pub role: u8,
    /// The settings.
    pub settings: Xcfg,
    /// What every packet must be counted as.
    pub expect: (Hook, Verdict),
    /// For paths that make map entries.
    pub fresh: Option<Fresh>,
    /// Packets that make up what the figure is of: 3 for a handshake.
    pub per: u32,
    /// What it is compared with.
    pub target: Target,
}

/// 45 ns where an empty XDP program takes 8.
const XDP_TARGET: Target = Target::Whole(45.0);
/// ACL kinds of hash entries and CIDRs.
const ALL: u32 = HASH | kind::CIDR4;
pub(super) const APP_ADDR: [u8; 4] = [10, 1, 0, 2];

/// Makes all paths. `many` are the flows in random order, `fresh` the new flows of a sample.
pub fn all(worlds: &mut [World], labels: &[&str], many: &[u32], fresh: u32) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    let empty = [
        Rc::new(asm::empty(ProgramKind::Tc)?),
        Rc::new(asm::empty(ProgramKind::Xdp)?),
    ];
    let keys = entries::random(fresh, entries::FRESH);
    for (at, world) in worlds.iter_mut().enumerate() {
        let mut builder = Builder {
            world,
            at,
            label: labels[at],
            paths: &mut paths,
            empty: &empty,
        };
        builder.established()?;
        builder.acl()?;
        if at == 0 {
            builder.once()?;
            builder.first_packets(&keys)?;
            builder.handshakes(&keys)?;
            builder.known()?;
            builder.redirects(&keys)?;
            for (turn, count) in many.iter().enumerate() {
                builder.random(*count, turn as u8)?;
            }
        }
    }
    Ok(paths)
}

pub(super) struct Builder<'a> {
    pub(super) world: &'a mut World,
    at: usize,
    label: &'a str,
    paths: &'a mut Vec<Path>,
    empty: &'a [Rc<OwnedFd>; 2],
}

impl Builder<'_> {
    fn empty(&self, kind: ProgramKind) -> &OwnedFd {
        &self.empty[usize::from(kind == ProgramKind::Xdp)]
    }

    /// A path by its program, packet and expectation; the rest is what most have.
    pub(super) fn add(
        &mut self,
        name: &str,
        program: &str,
        frame: Vec<u8>,
        verdict: Verdict,
    ) -> Result<&mut Path> {
        let fd = self
            .world
            .objects
            .fd(program)?
            .as_fd()
            .try_clone_to_owned()?;
        let (kind, hook) = match program {
            program::XDP => (ProgramKind::Xdp, Hook::Xdp),
            program::TC_EGRESS => (ProgramKind::Tc, Hook::TcEgress),
            _ => (ProgramKind::Tc, Hook::TcIngress),
        };
        self.paths.push(Path {
            name: format!("{name}, ACL {}", self.label),
            kind,
            world: self.at,
            runner: Runner::Direct(fd),
            frame,
            role: if kind == ProgramKind::Xdp {
                role::UPLINK
            } else {
                role::ENDPOINT
            },
            settings: self.world.settings(default_flags(true), HASH),
            expect: (hook, verdict),
            fresh: None,
            per: 1,
            target: Target::None,
        });
        self.last()
    }

    pub(super) fn last(&mut self) -> Result<&mut Path> {
        self.paths
            .last_mut()
            .ok_or_else(|| anyhow::anyhow!("no path"))
    }

    /// Puts a wrapper before the last path's program.
    pub(super) fn wrap(&mut self, headers: &Headers) -> Result<()> {
        let (program, empty) = self.wrapper(headers)?;
        self.last()?.runner = Runner::Wrapped(program, empty);
        Ok(())
    }

    /// A wrapper before the last path's program, and one before the empty program. At TC what apps send goes
    /// to the former, and answers to the program of the other direction.
    pub(super) fn wrapper(&mut self, headers: &Headers) -> Result<(Wrapper, Wrapper)> {
        let (kind, map) = (self.last()?.kind, headers.map.as_raw_fd());
        let own = match &self.last()?.runner {
            Runner::Direct(program) => program.as_raw_fd(),
            Runner::Wrapped(..) => anyhow::bail!("wrapped already"),
        };
        let answers = match kind {
            ProgramKind::Tc => self
                .world
                .objects
                .fd(program::TC_EGRESS)?
                .as_fd()
                .as_raw_fd(),
            ProgramKind::Xdp => own,
        };
        let empty = self.empty(kind).as_raw_fd();
        Ok((
            Wrapper::new(kind, map, headers.count, [own, answers])?,
            Wrapper::new(kind, map, headers.count, [empty; asm::TARGETS])?,
        ))
    }

    /// Established and translated: two flows that become each other, so that each repeat is one of them.
    fn established(&mut self) -> Result<()> {
        for (proto, name, xnet) in [(TCP, "TCP", 244.0), (UDP, "UDP", 235.0)] {
            let key = key4(proto, APP_ADDR, 40000, peer::NONE, 8080);
            entries::pair4(self.world, &key, &to_gateway(&key), nf::ALLOW | nf::XNAT)?;
            let frame = frame4(&key, tcp_flag::ACK);
            self.add(
                &format!("established {name}, NAT"),
                program::TC_INGRESS,
                frame,
                Verdict::Nat,
            )?
            .target = Target::Ratio(xnet, 0.5);
        }
        Ok(())
    }

    /// Paths that do not depend on the size of the ACL.
    fn once(&mut self) -> Result<()> {
        let key = key6(TCP, APP_ADDR, 40000, peer::NONE, 8080);
        let to = key6(TCP, APP_ADDR, 40000, [192, 168, 226, 22], 15001);
        entries::pair6(self.world, &key, &to, nf::ALLOW | nf::XNAT)?;
        let frame = frame6(&key, tcp_flag::ACK);
        self.add(
            "established TCP over IPv6, NAT",
            program::TC_INGRESS,
            frame,
            Verdict::Nat,
        )?
        .target = Target::Ratio(277.0, 0.5);

        let key = key4(TCP, APP_ADDR, 40001, peer::NONE, 8080);
        let (from, to) = (to_gateway(&key).reversed(), key.reversed());
        entries::pair4(self.world, &from, &to, nf::ALLOW | nf::XNAT | nf::REPLY)?;
        let frame = frame4(&from, tcp_flag::ACK);
        self.add("reply, NAT back", program::TC_EGRESS, frame, Verdict::Nat)?
            .target = Target::Ratio(231.0, 0.5);

        let frame = frame4(&key4(TCP, APP_ADDR, 40002, peer::NONE, 8080), tcp_flag::ACK);
        let settings = self
            .world
            .settings(default_flags(true) | fsm_common::flags::TCP_ALLOW, HASH);
        let path = self.add("early exit", program::TC_INGRESS, frame, Verdict::Pass)?;
        (path.settings, path.target) = (settings, Target::Known(40.0));

        let mut arp = frame4(&key4(TCP, APP_ADDR, 1, peer::NONE, 1), 0);
        arp[12..14].copy_from_slice(&[8, 6]);
        self.add("not IP", program::TC_INGRESS, arp.clone(), Verdict::Pass)?;
        self.add("not IP", program::XDP, arp, Verdict::Pass)?;
        let key = key4(TCP, peer::NONE, 8080, APP_ADDR, 40003);
        entries::pair4(self.world, &key, &to_gateway(&key), nf::ALLOW | nf::XNAT)?;
        self.add(
            "established, left to TC",
            program::XDP,
            frame4(&key, tcp_flag::ACK),
            Verdict::Pass,
        )?;
        Ok(())
    }

    /// Trusted and denied peers.
    fn acl(&mut self) -> Result<()> {
        let tables = [
            ("exact", peer::EXACT, HASH),
            ("address", peer::ADDR, HASH),
            ("CIDR", peer::CIDR, ALL),
        ];
        for (turn, (name, [denied, trusted], kinds)) in tables.into_iter().enumerate() {
            let (sport, settings) = (
                41000 + turn as u16,
                self.world.settings(default_flags(true), kinds),
            );
            let xnet = |exact, addr| match turn {
                0 => Target::Ratio(exact, 0.6),
                1 => Target::Ratio(addr, 0.6),
                _ => Target::None,
            };
            let key = |peer| key4(TCP, APP_ADDR, sport, peer, peer::PORT);
            let frame = frame4(&key(denied), tcp_flag::ACK);
            let path = self.add(
                &format!("deny, {name}"),
                program::TC_INGRESS,
                frame,
                Verdict::Drop,
            )?;
            (path.settings, path.target) = (settings, xnet(93.0, 104.0));
            let frame = frame4(&key(denied).reversed(), tcp_flag::ACK);
            let path = self.add(&format!("deny, {name}"), program::XDP, frame, Verdict::Drop)?;
            (path.settings, path.target) = (settings, XDP_TARGET);

            // Open for long: in the main table, whatever the ACL has.
            let trusted = key(trusted);
            let (bits, answer) = (nf::ALLOW | nf::TRUST, trusted.reversed());
            let flows = &mut self.world.maps.flow4;
            flows.insert(trusted, entries::entry(&trusted, bits), 0)?;
            flows.insert(answer, entries::entry(&answer, bits | nf::REPLY), 0)?;
            let name = format!("established, trusted, {name}");
            let frame = frame4(&trusted, tcp_flag::ACK);
            let path = self.add(&name, program::TC_INGRESS, frame, Verdict::Pass)?;
            (path.settings, path.target) = (settings, xnet(90.0, 101.0));
            let frame = frame4(&answer, tcp_flag::ACK);
            let path = self.add(&name, program::XDP, frame, Verdict::Pass)?;
            (path.settings, path.target) = (settings, XDP_TARGET);
        }
        let frame = frame4(&key4(TCP, peer::NONE, 8080, APP_ADDR, 42000), tcp_flag::ACK);
        self.add("no flow, no entry", program::XDP, frame, Verdict::Pass)?
            .target = XDP_TARGET;
        Ok(())
    }
}
