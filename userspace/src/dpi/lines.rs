//! What protocols of text lines share.

/// The first line without its end (LF or CR LF), and what follows; `None` where it has no end yet.
pub fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|b| *b == b'\n')?;
    let line = bytes.get(..at)?;
    Some((
        line.strip_suffix(b"\r").unwrap_or(line),
        bytes.get(at + 1..)?,
    ))
}

/// Whether these bytes can be read by people: tabs and spaces, letters, and what is not ASCII.
pub fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|b| matches!(b, b'\t' | b' '..=b'~' | 0x80..))
}

/// Whether all are graphic ASCII characters and there is at least one.
pub fn is_word(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic)
}

/// Whether `part` occurs in `bytes`, capitals or not.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes
        .windows(part.len().max(1))
        .any(|window| window.eq_ignore_ascii_case(part))
}

/// Whether `bytes` and `start` are the same as far as both go, capitals or not.
pub fn may_start(bytes: &[u8], start: &[u8]) -> bool {
    let len = bytes.len().min(start.len());
    bytes[..len].eq_ignore_ascii_case(&start[..len])
}

/// Whether `bytes` begin with `start`, capitals or not.
pub fn starts(bytes: &[u8], start: &[u8]) -> bool {
    bytes.len() >= start.len() && may_start(bytes, start)
}

/// Whether `word` is one of `list`, which is in capitals; the word need not be.
pub fn is_one_of(word: &[u8], list: &[&[u8]]) -> bool {
    list.iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// A decimal number of at most nine digits.
pub fn number(digits: &[u8]) -> Option<u32> {
    let is_number = matches!(digits.len(), 1..=9) && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
    })
}

/// The value of a header among the lines of a head (`Name: value`), up to its empty line; of many the first.
pub fn header<'a>(mut head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    while let Some((text, rest)) = line(head) {
        if text.is_empty() {
            return None;
        }
        if let Some((found, value)) = text.split_at_checked(name.len())
            && found.eq_ignore_ascii_case(name)
            && let Some(value) = value.trim_ascii_start().strip_prefix(b":")
        {
            return Some(value.trim_ascii());
        }
        head = rest;
    }
    None
}

/// Bytes of a head with its empty line; `None` where that is not there yet.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    while let Some((text, after)) = line(rest) {
        rest = after;
        if text.is_empty() {
            return Some(bytes.len() - rest.len());
        }
    }
    None
}
