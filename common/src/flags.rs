//! The flags of `fsm_xcfg`, by the seed's names; the position in [`FLAGS`] is the bit.

macro_rules! flags {
    ($($bit:literal $name:ident $constant:ident $doc:literal;)+) => {
        $(#[doc = $doc] pub const $constant: u64 = 1 << $bit;)+
        /// Name, bit mask and meaning of every flag, in bit order.
        pub const FLAGS: &[(&str, u64, &str)] = &[$((stringify!($name), $constant, $doc),)+];
    };
}

flags! {
    0 deny_all DENY_ALL "drop every packet";
    1 allow_all ALLOW_ALL "pass every packet untouched";
    2 tcp_proto_deny_all TCP_DENY "drop TCP";
    3 tcp_proto_allow_all TCP_ALLOW "pass TCP untouched";
    4 tcp_proto_allow_nat_escape TCP_ESCAPE "pass TCP that no NAT entry takes; else it is dropped";
    5 udp_proto_deny_all UDP_DENY "drop UDP";
    6 udp_proto_allow_all UDP_ALLOW "pass UDP untouched";
    7 udp_proto_allow_nat_escape UDP_ESCAPE "pass UDP that no NAT entry takes; else it is dropped";
    8 oth_proto_deny_all OTH_DENY "drop what is neither TCP nor UDP (neighbour discovery excepted)";
    9 tcp_nat_by_ip_port_on TCP_BY_IP_PORT "look TCP up by address and port";
    10 tcp_nat_by_ip_on TCP_BY_IP "look TCP up by address";
    11 tcp_nat_all_off TCP_ANY_OFF "leave out the entries that take any TCP";
    12 tcp_nat_opt_on TCP_OPT "record the original destination of TCP in fsm_xopt";
    13 tcp_nat_opt_with_local_addr_on TCP_OPT_LADDR "with the listener's address in the key";
    14 tcp_nat_opt_with_local_port_on TCP_OPT_LPORT "with the listener's port in the key";
    15 udp_nat_by_ip_port_on UDP_BY_IP_PORT "look UDP up by address and port";
    16 udp_nat_by_ip_on UDP_BY_IP "look UDP up by address";
    17 udp_nat_by_port_on UDP_BY_PORT "look UDP up by port";
    18 udp_nat_all_off UDP_ANY_OFF "leave out the entries that take any UDP";
    19 udp_nat_opt_on UDP_OPT "record the original destination of UDP in fsm_xopt";
    20 udp_nat_opt_with_local_addr_on UDP_OPT_LADDR "with the listener's address in the key";
    21 udp_nat_opt_with_local_port_on UDP_OPT_LPORT "with the listener's port in the key";
    22 acl_check_on ACL_ON "look the peer up in the ACL";
    23 trace_hdr_on TRACE_HDR "trace headers";
    24 trace_nat_on TRACE_NAT "trace NAT decisions";
    25 trace_opt_on TRACE_OPT "trace original destinations";
    26 trace_acl_on TRACE_ACL "trace ACL decisions";
    27 trace_flow_on TRACE_FLOW "trace flows";
    28 trace_by_ip_on TRACE_BY_IP "trace only addresses in fsm_trip";
    29 trace_by_port_on TRACE_BY_PORT "trace only ports in fsm_trpt";
}

/// On where the configuration does not say otherwise.
pub const DEFAULT: u64 = TCP_ESCAPE
    | TCP_BY_IP_PORT
    | TCP_BY_IP
    | TCP_OPT
    | TCP_OPT_LADDR
    | TCP_OPT_LPORT
    | UDP_ESCAPE
    | UDP_BY_IP_PORT
    | UDP_BY_IP
    | UDP_BY_PORT
    | UDP_OPT
    | UDP_OPT_LADDR
    | UDP_OPT_LPORT
    | ACL_ON;
