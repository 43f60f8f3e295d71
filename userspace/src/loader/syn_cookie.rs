//! What the kernel must be told for SYN cookies, read from `/proc/sys/net`: the same cookies are made in XDP and
//! taken back by the stack, so both have to keep a connection's options the same way.

use std::fs;

use fsm_common::cookie::offer;

/// Largest window scale (RFC 7323 §2.3).
const MAX_SCALE: u32 = 14;

/// The settings that matter, as their files have them; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// `net.ipv4.tcp_syncookies`
    pub syncookies: String,
    /// `net.ipv4.tcp_timestamps`
    pub timestamps: String,
    /// `net.ipv4.tcp_sack`
    pub sack: String,
    /// `net.ipv4.tcp_window_scaling`
    pub scaling: String,
    /// `net.ipv4.tcp_rmem`
    pub rmem: String,
    /// `net.core.rmem_max`
    pub rmem_max: String,
}

impl Sysctls {
    /// Those of this network namespace.
    pub fn read() -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap_or_default();
            text.trim().to_owned()
        };
        Self {
            syncookies: read("ipv4/tcp_syncookies"),
            timestamps: read("ipv4/tcp_timestamps"),
            sack: read("ipv4/tcp_sack"),
            scaling: read("ipv4/tcp_window_scaling"),
            rmem: read("ipv4/tcp_rmem"),
            rmem_max: read("core/rmem_max"),
        }
    }

    /// Bits of [`offer`]. Options are kept in timestamps only where the kernel adds no random offset to them
    /// (`tcp_timestamps` 2): with one, it would read them wrong.
    pub fn offer(&self) -> u32 {
        let mut bits = self.scale();
        if self.timestamps == "2" {
            bits |= offer::TIMESTAMPS;
        }
        if self.sack != "0" {
            bits |= offer::SACK;
        }
        if self.scaling != "0" {
            bits |= offer::WSCALE;
        }
        bits
    }

    /// The window scale that the kernel chooses for a listener without `SO_RCVBUF` (`tcp_select_initial_window`):
    /// the least with which its largest receive buffer fits into 16 bits.
    fn scale(&self) -> u32 {
        let largest = self.rmem.split_whitespace().next_back();
        let bytes = [largest, Some(&self.rmem_max)]
            .into_iter()
            .flatten()
            .filter_map(|text| text.parse::<u64>().ok())
            .max();
        let bits = bytes.and_then(u64::checked_ilog2).unwrap_or(0);
        bits.saturating_sub(15).min(MAX_SCALE)
    }

    /// Why no SYN is answered in XDP, if so: a sentence with its cure.
    pub fn lack(&self) -> Option<&'static str> {
        match self.syncookies.as_str() {
            "0" => Some(
                "net.ipv4.tcp_syncookies is 0, so SYN floods are left to the stack: set it to 1 or 2",
            ),
            "" => Some(
                "the kernel has no SYN cookies (CONFIG_SYN_COOKIES), so SYN floods are left to the stack",
            ),
            _ => None,
        }
    }

    /// What works with less than it could: a sentence with its cure.
    pub fn shortcoming(&self) -> Option<&'static str> {
        if self.syncookies == "1" {
            return Some(
                "net.ipv4.tcp_syncookies is 1: XDP answers once a listener's queue is full; with 2 it does so at once",
            );
        }
        if self.timestamps != "2" {
            return Some(
                "net.ipv4.tcp_timestamps is not 2: connections by SYN cookie have neither window scaling nor SACK",
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(timestamps: &str) -> Sysctls {
        let text = str::to_owned;
        Sysctls {
            syncookies: text("2"),
            timestamps: text(timestamps),
            sack: text("1"),
            scaling: text("1"),
            rmem: text("4096\t131072\t6291456"),
            rmem_max: text("212992"),
        }
    }

    #[test]
    fn the_scale_is_that_of_the_largest_buffer() {
        // 6 MiB is what most hosts have: scale 7.
        assert_eq!(with("2").offer() & offer::SCALE, 7);
        let larger = |rmem_max: &str| Sysctls {
            rmem_max: rmem_max.to_owned(),
            ..with("2")
        };
        assert_eq!(larger("33554432").offer() & offer::SCALE, 10);
        assert_eq!(larger("9223372036854775807").offer() & offer::SCALE, 14);
        assert_eq!(Sysctls::default().offer() & offer::SCALE, 0);
    }

    #[test]
    fn options_go_with_timestamps_without_an_offset() {
        let all = offer::TIMESTAMPS | offer::SACK | offer::WSCALE;
        assert_eq!(with("2").offer() & !offer::SCALE, all);
        for other in ["0", "1", ""] {
            assert_eq!(with(other).offer() & offer::TIMESTAMPS, 0, "{other}");
        }
        let bare = Sysctls {
            sack: "0".to_owned(),
            scaling: "0".to_owned(),
            ..with("2")
        };
        assert_eq!(bare.offer() & !offer::SCALE, offer::TIMESTAMPS);
    }

    #[test]
    fn what_is_missing_is_said_with_its_cure() {
        assert_eq!((with("2").lack(), with("2").shortcoming()), (None, None));
        assert!(with("1").shortcoming().unwrap().contains("tcp_timestamps"));
        let cookies = |value: &str| Sysctls {
            syncookies: value.to_owned(),
            ..with("2")
        };
        assert!(cookies("1").shortcoming().unwrap().contains("with 2"));
        assert!(cookies("0").lack().unwrap().contains("set it to 1 or 2"));
        assert!(cookies("").lack().is_some());
    }
}
