//! Single values of the configuration: from text to checked types.
//!
//! The types here also read the command line's arguments (`FromStr`), so that
//! a file and a verb take the same words and give the same errors.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use toml::de::DeValue;

use super::report::{ValueError, quoted};

/// An enum whose values are words in the file, on the command line and in JSON.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident is $what:literal {
        $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$word_doc])* $variant,)+
        }

        impl $name {
            /// Every word, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for this value.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::config::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::config::ValueError::unknown($what, text, Self::WORDS)),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
    };
}
pub(super) use words;

words! {
    /// An address family.
    Family is "family" {
        /// IPv4.
        Ipv4 = "ipv4",
        /// IPv6.
        Ipv6 = "ipv6",
    }
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

/// A run of ports, both ends included; `ANY` also means "has no ports".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port; 0 only in [`PortRange::ANY`].
    pub first: u16,
    /// The last port, never below `first`.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };
    const ALLOWED: &'static str = "a port 1-65535, 0 or \"any\" for all, \"FIRST-LAST\"";

    /// One port.
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether every port is meant.
    pub fn is_any(self) -> bool {
        self == Self::ANY
    }

    /// The port, if it is exactly one.
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    /// Whether `port` is within.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => port.fmt(f),
            None if self.is_any() => f.pad("any"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "any" || text == "0" {
            return Ok(Self::ANY);
        }
        let allow = |error: ValueError| ValueError::new(error.what, Self::ALLOWED);
        let Some((first, last)) = text.split_once('-') else {
            return port_text(text).map(Self::one).map_err(allow);
        };
        let first = port_text(first).map_err(allow)?;
        let last = port_text(last).map_err(allow)?;
        if first > last {
            let what = format!("range {} runs backwards", quoted(text));
            return Err(ValueError::new(what, Self::ALLOWED).or_rather(format!("{last}-{first}")));
        }
        Ok(Self { first, last })
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.single() {
            Some(port) => to.serialize_u16(port),
            None => to.collect_str(self),
        }
    }
}

/// An amount of memory or data, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    const ALLOWED: &'static str = "bytes as a number, or \"16KiB\", \"1MiB\", \"1GiB\"";
    const UNITS: [(&'static str, u64); 4] = [
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, size): &&(&str, u64)| self.0 >= *size && self.0.is_multiple_of(*size);
        match Self::UNITS.iter().rev().find(fits) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = |what: String| ValueError::new(what, Self::ALLOWED);
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        if count.is_empty() {
            return Err(bad(format!("{} is not a size", quoted(text))));
        }
        let size = match Self::UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, size)) => *size,
            None if unit.is_empty() => 1,
            None => {
                let meant = Self::UNITS
                    .iter()
                    .find(|(name, _)| unit.to_uppercase().starts_with(&name[..1]));
                let error = bad(format!("unknown unit {}", quoted(unit)));
                return Err(match meant {
                    Some((name, _)) => error.or_rather(format!("{count}{name}")),
                    None => error,
                });
            }
        };
        let bytes = count.parse::<u64>().ok().and_then(|n| n.checked_mul(size));
        bytes
            .map(Self)
            .ok_or_else(|| bad(format!("{} is too large", quoted(text))))
    }
}

/// "is a string", for values of the wrong type.
pub(super) fn is_a(value: &DeValue<'_>) -> String {
    let name = value.type_str();
    let article = match name.starts_with(['a', 'i']) {
        true => "an",
        false => "a",
    };
    format!("is {article} {name}")
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, ValueError> {
    value
        .as_bool()
        .ok_or_else(|| ValueError::new(is_a(value), "true, false"))
}

/// A whole number within a range.
pub(super) fn number<T>(value: &DeValue<'_>, range: &RangeInclusive<T>) -> Result<T, ValueError>
where
    T: TryFrom<i128> + Into<i128> + Copy + fmt::Display,
{
    let allowed = || format!("a whole number {} to {}", range.start(), range.end());
    let Some(integer) = value.as_integer() else {
        return Err(ValueError::new(is_a(value), allowed()));
    };
    let digits = integer.as_str().replace('_', "");
    let number = i128::from_str_radix(&digits, integer.radix()).ok();
    let within = (*range.start()).into()..=(*range.end()).into();
    number
        .filter(|number| within.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            ValueError::new(
                format!("{} is out of range", quoted(&integer.to_string())),
                allowed(),
            )
        })
}

/// A string, handed to `parse`.
pub(super) fn text<T>(
    value: &DeValue<'_>,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<T, ValueError> {
    match value.as_str() {
        Some(text) => parse(text),
        None => {
            // What a parser says of nothing is what it wants.
            let allowed = parse("").err().map(|error| error.allowed);
            let allowed = allowed.unwrap_or_else(|| "a string".to_owned());
            Err(ValueError::new(is_a(value), allowed))
        }
    }
}

/// A string of a type that reads itself.
pub(super) fn parsed<T: FromStr<Err = ValueError>>(value: &DeValue<'_>) -> Result<T, ValueError> {
    text(value, T::from_str)
}

/// A port number, which cannot be 0.
pub(super) fn port(value: &DeValue<'_>) -> Result<u16, ValueError> {
    number(value, &(1..=u16::MAX))
}

/// A port, a range in a string, or 0 for any.
pub(super) fn ports(value: &DeValue<'_>) -> Result<PortRange, ValueError> {
    let allow = |error: ValueError| ValueError {
        allowed: PortRange::ALLOWED.to_owned(),
        ..error
    };
    match value {
        DeValue::String(_) => parsed(value),
        _ => match number(value, &(0..=u16::MAX)).map_err(allow)? {
            0 => Ok(PortRange::ANY),
            port => Ok(PortRange::one(port)),
        },
    }
}

/// A size: a number of bytes or text with a unit.
pub(super) fn byte_size(value: &DeValue<'_>) -> Result<ByteSize, ValueError> {
    match value {
        DeValue::Integer(_) => number(value, &(0..=i64::MAX)).map(|n| ByteSize(n.unsigned_abs())),
        _ => parsed(value),
    }
}

/// A port number in text.
pub(super) fn port_text(text: &str) -> Result<u16, ValueError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse::<u16>().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| ValueError::new(format!("port {} cannot be", quoted(text)), "1 to 65535"))
}

/// An absolute path.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, ValueError> {
    let path = PathBuf::from(text);
    match path.is_absolute() && !text.contains('\0') {
        true => Ok(path),
        false => {
            let what = format!("{} is not an absolute path", quoted(text));
            Err(ValueError::new(what, "a path from /"))
        }
    }
}

/// `parse`, with "" for off.
pub(super) fn or_off<T>(
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> impl Fn(&DeValue<'_>) -> Result<Option<T>, ValueError> {
    move |value| match value.as_str() {
        Some("") => Ok(None),
        _ => text(value, &parse).map(Some).map_err(|error| ValueError {
            allowed: format!("{}, or \"\" for off", error.allowed),
            ..error
        }),
    }
}
