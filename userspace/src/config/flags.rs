//! `[flags.ipv4]` and `[flags.ipv6]`: `fsm_xcfg` by name.
//!
//! A flag's place in the list below is its bit in the seed's map, so the list
//! only ever grows at its end.

use serde::Serialize;

use super::reader::Table;
use super::report::ValueError;
use super::values::Family;

macro_rules! flags {
    ($($(#[$doc:meta])+ $name:ident = $default:literal,)+) => {
        /// The name of each flag, at the index of its bit.
        pub const FLAG_NAMES: [&str; flags!(@count $($name)+)] = [$(stringify!($name)),+];

        /// The flags of one family.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        pub struct FlagSet {
            $($(#[$doc])+ #[doc = concat!("Default: ", $default, ".")] pub $name: bool,)+
        }

        impl Default for FlagSet {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl FlagSet {
            pub(super) fn read(table: &mut Table<'_>) -> Self {
                Self { $($name: table.flag(stringify!($name), $default),)+ }
            }

            /// The flags as one word of `fsm_xcfg`.
            pub fn bits(&self) -> u64 {
                [$(self.$name),+]
                    .iter()
                    .enumerate()
                    .fold(0, |bits, (bit, on)| bits | u64::from(*on) << bit)
            }

            /// The flags of a word of `fsm_xcfg`; bits without a name are left out.
            pub fn from_bits(bits: u64) -> Self {
                let mut flags = Self::default();
                let all = [$(&mut flags.$name),+];
                for (bit, flag) in all.into_iter().enumerate() {
                    *flag = bits >> bit & 1 == 1;
                }
                flags
            }
        }
    };
    (@count $($name:ident)+) => { [$(stringify!($name)),+].len() };
}

flags! {
    /// Drop everything.
    deny_all = false,
    /// Pass everything as it is.
    allow_all = false,
    /// Drop all TCP.
    tcp_proto_deny_all = false,
    /// Pass all TCP as it is.
    tcp_proto_allow_all = false,
    /// Pass TCP that no NAT entry takes, instead of dropping it.
    tcp_proto_allow_nat_escape = true,
    /// Drop all UDP.
    udp_proto_deny_all = false,
    /// Pass all UDP as it is.
    udp_proto_allow_all = false,
    /// Pass UDP that no NAT entry takes, instead of dropping it.
    udp_proto_allow_nat_escape = true,
    /// Drop what is neither TCP nor UDP.
    oth_proto_deny_all = false,
    /// Look for a TCP NAT entry by address and port.
    tcp_nat_by_ip_port_on = true,
    /// Look for a TCP NAT entry by address.
    tcp_nat_by_ip_on = true,
    /// Do not use the TCP NAT entry for any destination.
    tcp_nat_all_off = false,
    /// Record the original destination of steered TCP flows.
    tcp_nat_opt_on = true,
    /// Include the local address in that record's key.
    tcp_nat_opt_with_local_addr_on = true,
    /// Include the local port in that record's key.
    tcp_nat_opt_with_local_port_on = true,
    /// Look for a UDP NAT entry by address and port.
    udp_nat_by_ip_port_on = true,
    /// Look for a UDP NAT entry by address.
    udp_nat_by_ip_on = true,
    /// Look for a UDP NAT entry by port.
    udp_nat_by_port_on = true,
    /// Do not use the UDP NAT entry for any destination.
    udp_nat_all_off = false,
    /// Record the original destination of steered UDP flows.
    udp_nat_opt_on = true,
    /// Include the local address in that record's key.
    udp_nat_opt_with_local_addr_on = true,
    /// Include the local port in that record's key.
    udp_nat_opt_with_local_port_on = true,
    /// Look flows up in the ACL.
    acl_check_on = true,
    /// Trace packets as they are parsed.
    trace_hdr_on = false,
    /// Trace NAT lookups.
    trace_nat_on = false,
    /// Trace records of original destinations.
    trace_opt_on = false,
    /// Trace ACL lookups.
    trace_acl_on = false,
    /// Trace flow lookups.
    trace_flow_on = false,
    /// Trace only the addresses of `trace.ips`.
    trace_by_ip_on = false,
    /// Trace only the ports of `trace.ports`.
    trace_by_port_on = false,
}

impl FlagSet {
    /// The flag of that name.
    pub fn get(&self, name: &str) -> Result<bool, ValueError> {
        Ok(self.bits() >> bit(name)? & 1 == 1)
    }

    /// Sets the flag of that name.
    pub fn set(&mut self, name: &str, on: bool) -> Result<(), ValueError> {
        let mask = 1 << bit(name)?;
        let bits = self.bits() & !mask;
        *self = Self::from_bits(if on { bits | mask } else { bits });
        Ok(())
    }
}

/// The bit of a flag in `fsm_xcfg`.
pub fn bit(name: &str) -> Result<usize, ValueError> {
    FLAG_NAMES
        .iter()
        .position(|flag| *flag == name)
        .ok_or_else(|| ValueError::unknown("flag", name, &FLAG_NAMES))
}

/// `[flags]`: the flags of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Flags {
    /// For IPv4 packets.
    pub ipv4: FlagSet,
    /// For IPv6 packets.
    pub ipv6: FlagSet,
}

impl Flags {
    /// The flags of a family.
    pub fn of(&self, family: Family) -> &FlagSet {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            ipv4: table.section("ipv4", FlagSet::read),
            ipv6: table.section("ipv6", FlagSet::read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_has_its_bit_of_the_seed() {
        assert_eq!(FLAG_NAMES.len(), 30);
        for (bit, name) in FLAG_NAMES.iter().enumerate() {
            let mut flags = FlagSet::from_bits(0);
            flags.set(name, true).unwrap();
            assert_eq!(flags.bits(), 1 << bit, "{name}");
            assert!(flags.get(name).unwrap());
            flags.set(name, false).unwrap();
            assert_eq!(flags.bits(), 0, "{name}");
        }
        assert_eq!(bit("acl_check_on").unwrap(), 22);
    }

    #[test]
    fn an_unknown_flag_gets_its_neighbour() {
        let error = FlagSet::default().get("acl_chek_on").unwrap_err();
        assert_eq!(error.near.as_deref(), Some("acl_check_on"));
    }
}
