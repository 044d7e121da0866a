//! Sizes and times, as people write them.

use std::time::Duration;

/// Parses `256MiB`, `10GB`, `4096`.
///
/// # Errors
/// A text for the person who wrote the value, saying what is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: write for example 256MiB, 10GB or 4096");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: u64 = match unit.trim().to_ascii_lowercase().trim_end_matches("/s") {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|&n| n > 0).ok_or_else(bad)
}

/// Parses `30d`, `12h`, `90m`, `45s`, `2w`, `1y`.
///
/// # Errors
/// A text for the person who wrote the value, saying what is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time: write for example 30d, 12h, 90m, 2w or 1y");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(at);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        "w" => 7 * 86400,
        "y" => 365 * 86400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    // A century is more than S3 accepts in any date.
    let total = number.checked_mul(seconds).filter(|&s| s > 0 && s <= 100 * 365 * 86400).ok_or_else(bad)?;
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(size("256MiB"), Ok(256 << 20));
        assert_eq!(size("10MB/s"), Ok(10_000_000));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86400)));
        for bad in ["", "x", "10XB", "-1", "0", "99999999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["", "30", "d", "0d", "1000y", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
