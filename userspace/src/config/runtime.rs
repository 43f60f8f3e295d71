//! `[conntrack]`, `[forward]`, `[events]` and `[trace]`: how the data path runs.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::address::address;
use super::reader::Table;
use super::values::{absolute_path, or_off, port, text};

/// `[conntrack]`: the flow table. Timeouts are idle times in seconds, 1 to
/// 31536000; names and defaults are those of netfilter's `nf_conntrack_*_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// Flows of the main table, 1024 to 16777216. Default: 1048576.
    pub max_flows: u32,
    /// Half-open and one-way flows, in a table of their own that evicts the oldest, 1024 to 16777216.
    /// Default: 65536.
    pub max_half_open: u32,
    /// TCP: SYN seen. Default: 120.
    pub tcp_syn_sent_s: u32,
    /// TCP: SYN and SYN-ACK seen. Default: 60.
    pub tcp_syn_recv_s: u32,
    /// TCP: open. Default: 432000, five days.
    pub tcp_established_s: u32,
    /// TCP: one side has closed. Default: 120.
    pub tcp_fin_wait_s: u32,
    /// TCP: the other side has acknowledged that. Default: 60.
    pub tcp_close_wait_s: u32,
    /// TCP: both have closed, the last ACK is missing. Default: 30.
    pub tcp_last_ack_s: u32,
    /// TCP: closed, late segments are absorbed. Default: 120.
    pub tcp_time_wait_s: u32,
    /// TCP: reset. Default: 10.
    pub tcp_close_s: u32,
    /// TCP: open, with data that nobody acknowledges. Default: 300.
    pub tcp_unacknowledged_s: u32,
    /// UDP: seen in one direction. Default: 30.
    pub udp_s: u32,
    /// UDP: seen in both directions. Default: 120.
    pub udp_stream_s: u32,
    /// ICMP and ICMPv6 queries. Default: 30.
    pub icmp_s: u32,
    /// Any other protocol. Default: 600.
    pub generic_s: u32,
}

impl Conntrack {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        const YEAR_S: u32 = 365 * 24 * 3600;
        let max_flows = table.number("max_flows", 1024..=16 << 20, 1 << 20);
        let max_half_open = table.number("max_half_open", 1024..=16 << 20, 1 << 16);
        let mut seconds = |key, default| table.number(key, 1..=YEAR_S, default);
        Self {
            max_flows,
            max_half_open,
            tcp_syn_sent_s: seconds("tcp_syn_sent_s", 120),
            tcp_syn_recv_s: seconds("tcp_syn_recv_s", 60),
            tcp_established_s: seconds("tcp_established_s", 432_000),
            tcp_fin_wait_s: seconds("tcp_fin_wait_s", 120),
            tcp_close_wait_s: seconds("tcp_close_wait_s", 60),
            tcp_last_ack_s: seconds("tcp_last_ack_s", 30),
            tcp_time_wait_s: seconds("tcp_time_wait_s", 120),
            tcp_close_s: seconds("tcp_close_s", 10),
            tcp_unacknowledged_s: seconds("tcp_unacknowledged_s", 300),
            udp_s: seconds("udp_s", 30),
            udp_stream_s: seconds("udp_stream_s", 120),
            icmp_s: seconds("icmp_s", 30),
            generic_s: seconds("generic_s", 600),
        }
    }
}

/// `[forward]`: shortcuts past the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// Redirect trusted flows between apps of this node before the stack. Default: `true`.
    pub same_node: bool,
    /// Splice the sockets of app and gateway on this node. Default: `false`.
    pub sockmap: bool,
}

impl Forward {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            same_node: table.flag("same_node", true),
            sockmap: table.flag("sockmap", false),
        }
    }
}

/// `[events]`: records of flows, apps and threats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Events {
    /// Absolute path of a file that gets one JSON object a line, in Suricata
    /// EVE's terms; `None` (written `""`) is off. Default: off.
    pub eve: Option<PathBuf>,
}

impl Events {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let eve = table.get("eve", or_off(absolute_path));
        Self {
            eve: eve.unwrap_or_default(),
        }
    }
}

/// `[trace]`: packets whose way is recorded step by step, if `flags` say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Source or destination addresses. Default: none.
    pub ips: Vec<IpAddr>,
    /// Source or destination ports. Default: none.
    pub ports: Vec<u16>,
}

impl Trace {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let ips = table.list("ips", |value| text(value, address));
        let ports = table.list("ports", port);
        Self {
            ips: ips.unwrap_or_default(),
            ports: ports.unwrap_or_default(),
        }
    }
}
