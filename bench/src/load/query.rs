//! A datagram that inspection passes on for good and never gives to the kernel: a DNS query, made as long as wanted by
//! EDNS padding (RFC 6891, RFC 7830).

/// Bytes of a query for the root's address with an empty padding option.
pub const LEAST: usize = 32;

/// A query of this many bytes, with this number.
pub fn query(number: u16, len: usize) -> Vec<u8> {
    let padding = len.saturating_sub(LEAST) as u16;
    let mut message = number.to_be_bytes().to_vec();
    // recursion desired; one question, no answer, no authority, one more record
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    // the root, type A, class IN
    message.extend([0, 0, 1, 0, 1]);
    // OPT of the root: 4096 bytes, no flags
    message.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0]);
    message.extend((padding + 4).to_be_bytes());
    message.extend(12u16.to_be_bytes());
    message.extend(padding.to_be_bytes());
    message.resize(message.len() + usize::from(padding), 0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_as_long_as_wanted() {
        assert_eq!(query(1, 0).len(), LEAST);
        assert_eq!(query(1, 64).len(), 64);
        assert_eq!(query(1, 1400).len(), 1400);
    }
}
