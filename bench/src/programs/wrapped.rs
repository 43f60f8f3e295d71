//! Paths whose packets must differ, or be restored, from run to run: a wrapper goes before the program.

use std::os::fd::AsRawFd as _;

use anyhow::Result;
use fsm_common::{
    flow::{Address as _, Flow, FlowKey, nf},
    maps::{OriginKey, sys as system},
    stats::Verdict,
    wire::l4::tcp_flag,
};
use fsm_fastpath::loader::objects::program;

use super::{
    flows::{self, Headers},
    paths::{APP_ADDR, Builder, Cleanup, HASH, Target},
};
use crate::{
    packet::{TCP, frame4, key4},
    sys,
    world::{APP, default_flags, peer, to_gateway},
};

impl Builder<'_> {
    /// Each packet makes a flow.
    pub(super) fn new_flows(&mut self, headers: &Headers) -> Result<()> {
        let count = headers.keys.len() as u32;
        let frame = frame4(&headers.keys[0], tcp_flag::SYN);
        for (with_origin, name, xnet) in [(true, "with", 2420.0), (false, "without", 1597.0)] {
            let settings = self.world.settings(default_flags(with_origin), HASH);
            let name = format!("new TCP flow, NAT, {name} origin map");
            self.add(&name, program::TC_INGRESS, frame.clone(), Verdict::Nat)?;
            self.wrap(&headers.map, count)?;
            let origins = if with_origin {
                headers.keys.iter().map(origin).collect()
            } else {
                Vec::new()
            };
            let replies: Vec<_> = headers
                .keys
                .iter()
                .map(|key| to_gateway(key).reversed())
                .collect();
            let made = headers.keys.len() * 2 + origins.len();
            let cleanup = self.cleanup(headers.keys.clone(), replies, origins)?;
            let path = self.last()?;
            (path.settings, path.fresh, path.target) = (
                settings,
                Some((count, made, cleanup)),
                Target::Ratio(xnet, 0.5),
            );
        }
        let trusted = Headers::from_keys(
            headers
                .keys
                .iter()
                .map(|k| FlowKey {
                    daddr: peer::ADDR[1],
                    ..*k
                })
                .collect(),
        )?;
        self.add(
            "new TCP flow, trusted",
            program::TC_INGRESS,
            frame,
            Verdict::Pass,
        )?;
        self.wrap(&trusted.map, count)?;
        let replies = trusted.keys.iter().map(FlowKey::reversed).collect();
        let cleanup = self.cleanup(trusted.keys, replies, Vec::new())?;
        self.last()?.fresh = Some((count, 2 * count as usize, cleanup));
        Ok(())
    }

    fn cleanup(
        &self,
        keys: Vec<FlowKey<[u8; 4]>>,
        replies: Vec<FlowKey<[u8; 4]>>,
        origins: Vec<OriginKey>,
    ) -> Result<Cleanup> {
        let (flow, xopt) = (self.world.half4.try_clone()?, self.world.xopt.try_clone()?);
        Ok(Box::new(move || {
            let forward = sys::remove_all(flow.as_raw_fd(), &keys)?;
            let backward = sys::remove_all(flow.as_raw_fd(), &replies)?;
            Ok(forward + backward + sys::remove_all(xopt.as_raw_fd(), &origins)?)
        }))
    }

    /// Trusted flows that go past the stack: the hop limit is restored by a wrapper.
    pub(super) fn redirects(&mut self, headers: &Headers) -> Result<()> {
        for (program, key) in [
            (
                program::TC_INGRESS,
                key4(TCP, APP_ADDR, 43000, peer::ADDR[1], 80),
            ),
            (program::XDP, key4(TCP, peer::ADDR[1], 80, APP_ADDR, 43001)),
        ] {
            let mut flow = flows::entry(&key, nf::ALLOW | nf::TRUST);
            flow.set_redirect(APP, [2, 0, 0, 0, 0, 8]);
            self.world.maps.flow4.insert(key, flow, 0)?;
            let one = Headers::from_keys(vec![key])?;
            self.add(
                "established, trusted, redirected",
                program,
                frame4(&key, tcp_flag::ACK),
                Verdict::Redirect,
            )?;
            self.wrap(&one.map, 1)?;
        }
        // Denied and unknown peers in random order: the flow table and the ACL are cold.
        let keys: Vec<_> = headers.keys.iter().map(FlowKey::reversed).collect();
        let random = Headers::from_keys(keys)?;
        self.add(
            "no flow, no entry, random tuples",
            program::XDP,
            frame4(&random.keys[0], tcp_flag::ACK),
            Verdict::Pass,
        )?;
        self.wrap(&random.map, random.keys.len() as u32)
    }

    /// Established and translated, `count` flows in random order.
    pub(super) fn random(&mut self, count: u32, turn: u8) -> Result<()> {
        let headers = Headers::random(count, turn)?;
        let to: Vec<_> = headers.keys.iter().map(to_gateway).collect();
        let forward: Vec<Flow<[u8; 4]>> = headers
            .keys
            .iter()
            .zip(&to)
            .map(|(key, to)| flows::translated(key, to, nf::ALLOW | nf::XNAT))
            .collect();
        let reply_keys: Vec<_> = to.iter().map(FlowKey::reversed).collect();
        let replies: Vec<_> = headers
            .keys
            .iter()
            .zip(&reply_keys)
            .map(|(key, reply)| {
                flows::translated(reply, &key.reversed(), nf::ALLOW | nf::XNAT | nf::REPLY)
            })
            .collect();
        sys::insert_all(self.world.flow4.as_raw_fd(), &headers.keys, &forward)?;
        sys::insert_all(self.world.flow4.as_raw_fd(), &reply_keys, &replies)?;
        let target = if count == 100_000 {
            Target::Ratio(548.0, 0.5)
        } else {
            Target::None
        };
        let frame = frame4(&headers.keys[0], tcp_flag::ACK);
        let name = format!("{}k flows in random order, NAT", count / 1000);
        self.add(&name, program::TC_INGRESS, frame, Verdict::Nat)?
            .target = target;
        self.wrap(&headers.map, count)
    }
}

/// The entry that the program makes in `fsm_xopt`.
fn origin(key: &FlowKey<[u8; 4]>) -> OriginKey {
    let to = to_gateway(key);
    OriginKey {
        laddr: to.daddr.widen(),
        raddr: to.saddr.widen(),
        lport: to.dport,
        rport: to.sport,
        proto: key.proto,
        v6: 0,
        sys: system::MESH,
        pad: 0,
    }
}
