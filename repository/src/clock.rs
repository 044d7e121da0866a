//! The only callers of the system's clock and entropy. Everything else takes a [`Moment`] or asks here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much two clocks may differ, including ours and the store's.
pub const SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// A point in time: milliseconds since the Unix epoch. Stored as i64, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(i64);

/// Text that is no RFC 3339 time.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a time; write it as RFC 3339, for example 2026-11-22T14:30:00Z")]
pub struct NotATime {
    text: String,
}

impl Moment {
    /// From milliseconds since the epoch.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The system's clock.
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Later by `d`, saturating.
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Rounded up to a multiple of `quantum` since the epoch (a quantum under 1 s counts as 1 s).
    pub fn ceil(self, quantum: Duration) -> Self {
        let q = i64::try_from(quantum.as_millis()).unwrap_or(i64::MAX).max(1000);
        let up = self.0.rem_euclid(q);
        if up == 0 { self } else { Self(self.0.saturating_add(q - up)) }
    }

    /// How much later than `earlier`; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses RFC 3339.
    ///
    /// # Errors
    /// [`NotATime`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NotATime> {
        text.parse::<jiff::Timestamp>()
            .map(|t| Self(t.as_millisecond()))
            .map_err(|_| NotATime { text: text.to_owned() })
    }

    fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// `20261122t143000z`, the form in object keys and point ids. UTC.
    pub fn compact(self) -> String {
        let t = self.timestamp().to_zoned(jiff::tz::TimeZone::UTC);
        format!("{:04}{:02}{:02}t{:02}{:02}{:02}z", t.year(), t.month(), t.day(), t.hour(), t.minute(), t.second())
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.timestamp())
    }
}

impl From<SystemTime> for Moment {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Self(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            Err(e) => Self(-i64::try_from(e.duration().as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

impl From<Moment> for SystemTime {
    fn from(moment: Moment) -> Self {
        let far = Duration::from_millis(moment.0.unsigned_abs());
        if moment.0 < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
    }
}

/// Fresh random bytes from the system.
///
/// # Panics
/// If the operating system cannot give entropy: nothing safe can be done then.
#[expect(clippy::expect_used, reason = "without entropy no key may be made")]
pub fn entropy<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).expect("the operating system gives entropy");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_and_display_name_the_same_second() {
        let m = Moment::parse("2026-11-22T14:30:05.25Z").unwrap();
        assert_eq!(m.compact(), "20261122t143005z");
        assert_eq!(m.to_string(), "2026-11-22T14:30:05.250Z");
        assert_eq!(Moment::parse(&m.to_string()).unwrap(), m);
        assert!(Moment::parse("yesterday").is_err());
    }

    #[test]
    fn ceil_rounds_up_to_the_quantum() {
        let q = Duration::from_secs(100);
        assert_eq!(Moment::from_millis(100_001).ceil(q).millis(), 200_000);
        assert_eq!(Moment::from_millis(200_000).ceil(q).millis(), 200_000);
    }
}
