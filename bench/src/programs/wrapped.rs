//! Paths whose packets must differ, or be restored, from run to run: a wrapper goes before the program.

use std::os::fd::AsRawFd as _;

use anyhow::Result;
use fsm_common::{
    flow::{FlowKey, nf},
    stats::Verdict,
    wire::l4::tcp_flag,
};
use fsm_fastpath::loader::objects::program;

use super::paths::{APP_ADDR, Builder, Cleanup, Fresh, Target};
use crate::{
    entries::{self, Headers},
    packet::{TCP, UDP, frame4, key4},
    sys,
    world::{APP, HASH, default_flags, peer},
};

/// xnet's ns for a new TCP flow's first packet, which makes flow and origin; and without the origin.
const XNET_NEW: [(bool, &str, f64); 2] = [(true, "with", 2420.0), (false, "without", 1597.0)];

impl Builder<'_> {
    /// Each packet is the first of its flow.
    pub(super) fn first_packets(&mut self, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
        let headers = Headers::of(keys, tcp_flag::SYN)?;
        let frame = frame4(&keys[0], tcp_flag::SYN);
        let name = "new TCP flow, first packet, NAT";
        self.add(name, program::TC_INGRESS, frame.clone(), Verdict::Nat)?;
        self.wrap(&headers)?;
        let cleanup = self.cleanup(keys.to_vec(), Vec::new())?;
        let path = self.last()?;
        path.fresh = Some(Fresh {
            packets: headers.count,
            flows: headers.count,
            entries: 2 * keys.len(),
            prepare: None,
            cleanup,
        });
        path.target = Target::Ratio(1597.0, 0.5);

        let trusted: Vec<_> = keys
            .iter()
            .map(|k| FlowKey {
                daddr: peer::ADDR[1],
                ..*k
            })
            .collect();
        let headers = Headers::of(&trusted, tcp_flag::SYN)?;
        let name = "new TCP flow, first packet, trusted";
        self.add(name, program::TC_INGRESS, frame, Verdict::Pass)?;
        self.wrap(&headers)?;
        let half = self.world.half4.try_clone()?;
        let cleanup = Box::new(move || {
            let answers: Vec<_> = trusted.iter().map(FlowKey::reversed).collect();
            let forward = sys::remove_all(half.as_raw_fd(), &trusted)?;
            Ok(forward + sys::remove_all(half.as_raw_fd(), &answers)?)
        });
        self.last()?.fresh = Some(Fresh {
            packets: headers.count,
            flows: headers.count,
            entries: 2 * keys.len(),
            prepare: None,
            cleanup,
        });
        Ok(())
    }

    /// A connection's three packets, after which it is in the main table; and the third alone.
    pub(super) fn handshakes(&mut self, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
        let flows = keys.len();
        let frame = frame4(&keys[0], tcp_flag::SYN);
        let whole = Headers::new(&entries::handshakes(keys))?;
        let opened = Headers::new(&entries::opened(keys))?;
        let last = Headers::new(&entries::acknowledged(keys))?;
        for (with_origin, word, xnet) in XNET_NEW {
            let settings = self.world.settings(default_flags(with_origin), HASH);
            let origins: Vec<_> = match with_origin {
                true => keys.iter().map(entries::origin).collect(),
                false => Vec::new(),
            };
            let entries = 2 * flows + origins.len();
            let name = format!("whole TCP handshake, a connection, NAT, {word} origin map");
            self.add(&name, program::TC_INGRESS, frame.clone(), Verdict::Nat)?;
            self.wrap(&whole)?;
            let cleanup = self.cleanup(keys.to_vec(), origins.clone())?;
            let path = self.last()?;
            (path.settings, path.per, path.target) = (settings, 3, Target::Ratio(xnet, 0.5));
            path.fresh = Some(Fresh {
                packets: whole.count,
                flows: flows as u32,
                entries,
                prepare: None,
                cleanup,
            });

            let name = format!("settle: a handshake's third packet, NAT, {word} origin map");
            self.add(&name, program::TC_INGRESS, frame.clone(), Verdict::Nat)?;
            let prepare = self.wrapper(&opened)?.0;
            self.wrap(&last)?;
            let cleanup = self.cleanup(keys.to_vec(), origins)?;
            let path = self.last()?;
            path.settings = settings;
            path.fresh = Some(Fresh {
                packets: last.count,
                flows: 0,
                entries,
                prepare: Some((prepare, opened.count)),
                cleanup,
            });
        }
        Ok(())
    }

    /// Removes translated flows from wherever they are, and their origins.
    fn cleanup(
        &self,
        keys: Vec<FlowKey<[u8; 4]>>,
        origins: Vec<fsm_common::maps::OriginKey>,
    ) -> Result<Cleanup> {
        let tables = [self.world.half4.try_clone()?, self.world.flow4.try_clone()?];
        let xopt = self.world.xopt.try_clone()?;
        Ok(Box::new(move || {
            let answers: Vec<_> = keys.iter().map(entries::answer).collect();
            let mut removed = sys::remove_all(xopt.as_raw_fd(), &origins)?;
            for table in &tables {
                removed += sys::remove_all(table.as_raw_fd(), &keys)?;
                removed += sys::remove_all(table.as_raw_fd(), &answers)?;
            }
            Ok(removed)
        }))
    }

    /// Packets of known flows for which the entry of their direction alone does not do.
    pub(super) fn known(&mut self) -> Result<()> {
        let key = key4(UDP, APP_ADDR, 44000, peer::NONE, 8080);
        self.repeat("UDP one way, in the small table, NAT", &key, 0)?;

        let key = key4(TCP, APP_ADDR, 44001, peer::NONE, 8080);
        entries::insert_established(self.world, &[key])?;
        let flags = tcp_flag::FIN | tcp_flag::ACK;
        self.repeat("established TCP, FIN, NAT", &key, flags)?;

        let key = key4(TCP, APP_ADDR, 44002, peer::NONE, 8080);
        entries::insert_established(self.world, &[key])?;
        self.repeat(
            "established TCP, checked for idleness, NAT",
            &key,
            tcp_flag::ACK,
        )?;
        // -1 to the program: even a flow that has just spoken may be over.
        self.last()?.settings.idle_check_ns = u64::MAX;
        Ok(())
    }

    /// One packet, again and again, restored by a wrapper.
    fn repeat(&mut self, name: &str, key: &FlowKey<[u8; 4]>, flags: u8) -> Result<()> {
        let one = Headers::of(&[*key], flags)?;
        let frame = frame4(key, flags);
        self.add(name, program::TC_INGRESS, frame, Verdict::Nat)?;
        self.wrap(&one)
    }

    /// Trusted flows that go past the stack: the hop limit is restored by a wrapper.
    pub(super) fn redirects(&mut self, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
        for (program, key) in [
            (
                program::TC_INGRESS,
                key4(TCP, APP_ADDR, 43000, peer::ADDR[1], 80),
            ),
            (program::XDP, key4(TCP, peer::ADDR[1], 80, APP_ADDR, 43001)),
        ] {
            let mut flow = entries::entry(&key, nf::ALLOW | nf::TRUST);
            flow.set_redirect(APP, [2, 0, 0, 0, 0, 8]);
            self.world.maps.flow4.insert(key, flow, 0)?;
            self.add(
                "established, trusted, redirected",
                program,
                frame4(&key, tcp_flag::ACK),
                Verdict::Redirect,
            )?;
            self.wrap(&Headers::acks(&[key])?)?;
        }
        // Denied and unknown peers in random order: the flow table and the ACL are cold.
        let keys: Vec<_> = keys.iter().map(FlowKey::reversed).collect();
        self.add(
            "no flow, no entry, random tuples",
            program::XDP,
            frame4(&keys[0], tcp_flag::ACK),
            Verdict::Pass,
        )?;
        self.wrap(&Headers::acks(&keys)?)
    }

    /// Established and translated, `count` flows in random order.
    pub(super) fn random(&mut self, count: u32, turn: u8) -> Result<()> {
        let keys = entries::random(count, turn);
        entries::insert_established(self.world, &keys)?;
        let target = if count == 100_000 {
            Target::Ratio(548.0, 0.5)
        } else {
            Target::None
        };
        let frame = frame4(&keys[0], tcp_flag::ACK);
        let name = format!("{}k flows in random order, NAT", count / 1000);
        self.add(&name, program::TC_INGRESS, frame, Verdict::Nat)?
            .target = target;
        self.wrap(&Headers::acks(&keys)?)
    }
}
