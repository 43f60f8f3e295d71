//! Why a packet was dropped, or why it did not get what it asked for. Declared once; counted in the
//! kernel under its number; printed by its name.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $kind:ident;)+) => {
        /// One counter of the map `fsm_reason`.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }

            /// True where the packet was dropped; false where it went on another way than wished.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => reasons!(@ $kind),)+ }
            }
        }
    };
    (@ drop) => { true };
    (@ note) => { false };
}

reasons! {
    /// frame ends before the header it announces
    Truncated = 0, "truncated", drop;
    /// IPv4 header: version, header length or total length are impossible
    BadIpv4 = 1, "bad_ipv4", drop;
    /// IPv6 header: version or payload length are impossible
    BadIpv6 = 2, "bad_ipv6", drop;
    /// IPv6 extension headers: too many, too long or malformed
    BadIpv6Ext = 3, "bad_ipv6_ext", drop;
    /// TCP header: data offset is impossible
    BadTcp = 4, "bad_tcp", drop;
    /// TCP flags that no TCP sends
    BadTcpFlags = 5, "bad_tcp_flags", drop;
    /// UDP length is impossible
    BadUdp = 6, "bad_udp", drop;
    /// more than two VLAN tags
    BadVlan = 7, "bad_vlan", drop;
    /// flag deny_all is on
    DenyAll = 8, "deny_all", drop;
    /// flag (tcp|udp|oth)_proto_deny_all is on
    ProtoDeny = 9, "proto_deny", drop;
    /// an ACL entry says deny
    AclDeny = 10, "acl_deny", drop;
    /// no NAT entry matches and the flag *_allow_nat_escape is off
    NatMiss = 11, "nat_miss", drop;
    /// the NAT entry has no active endpoint and node.fail is closed
    NatNoEndpoint = 12, "nat_no_endpoint", drop;
    /// no free source port for a translated flow
    NatNoPort = 13, "nat_no_port", drop;
    /// the flow table is full and node.fail is closed
    TableFull = 14, "flow_table_full", drop;
    /// a later fragment whose first fragment was not seen
    FragmentOrphan = 15, "fragment_orphan", drop;
    /// a map is missing or of another layout
    Internal = 16, "internal", drop;
    /// first fragment too short to hold the ports
    FragmentTiny = 17, "fragment_tiny", drop;
    /// the flow's NAT endpoint is gone and the entry says on_removed = "reset"
    NatTargetGone = 18, "nat_target_gone", drop;
    /// hop limit ends at this load balancer
    HopLimit = 19, "hop_limit", drop;
    /// no route to a load balancer's endpoint, or back to its client
    NoRoute = 20, "no_route", drop;
    /// UDP to a protected destination, over its rate of new flows
    FloodUdp = 21, "flood_udp", drop;
    /// on its way to a worker or back, and nobody takes it
    EscalationLost = 22, "escalation_lost", drop;
    /// inspection says deny
    DpiDeny = 23, "dpi_deny", drop;
    /// inspection says reset; the sender was told by an RST
    DpiReset = 24, "dpi_reset", drop;
    /// no worker to inspect it, and node.fail is closed
    DpiNoWorker = 25, "dpi_no_worker", drop;
    /// too large for a worker, and node.fail is closed
    DpiTooLarge = 26, "dpi_too_large", drop;
    /// an answer of a gateway listener whose flow is gone; the next packet of the app or client brings it back
    AnswerOrphan = 30, "answer_orphan", drop;
    /// the flow table is full; passed because node.fail is open
    TableFullOpen = 32, "flow_table_full_open", note;
    /// no active endpoint; passed because node.fail is open
    NatNoEndpointOpen = 33, "nat_no_endpoint_open", note;
    /// not redirected: the app's device cannot take frames from XDP
    RedirectNoNapi = 34, "redirect_no_napi", note;
    /// not redirected: neighbour not resolved yet
    RedirectNoNeigh = 35, "redirect_no_neigh", note;
    /// not redirected: hop limit ends here, so the stack answers
    RedirectTtl = 36, "redirect_ttl", note;
    /// not redirected: larger than the app's MTU, so the stack answers
    RedirectMtu = 37, "redirect_mtu", note;
    /// source port translated, because the reply would have met another flow's
    NatPortMoved = 38, "nat_port_moved", note;
    /// a new flow was made
    FlowNew = 39, "flow_new", note;
    /// a live flow was judged again after a change of policy
    FlowRejudged = 40, "flow_rejudged", note;
    /// a packet was translated at the app's device and sent back to the gateway
    Reinjected = 41, "reinjected", note;
    /// an ICMP error was translated together with the packet that it quotes
    IcmpTranslated = 42, "icmp_translated", note;
    /// a TCP FIN, SYN or RST that cannot be the connection's own; it passed and changed nothing here
    TcpOutOfWindow = 43, "tcp_out_of_window", note;
    /// SYN to a protected destination, over its rate, answered by XDP with a SYN cookie
    SynCookieSent = 44, "syn_cookie_sent", note;
    /// SYN to a protected destination, over its rate, left to the stack: no listener of this host takes it, or one
    /// that wants no cookies now
    SynCookieNone = 45, "syn_cookie_none", note;
    /// not inspected: no worker; passed because node.fail is open
    DpiNoWorkerOpen = 46, "dpi_no_worker_open", note;
    /// not inspected: too large for a worker; passed because node.fail is open
    DpiTooLargeOpen = 47, "dpi_too_large_open", note;
    /// a flow under inspection was judged, and is the kernel's alone now
    DpiAllowed = 48, "dpi_allowed", note;
}

/// Entries of the map `fsm_reason`.
pub const REASON_SLOTS: u32 = 64;
