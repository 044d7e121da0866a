//! Sizes and times, as people read them.

use std::time::Duration;

use indicatif::HumanBytes;
pub(crate) use milkrun_repository::units::{duration, size};

/// `1.50 GiB`
pub(crate) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// `1.5 s`, `2 min 5 s`, `3 h 4 min`, `30 d`
pub(crate) fn time(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ if s.is_multiple_of(86400) => format!("{} d", s / 86400),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_people_read() {
        assert_eq!(time(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(time(Duration::from_secs(30 * 86400)), "30 d");
    }
}
