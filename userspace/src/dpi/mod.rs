//! Inspection: a library without I/O, clock or threads. What goes in is a time, what the kernel said of a frame, and
//! the frame; what comes out is a [`Verdict`] and [`Event`]s. Each worker owns one engine; nothing is shared,
//! nothing locked.

#![forbid(unsafe_code)]

mod amqp;
mod ber;
mod cassandra;
mod couchbase;
mod decode;
mod dhcp;
mod dns;
mod engine;
mod ftp;
mod hpack;
mod http;
mod http2;
mod imap;
mod inspect;
mod kafka;
mod ldap;
mod lines;
mod memcached;
mod mongodb;
mod mqtt;
mod mysql;
mod ntp;
mod openwire;
mod policy;
mod pop3;
mod postgresql;
mod quic;
mod radius;
mod rdp;
mod redis;
mod registry;
mod rtsp;
#[cfg(test)]
mod samples;
mod session;
mod sip;
mod smb;
mod smtp;
mod snmp;
mod ssh;
mod stomp;
mod stream;
mod syslog;
mod table;
mod tds;
mod telnet;
mod tftp;
mod tls;
mod tns;
mod zookeeper;

pub use engine::{Inspector, MAX_BUFFERED_BYTES, Settings};
pub use policy::Policies;

use std::{net::SocketAddr, sync::Arc};

use crate::config::DpiMode;

/// What the kernel said of a frame when it took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Device whose hook took it.
    pub ifindex: u32,
    /// It came from the device; else it was on its way to it.
    pub is_ingress: bool,
    /// Of the answering direction of its flow, as the kernel knows it.
    pub is_reply: bool,
    /// The packet itself went on: nothing that is said here stops it.
    pub is_copy: bool,
    /// Version of the policy by which it was taken.
    pub policy: u32,
}

/// What becomes of a frame and of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on; the flow's next packet is looked at too.
    Pass,
    /// Goes on; the rest of the flow, both directions, is the kernel's alone.
    Allow,
    /// This frame does not go on; the next one is looked at.
    Drop,
    /// Neither this frame nor the rest of its flow goes on.
    Deny,
    /// The same, and both ends are told by an RST.
    Reset,
}

/// What is worth telling. Addresses are those of the ends that the flow's first packet named: client, then server.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A flow's protocol is known, and all is read that is read of it: both sides' heads, unless the flow was denied or
    /// ended before.
    App {
        /// Client.
        client: SocketAddr,
        /// Server.
        server: SocketAddr,
        /// IP protocol number.
        proto: u8,
        /// Its name, as CONTRACT has it: `http`, `tls`, `dns`.
        app: &'static str,
        /// What was learned: ("host", "example.org"), ("sni", …), ("query", …).
        info: Vec<(&'static str, String)>,
    },
    /// A packet or flow that no honest peer sends.
    Threat {
        /// Source of the packet.
        from: SocketAddr,
        /// Its destination.
        to: SocketAddr,
        /// IP protocol number.
        proto: u8,
        /// Which, as a metric's label: `tcp_bad_flags`.
        name: &'static str,
    },
    /// A policy has decided against a flow: denied, or reported only.
    Violation {
        /// Client.
        client: SocketAddr,
        /// Server.
        server: SocketAddr,
        /// IP protocol number.
        proto: u8,
        /// Protocol, where known.
        app: Option<&'static str>,
        /// Its number in the configuration, from 0.
        policy: usize,
        /// Whether the flow was stopped.
        denied: bool,
    },
    /// A flow has ended, or its session has.
    Flow {
        /// Client.
        client: SocketAddr,
        /// Server.
        server: SocketAddr,
        /// IP protocol number.
        proto: u8,
        /// Protocol, where known.
        app: Option<&'static str>,
        /// Packets that were seen here, from client and from server.
        packets: [u64; 2],
        /// Their frame bytes.
        bytes: [u64; 2],
        /// Times of its first and last packet, of the clock that the engine is given.
        span_ns: [u64; 2],
        /// What was said of its last packet.
        verdict: Verdict,
        /// TCP that its ends have closed or reset; else it fell silent, or the capture ended.
        is_closed: bool,
    },
}

/// Numbers of an engine at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions that are open.
    pub sessions: usize,
    /// Those that could not be opened for want of room: their packets passed unseen.
    pub no_room: u64,
    /// Sessions that nobody had answered and that gave way to new ones.
    pub evicted: u64,
    /// Frames that are no packets this engine can read.
    pub undecoded: u64,
}

/// One open session, for `dpi sessions`.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionView {
    /// Client.
    pub client: SocketAddr,
    /// Server.
    pub server: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Protocol, where known.
    pub app: Option<&'static str>,
    /// Packets from client and from server.
    pub packets: [u64; 2],
    /// Their frame bytes.
    pub bytes: [u64; 2],
    /// What was said last.
    pub verdict: Verdict,
    /// Nanoseconds since its last packet.
    pub idle_ns: u64,
}

/// What a worker asks.
pub trait Engine: Send {
    /// Looks at a frame, Ethernet header first.
    fn judge(
        &mut self,
        now_ns: u64,
        meta: &Meta,
        frame: &[u8],
        tell: &mut dyn FnMut(Event),
    ) -> Verdict;

    /// Ends what is over. Called a few times a second, with or without packets.
    fn tick(&mut self, now_ns: u64, tell: &mut dyn FnMut(Event));

    /// Another mode, other policies: each session is judged by them at its next packet. What is known of protocols
    /// stays.
    fn configure(&mut self, _mode: DpiMode, _policies: &Arc<Policies>) {}

    /// Numbers.
    fn stats(&self) -> Stats;

    /// Up to `limit` open sessions.
    fn sessions(&self, now_ns: u64, limit: usize) -> Vec<SessionView>;
}
