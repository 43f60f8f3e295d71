//! Arguments in the configuration's words: checked here by its types, sent to the daemon as text.

use std::str::FromStr;

use crate::config::{self, ValueError};

/// A text that a type of the configuration reads.
pub fn word<T: FromStr<Err = ValueError>>(text: &str) -> Result<String, ValueError> {
    text.parse::<T>().map(|_| text.to_owned())
}

/// An address or a CIDR.
pub fn network(text: &str) -> Result<String, ValueError> {
    config::network(text).map(|_| text.to_owned())
}

/// An address.
pub fn address(text: &str) -> Result<String, ValueError> {
    config::address(text).map(|_| text.to_owned())
}

/// `addr:port`, or `addr:port@weight`.
pub fn endpoint(text: &str) -> Result<String, ValueError> {
    let (addr, weight) = text.split_once('@').unwrap_or((text, "1"));
    config::listener(addr)?;
    match weight.parse::<u16>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ValueError::new(
            format!("weight `{weight}` cannot be"),
            "0 to 65535",
        )),
    }
}

/// `on` or `off`.
pub fn on_off(text: &str) -> Result<bool, ValueError> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(ValueError::unknown("value", text, &["on", "off"])),
    }
}

/// Seconds, or a number with `s`, `m`, `h` or `d`.
pub fn seconds(text: &str) -> Result<u64, ValueError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86400),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    number
        .zip(unit)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .ok_or_else(|| {
            ValueError::new(
                format!("`{text}` is not a time"),
                "seconds, or as 90s, 5m, 2h, 1d",
            )
        })
}

/// A protocol's name or number.
pub fn proto(text: &str) -> Result<u8, ValueError> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        _ => text.parse().map_err(|_| {
            let error = ValueError::unknown("protocol", text, &["tcp", "udp"]);
            ValueError {
                allowed: "tcp, udp, or a number 0 to 255".into(),
                ..error
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let times: Vec<_> = ["7", "7s", "7m", "7h", "7d"]
            .iter()
            .map(|t| seconds(t).unwrap())
            .collect();
        assert_eq!(times, [7, 7, 420, 25200, 604_800]);
        for bad in [
            "",
            "s",
            "7w",
            "-7",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_may_have_a_weight() {
        for good in ["10.0.0.1:80", "10.0.0.1:80@3", "[fd00::1]:80@0"] {
            assert_eq!(endpoint(good).unwrap(), good);
        }
        for bad in [
            "10.0.0.1",
            "10.0.0.1:80@",
            "10.0.0.1:80@x",
            "0.0.0.0:80",
            "fd00::1:80",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn protocols_have_names_or_numbers() {
        assert_eq!((proto("tcp").unwrap(), proto("132").unwrap()), (6, 132));
        assert!(proto("300").is_err() && proto("tpc").is_err());
    }
}
