//! Bytes per second by the time of day.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use milkrun_repository::clock::Moment;
use milkrun_repository::units;
use serde::Deserialize;

/// A part of the day and the rate in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Time,
    /// Exclusive. If it is at or before `from`, it is on the next day.
    to: Time,
    rate: u64,
}

/// Bytes per second by the time of day. Where spans overlap, the first one counts; outside of all spans there is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bandwidth {
    zone: TimeZone,
    spans: Vec<Span>,
}

/// A span as it is written in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    from: Option<String>,
    to: Option<String>,
    rate: String,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { zone: TimeZone::UTC, spans: Vec::new() }
    }
}

impl Bandwidth {
    /// Reads the spans of a file.
    ///
    /// # Errors
    /// Says what makes no sense.
    pub(super) fn new(zone: Option<&str>, written: Vec<Written>) -> Result<Self, String> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name)
                .map_err(|_| format!("zone: {name:?} is not known here (write Europe/Berlin; is tzdata installed?)"))?,
        };
        let time = |text: Option<String>, what: &str| match text {
            None => Ok(Time::midnight()),
            Some(text) => {
                text.parse::<Time>().map_err(|_| format!("bandwidth: {what}: {text:?} is no time like 08:00"))
            }
        };
        let span = |w: Written| {
            let rate = units::size(&w.rate).map_err(|e| format!("bandwidth: rate: {e}"))?;
            Ok(Span { from: time(w.from, "from")?, to: time(w.to, "to")?, rate })
        };
        Ok(Self { zone, spans: written.into_iter().map(span).collect::<Result<_, String>>()? })
    }

    /// Bytes per second at this moment; `None`: no limit.
    pub fn at(&self, moment: Moment) -> Option<u64> {
        if self.spans.is_empty() {
            return None;
        }
        let stamp = jiff::Timestamp::from_millisecond(moment.millis()).ok()?;
        let now = self.zone.to_datetime(stamp).time();
        let holds = |s: &&Span| {
            if s.from < s.to { (s.from..s.to).contains(&now) } else { now >= s.from || now < s.to }
        };
        self.spans.iter().find(holds).map(|s| s.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(zone: Option<&str>, spans: &[(Option<&str>, Option<&str>, &str)]) -> Result<Bandwidth, String> {
        let written = |&(from, to, rate): &(Option<&str>, Option<&str>, &str)| Written {
            from: from.map(Into::into),
            to: to.map(Into::into),
            rate: rate.into(),
        };
        Bandwidth::new(zone, spans.iter().map(written).collect())
    }

    fn at(b: &Bandwidth, moment: &str) -> Option<u64> {
        b.at(Moment::from_millis(moment.parse::<jiff::Timestamp>().unwrap().as_millisecond()))
    }

    #[test]
    fn the_time_of_day_decides() {
        let b = bandwidth(
            None,
            &[
                (Some("08:00"), Some("18:00"), "50MiB"),
                (Some("22:00"), Some("06:00"), "1GiB"),
                (Some("20:30"), None, "100MiB"),
            ],
        );
        let b = b.unwrap();
        for (time, rate) in [
            ("07:59:59", None),
            ("08:00:00", Some(50 << 20)),
            ("17:59:59", Some(50 << 20)),
            ("18:00:00", None),
            ("21:00:00", Some(100 << 20)),
            ("23:00:00", Some(1 << 30)),
            ("00:00:00", Some(1 << 30)),
            ("05:59:59", Some(1 << 30)),
            ("06:00:00", None),
        ] {
            assert_eq!(at(&b, &format!("2026-06-01T{time}Z")), rate, "{time}");
        }
        let always = bandwidth(None, &[(None, None, "1MiB")]).unwrap();
        assert_eq!(
            (at(&always, "2026-06-01T00:00:00Z"), at(&always, "2026-06-01T12:00:00Z")),
            (Some(1 << 20), Some(1 << 20))
        );
        assert_eq!(Bandwidth::default().at(Moment::now()), None);
    }

    /// An office opens at the same local time in summer and in winter.
    #[test]
    fn a_zone_has_its_own_day() {
        // The rule of Central Europe is written out, so that the result does not depend on a machine's tzdata.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let b = Bandwidth { zone, ..bandwidth(None, &[(Some("08:00"), Some("18:00"), "1MiB")]).unwrap() };
        assert_eq!(at(&b, "2026-01-15T07:30:00Z"), Some(1 << 20));
        assert_eq!(at(&b, "2026-01-15T06:30:00Z"), None);
        assert_eq!(at(&b, "2026-07-15T06:30:00Z"), Some(1 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(bandwidth(Some("Mars/Base"), &[]).unwrap_err().contains("Mars/Base"));
        assert!(bandwidth(None, &[(Some("25:00"), None, "1MiB")]).unwrap_err().contains("25:00"));
        // A rate of zero is refused: it would stop all backups without a word.
        for rate in ["0", "fast"] {
            assert!(bandwidth(None, &[(None, None, rate)]).unwrap_err().contains("rate"));
        }
    }
}
