//! `[flags.ipv4]` and `[flags.ipv6]`: `fsm_xcfg` by name.
//!
//! Names, bits and defaults are those of `fsm_common::flags`, which the
//! programs in the kernel read too.

use fsm_common::flags::{DEFAULT, FLAGS};
use serde::{Serialize, Serializer};

use super::reader::Table;
use super::report::ValueError;
use super::values::Family;

/// The name of each flag, at the index of its bit.
pub const FLAG_NAMES: [&str; FLAGS.len()] = {
    let mut names = [""; FLAGS.len()];
    let mut bit = 0;
    while bit < names.len() {
        names[bit] = FLAGS[bit].0;
        bit += 1;
    }
    names
};

/// The flags of one family: one word of `fsm_xcfg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlagSet {
    bits: u64,
}

impl Default for FlagSet {
    fn default() -> Self {
        Self { bits: DEFAULT }
    }
}

impl FlagSet {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let mut flags = Self::default();
        for (name, mask, _) in FLAGS {
            let on = table.flag(name, flags.has(*mask));
            flags.put(*mask, on);
        }
        flags
    }

    /// The flags as one word of `fsm_xcfg`.
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// The flags of a word of `fsm_xcfg`.
    pub const fn from_bits(bits: u64) -> Self {
        Self { bits }
    }

    /// Whether a flag of `fsm_common::flags` is on.
    pub const fn has(&self, mask: u64) -> bool {
        self.bits & mask != 0
    }

    /// The flag of that name.
    pub fn get(&self, name: &str) -> Result<bool, ValueError> {
        Ok(self.has(1 << bit(name)?))
    }

    /// Sets the flag of that name.
    pub fn set(&mut self, name: &str, on: bool) -> Result<(), ValueError> {
        self.put(1 << bit(name)?, on);
        Ok(())
    }

    /// Each flag's name and whether it is on, in the order of the bits.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        FLAGS.iter().map(|(name, mask, _)| (*name, self.has(*mask)))
    }

    fn put(&mut self, mask: u64, on: bool) {
        match on {
            true => self.bits |= mask,
            false => self.bits &= !mask,
        }
    }
}

impl Serialize for FlagSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
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
    /// For IPv4 packets. Default of each flag: `fsm_common::flags::DEFAULT`.
    pub ipv4: FlagSet,
    /// For IPv6 packets. Default of each flag: `fsm_common::flags::DEFAULT`.
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
        for (bit, (name, mask, _)) in FLAGS.iter().enumerate() {
            assert_eq!(*mask, 1 << bit, "{name}");
        }
        assert_eq!(FLAG_NAMES.len(), 30);
        assert_eq!(bit("deny_all").unwrap(), 0);
        assert_eq!(bit("acl_check_on").unwrap(), 22);
        assert_eq!(bit("trace_by_port_on").unwrap(), 29);
    }

    #[test]
    fn a_flag_is_set_alone() {
        let mut flags = FlagSet::from_bits(0);
        flags.set("acl_check_on", true).unwrap();
        assert_eq!(flags.bits(), 1 << 22);
        flags.set("acl_check_on", false).unwrap();
        assert_eq!(flags.bits(), 0);
    }

    #[test]
    fn an_unknown_flag_gets_its_neighbour() {
        let error = FlagSet::default().get("acl_chek_on").unwrap_err();
        assert_eq!(error.near.as_deref(), Some("acl_check_on"));
    }
}
