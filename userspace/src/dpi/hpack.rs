//! HPACK (RFC 7541), as much as the first header block of a connection needs: the static table, what the block itself adds
//! to the dynamic one, and Huffman's code.

use super::registry::Reader;

/// Fields of a block that are read.
const MAX_FIELDS: usize = 64;
/// Bytes of a name or value that are decoded.
const MAX_TEXT_BYTES: usize = 4096;
/// Bits of each symbol's code (appendix B); the last symbol ends a text and does not occur in one. The codes follow from
/// their lengths: in order of length, then of symbol, each is the one before plus one.
const CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
/// The longest code.
const MAX_BITS: usize = 30;

/// Appendix A, from index 1.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// By length of the code: the first code, how many there are, and where their symbols begin in `symbols`.
struct Huffman {
    first: [u32; MAX_BITS + 1],
    count: [u16; MAX_BITS + 1],
    start: [u16; MAX_BITS + 1],
    symbols: [u16; 257],
}

const HUFFMAN: Huffman = {
    let mut all = Huffman {
        first: [0; MAX_BITS + 1],
        count: [0; MAX_BITS + 1],
        start: [0; MAX_BITS + 1],
        symbols: [0; 257],
    };
    let (mut code, mut at, mut bits) = (0, 0, 1);
    while bits <= MAX_BITS {
        all.first[bits] = code;
        all.start[bits] = at;
        let mut symbol = 0;
        while symbol < 257 {
            if CODE_BITS[symbol] as usize == bits {
                all.symbols[at as usize] = symbol as u16;
                all.count[bits] += 1;
                at += 1;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        bits += 1;
    }
    all
};

/// Decodes a text; `None` where it is none.
fn huffman(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut bits) = (0u32, 0usize);
    for at in 0..bytes.len() * 8 {
        code = code << 1 | u32::from(bytes[at / 8] >> (7 - at % 8) & 1);
        bits += 1;
        if bits > MAX_BITS {
            return None;
        }
        let offset = code.wrapping_sub(HUFFMAN.first[bits]);
        if offset < u32::from(HUFFMAN.count[bits]) {
            let symbol = HUFFMAN.symbols[usize::from(HUFFMAN.start[bits]) + offset as usize];
            text.push(u8::try_from(symbol).ok()?);
            (code, bits) = (0, 0);
        }
    }
    // The last byte is filled up with ones.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

/// A number whose first `bits` bits are in the byte `first` (§5.1).
fn number(first: u8, bits: u8, rest: &mut Reader<'_>) -> Option<usize> {
    let most = (1usize << bits) - 1;
    let mut sum = usize::from(first) & most;
    if sum < most {
        return Some(sum);
    }
    for at in 0..3 {
        let byte = rest.u8()?;
        sum += usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(sum);
        }
    }
    None
}

fn text(rest: &mut Reader<'_>) -> Option<Vec<u8>> {
    let first = rest.u8()?;
    let len = number(first, 7, rest)?;
    let bytes = rest
        .take(len)
        .filter(|bytes| bytes.len() <= MAX_TEXT_BYTES)?;
    match first & 0x80 {
        0 => Some(bytes.to_vec()),
        _ => huffman(bytes),
    }
}

/// Gives each field of a block to `take`; `None` where the block breaks off.
pub fn fields(block: &[u8], take: &mut dyn FnMut(&[u8], &[u8])) -> Option<()> {
    let mut rest = Reader(block);
    // The newest is the last.
    let mut added: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..MAX_FIELDS {
        let Some(first) = rest.u8() else {
            return Some(());
        };
        // Another size of the table.
        if first & 0xe0 == 0x20 {
            number(first, 5, &mut rest)?;
            continue;
        }
        let (bits, is_indexed) = match first {
            0x80.. => (7, true),
            0x40.. => (6, false),
            _ => (4, false),
        };
        let index = number(first, bits, &mut rest)?;
        let known = |added: &[(Vec<u8>, Vec<u8>)]| match index.checked_sub(1)? {
            at if at < STATIC.len() => Some((STATIC[at].0.to_vec(), STATIC[at].1.to_vec())),
            at => {
                let back = added.len().checked_sub(at - STATIC.len() + 1)?;
                added.get(back).cloned()
            }
        };
        let (name, value) = match (is_indexed, index) {
            (true, _) => known(&added)?,
            (false, 0) => (text(&mut rest)?, text(&mut rest)?),
            (false, _) => (known(&added)?.0, text(&mut rest)?),
        };
        take(&name, &value);
        if bits == 6 {
            added.push((name, value));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(block: &[u8]) -> Option<String> {
        let mut lines = String::new();
        fields(block, &mut |name, value| {
            lines += &format!("{}: {}\n", name.escape_ascii(), value.escape_ascii());
        })?;
        Some(lines)
    }

    #[test]
    fn examples_of_the_rfc() {
        // C.3.1 without Huffman, C.4.1 with.
        let want = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n";
        let plain = b"\x82\x86\x84\x41\x0fwww.example.com";
        assert_eq!(all(plain).as_deref(), Some(want));
        let coded = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        assert_eq!(all(coded).as_deref(), Some(want));
        for len in 0..coded.len() {
            all(&coded[..len]);
        }
        assert_eq!(all(b"\xff\xff\xff\xff\xff"), None);
        assert_eq!(all(b"\x40\x01a\x01b\xbe").as_deref(), Some("a: b\na: b\n"));
    }
}
