//! The flags of `fsm_xcfg`, as `cfg` shows them.

use fsm_common::flags::FLAGS;
use serde::Serialize;

use super::Row;
use crate::config::FlagSet;

/// One flag in both families.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlagRow {
    /// Its name.
    pub flag: &'static str,
    /// On for IPv4.
    pub ipv4: bool,
    /// On for IPv6.
    pub ipv6: bool,
    /// What it does.
    pub meaning: &'static str,
}

/// Every flag, in the order of the bits.
pub fn rows(ipv4: FlagSet, ipv6: FlagSet) -> Vec<FlagRow> {
    let row = |(flag, mask, meaning): &(&'static str, u64, &'static str)| FlagRow {
        flag,
        ipv4: ipv4.has(*mask),
        ipv6: ipv6.has(*mask),
        meaning,
    };
    FLAGS.iter().map(row).collect()
}

/// `on` or `off`.
pub const fn on_off(on: bool) -> &'static str {
    match on {
        true => "on",
        false => "off",
    }
}

impl Row for FlagRow {
    const HEAD: &'static [&'static str] = &["FLAG", "IPV4", "IPV6", "MEANING"];

    fn cells(&self) -> Vec<String> {
        [
            self.flag,
            on_off(self.ipv4),
            on_off(self.ipv6),
            self.meaning,
        ]
        .map(str::to_owned)
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_shown_for_both_families() {
        let rows = rows(FlagSet::from_bits(1), FlagSet::from_bits(1 << 22));
        assert_eq!(rows.len(), 30);
        assert_eq!(
            (rows[0].flag, rows[0].ipv4, rows[0].ipv6),
            ("deny_all", true, false)
        );
        assert_eq!(rows[22].cells()[..3], ["acl_check_on", "off", "on"]);
    }
}
