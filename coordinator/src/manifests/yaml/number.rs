//! Numbers as Go's `strconv` reads them for go-yaml, and floats as it prints them for keys.

/// A number in plain text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Uint(u64),
    Float(f64),
}

/// A number that begins with a digit or sign. Underscores may stand anywhere after that.
pub(super) fn parse(text: &str) -> Option<Number> {
    let plain: String = text.chars().filter(|&c| c != '_').collect();
    if let Some(number) = integer(&plain, None) {
        return Some(number);
    }
    if is_decimal(&plain) {
        return finite(&plain).map(Number::Float);
    }
    // After these prefixes, go-yaml also accepts a sign.
    if let Some(digits) = plain.strip_prefix("0b") {
        return integer(digits, Some(2));
    }
    let digits = plain.strip_prefix("-0b")?;
    i64::from_str_radix(&format!("-{digits}"), 2).ok().map(Number::Int)
}

/// A float that begins with its point. Underscores may only stand between digits.
pub(super) fn fraction(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let lone = |i: usize| bytes[i] == b'_' && !(digit(i.checked_sub(1)) && digit(Some(i + 1)));
    if (0..bytes.len()).any(lone) {
        return None;
    }
    let plain: String = text.chars().filter(|&c| c != '_').collect();
    is_decimal(&plain).then(|| finite(&plain)).flatten()
}

/// An integer in the given base, or in the base of its prefix: `0x`, `0o`, `0b`, or `0` for octal.
fn integer(text: &str, base: Option<u32>) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let (base, digits) = match (base, digits.as_bytes()) {
        (Some(base), _) => (base, digits),
        (None, [b'0', b'x' | b'X', _, ..]) => (16, &digits[2..]),
        (None, [b'0', b'o' | b'O', _, ..]) => (8, &digits[2..]),
        (None, [b'0', b'b' | b'B', _, ..]) => (2, &digits[2..]),
        (None, [b'0', _, ..]) => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Rust would accept another sign here.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let signed =
        if negative { i64::from_str_radix(&format!("-{digits}"), base) } else { i64::from_str_radix(digits, base) };
    if let Ok(int) = signed {
        return Some(Number::Int(int));
    }
    if text.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, base).ok().map(Number::Uint) }
}

/// Whether it matches `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn is_decimal(text: &str) -> bool {
    let after_digits = |s: &str| s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let after = &rest[rest.len() - after_digits(rest)..];
    let whole = after.len() < rest.len();
    let rest = match after.strip_prefix('.') {
        Some(fraction) => {
            let end = &fraction[fraction.len() - after_digits(fraction)..];
            if !whole && end.len() == fraction.len() {
                return false;
            }
            end
        }
        None if whole => after,
        None => return false,
    };
    match rest.strip_prefix(['e', 'E']) {
        Some(power) => {
            let power = power.strip_prefix(['+', '-']).unwrap_or(power);
            !power.is_empty() && after_digits(power) == 0
        }
        None => rest.is_empty(),
    }
}

/// The float, unless the number is too large for one.
fn finite(decimal: &str) -> Option<f64> {
    decimal.parse().ok().filter(|f: &f64| f.is_finite())
}

/// A float as a mapping's key: Go's shortest form of a `float32`. `None` if that would be another number.
pub(super) fn key(f: f64) -> Option<String> {
    if !f.is_finite() {
        return Some(
            if f.is_nan() {
                ".nan"
            } else if f > 0.0 {
                ".inf"
            } else {
                "-.inf"
            }
            .into(),
        );
    }
    let short = f as f32;
    let text = format!("{short:e}");
    if text.parse() != Ok(f) {
        return None;
    }
    let (digits, power) = text.split_once('e')?;
    let power: i32 = power.parse().ok()?;
    if (-4..6).contains(&power) {
        return Some(short.to_string());
    }
    let sign = if power < 0 { '-' } else { '+' };
    Some(format!("{digits}e{sign}{:02}", power.abs()))
}
