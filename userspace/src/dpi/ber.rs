//! ASN.1's basic encoding (X.690), as much as SNMP and LDAP need: one element after the other.

use super::registry::Reader;

pub const INTEGER: u8 = 0x02;
pub const OCTETS: u8 = 0x04;
pub const OID: u8 = 0x06;
pub const ENUMERATED: u8 = 0x0a;
pub const SEQUENCE: u8 = 0x30;

/// An element's tag and the length of what it holds, which `rest` then begins with; `None` where the bytes end before, or
/// the length is in no form that is used.
pub fn start(rest: &mut Reader<'_>) -> Option<(u8, usize)> {
    let tag = rest.u8()?;
    let len = match rest.u8()? {
        short @ ..=0x7f => short.into(),
        0x81 => rest.u8()?.into(),
        0x82 => rest.u16()?.into(),
        0x83 => rest.u24()?,
        0x84 => rest.u32()? as usize,
        _ => return None,
    };
    Some((tag, len))
}

/// A whole element with this tag.
pub fn element<'a>(rest: &mut Reader<'a>, tag: u8) -> Option<Reader<'a>> {
    let (found, len) = start(rest)?;
    let body = rest.take(len)?;
    (found == tag).then_some(Reader(body))
}

/// A number of at most four bytes that is not below zero.
pub fn number(rest: &mut Reader<'_>, tag: u8) -> Option<u32> {
    let digits = element(rest, tag)?.0;
    let is_right = matches!(digits.len(), 1..=4) && digits[0] < 0x80;
    is_right.then(|| {
        digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | u32::from(*digit))
    })
}

/// An object identifier, with dots.
pub fn dotted(oid: &[u8]) -> String {
    let mut text = String::new();
    let mut number = 0u64;
    for (at, byte) in oid.iter().take(128).enumerate() {
        number = number << 7 & u64::MAX >> 8 | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        match at {
            // The first two numbers share a byte.
            0 => {
                text = format!(
                    "{}.{}",
                    (number / 40).min(2),
                    number - (number / 40).min(2) * 40
                )
            }
            _ => text.push_str(&format!(".{number}")),
        }
        number = 0;
    }
    text
}
