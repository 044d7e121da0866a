//! Text from bytes.

use std::borrow::Cow;

use super::problem::Problem;

/// The text of a file: UTF-8, or UTF-16 with a byte order mark. The mark itself does not belong to the text.
///
/// kubectl reads the same encodings, and replaces what it can't decode by U+FFFD. That would lose data, so it is refused here.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Problem> {
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).map(Cow::Owned),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).map(Cow::Owned),
        _ => match std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(e) => {
                let line = 1 + bytes.iter().take(e.valid_up_to()).filter(|&&b| b == b'\n').count();
                Err(Problem::new(line, "the file is not UTF-8 text (nor UTF-16 with a byte order mark)"))
            }
        },
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, Problem> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len());
    for c in char::decode_utf16(pairs.iter().map(|&pair| unit(pair))) {
        match c {
            Ok(c) => text.push(c),
            Err(_) => return Err(broken(&text)),
        }
    }
    if rest.is_empty() { Ok(text) } else { Err(broken(&text)) }
}

fn broken(before: &str) -> Problem {
    Problem::new(1 + before.matches('\n').count(), "the file begins as UTF-16 text, and is not")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubectl_reads_and_refuses_what_it_would_replace() {
        assert_eq!(decode("a: \u{e4}".as_bytes()).unwrap(), "a: \u{e4}");
        assert_eq!(decode(b"\xef\xbb\xbfa").unwrap(), "a");
        assert_eq!(decode(b"\xff\xfea\0\n\0").unwrap(), "a\n");
        assert_eq!(decode(b"\xfe\xff\xd8\x3d\xde\x00").unwrap(), "\u{1f600}");
        assert_eq!(decode(b"a\nb\xff").unwrap_err().line, 2);
        assert_eq!(decode(b"\xff\xfea\0\n\0\0\xd8").unwrap_err().line, 2);
        assert!(decode(b"\xff\xfea").unwrap_err().reason.contains("UTF-16"));
        assert_eq!(decode(b"").unwrap(), "");
    }
}
