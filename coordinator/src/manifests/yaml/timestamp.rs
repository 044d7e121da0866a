//! Texts that go-yaml takes for times. They stay text; only the tag `!!timestamp` checks this.

/// Whether a text is a time: a date alone, a date with a time of day after a space, or a date with a time of day and a zone after a
/// `T`.
pub(super) fn is_timestamp(text: &str) -> bool {
    let Some((year, rest)) = digits(text, 4, 4).and_then(|(year, rest)| Some((year, rest.strip_prefix('-')?))) else {
        return false;
    };
    let date = digits(rest, 1, 2).and_then(|(month, rest)| {
        let (day, rest) = digits(rest.strip_prefix('-')?, 1, 2)?;
        ((1..=12).contains(&month) && (1..=days(year, month)).contains(&day)).then_some(rest)
    });
    match date {
        None => false,
        Some("") => true,
        Some(rest) => {
            if let Some(time) = rest.strip_prefix(' ') {
                time_of_day(time) == Some("")
            } else {
                rest.strip_prefix(['T', 't']).and_then(time_of_day).is_some_and(is_zone)
            }
        }
    }
}

/// The rest of the text after a time of day.
fn time_of_day(text: &str) -> Option<&str> {
    let (hour, rest) = digits(text, 1, 2)?;
    let (minute, rest) = digits(rest.strip_prefix(':')?, 1, 2)?;
    let (second, rest) = digits(rest.strip_prefix(':')?, 1, 2)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    match rest.strip_prefix(['.', ',']) {
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (rest.len() < fraction.len()).then_some(rest)
        }
        None => Some(rest),
    }
}

fn is_zone(text: &str) -> bool {
    if text == "Z" {
        return true;
    }
    let zone = text.strip_prefix(['+', '-']).and_then(|zone| {
        let (hours, rest) = digits(zone, 2, 2)?;
        let (minutes, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
        Some(rest.is_empty() && hours <= 24 && minutes < 60)
    });
    zone == Some(true)
}

/// A number of `least` to `most` digits, and the rest of the text.
fn digits(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let len = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if len < least {
        return None;
    }
    let (number, rest) = text.split_at(len);
    Some((number.parse().ok()?, rest))
}

fn days(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_times_as_go_does() {
        for time in [
            "2001-12-14",
            "2001-1-2",
            "2001-12-14 21:59:43.10",
            "2001-12-14 1:2:3",
            "2001-12-14T21:59:43Z",
            "2001-12-14t21:59:43.10-05:00",
            "2000-02-29",
        ] {
            assert!(is_timestamp(time), "{time}");
        }
        for text in [
            "",
            "2001",
            "2001-",
            "2001-13-01",
            "2001-02-29",
            "01-02-2001",
            "20011-02-01",
            "2001-12-14T21:59:43",
            "2001-12-14 21:59:43 Z",
            "2001-12-14 21:59",
            "2001-12-14 24:00:00",
            "2001-12-14 21:59:43.",
            "2001-12-140",
        ] {
            assert!(!is_timestamp(text), "{text}");
        }
    }
}
