//! The moments of a schedule.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// The longest time that clocks are put forward by, with room.
const GAP_MAX: SignedDuration = SignedDuration::from_hours(3);
/// Windows in which the last moment that is past is looked for: moments in a longer one are rare if a shorter one has none.
const WINDOWS: [SignedDuration; 4] = [
    SignedDuration::from_hours(1),
    SignedDuration::from_hours(24),
    SignedDuration::from_hours(24 * 31),
    SignedDuration::from_hours(24 * 366 * 4),
];

/// A schedule in a time zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    zone: TimeZone,
    /// By the clocks of the zone.
    of_zone: cronexpr::Crontab,
    /// As if clocks were never put forward or back.
    even: cronexpr::Crontab,
}

/// Why a schedule can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// It is none.
    #[error(
        "a schedule has five fields (minute, hour, day of the month, month, day of the week), and this one has {0}"
    )]
    Fields(usize),
    /// Nobody knows the zone.
    #[error("there is no time zone {0}: give it a name such as Europe/Paris")]
    Zone(String),
    /// A field is wrong.
    #[error("the schedule can't be read: {0}")]
    Field(String),
    /// No moment of it ever comes.
    #[error("the schedule never comes: no day of the next four years is such a day")]
    Never,
}

impl Schedule {
    /// Reads one. `own`: what `H` is made from.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn read(text: &str, zone: Option<&str>, own: &str) -> Result<Self, ScheduleError> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != 5 {
            return Err(ScheduleError::Fields(fields.len()));
        }
        let name = zone.unwrap_or("UTC");
        let zone = TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?;
        let mut options = cronexpr::ParseOptions::default();
        options.hashed_value = Some(number(own));
        let in_zone = |name: &str| {
            let text = format!("{} {name}", fields.join(" "));
            // Its second line is an arrow below the first.
            let reason = |e: cronexpr::Error| {
                ScheduleError::Field(e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
            };
            cronexpr::parse_crontab_with(&text, options).map_err(reason)
        };
        let schedule = Self { zone, of_zone: in_zone(name)?, even: in_zone("UTC")? };
        schedule.next_after(Timestamp::UNIX_EPOCH).map_or(Err(ScheduleError::Never), |_| Ok(schedule))
    }

    /// The first moment after `at`. One that clocks leave out, since they are put forward, counts as later by as much.
    #[must_use]
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let regular = self.of_zone.find_next(at).ok().map(|next| next.timestamp());
        self.left_out(at, regular).or(regular)
    }

    /// The first moment after `at` and before `until` that clocks leave out.
    fn left_out(&self, at: Timestamp, until: Option<Timestamp>) -> Option<Timestamp> {
        let before = at.checked_sub(GAP_MAX).ok()?;
        let change = self.zone.following(before).next().map(|change| change.timestamp());
        if change.is_none_or(|change| until.is_some_and(|until| change > until)) {
            return None;
        }
        let mut even = as_if_utc(before.to_zoned(self.zone.clone()).datetime())?;
        loop {
            even = self.even.find_next(even).ok()?.timestamp();
            let civil = even.to_zoned(TimeZone::UTC).datetime();
            let found = self.zone.to_ambiguous_zoned(civil);
            let is_left_out = matches!(found.offset(), AmbiguousOffset::Gap { .. });
            let found = found.compatible().ok()?.timestamp();
            if until.is_some_and(|until| found >= until) {
                return None;
            }
            if is_left_out && found > at {
                return Some(found);
            }
        }
    }

    /// The moments after `since` that are not after `now`.
    pub fn between(&self, since: Timestamp, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(since), |at| self.next_after(*at)).take_while(move |at| *at <= now)
    }

    /// The last moment after `since` that is not after `now`.
    #[must_use]
    pub fn last_before(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        WINDOWS.into_iter().find_map(|window| {
            let from = now.checked_sub(window).unwrap_or(since).max(since);
            self.between(from, now).last()
        })
    }
}

/// The moment at which a clock in UTC shows this.
fn as_if_utc(civil: DateTime) -> Option<Timestamp> {
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// A number that is always the same for this text.
fn number(text: &str) -> u64 {
    let digest = blake3::hash(text.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// How much later than a moment of its schedule a policy begins: up to so many seconds, and always the same for this moment.
#[must_use]
pub(super) fn delay(own: &str, moment: Timestamp, seconds_max: u32) -> SignedDuration {
    let seconds = number(&format!("{own}/{}", moment.as_second())) % (u64::from(seconds_max) + 1);
    SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn all(schedule: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let schedule = Schedule::read(schedule, Some(zone), "").unwrap();
        schedule.between(at(from), at(to)).map(|moment| moment.to_string()).collect()
    }

    #[test]
    fn moments_are_those_of_the_zone() {
        assert_eq!(
            all("0 3 * * *", "Europe/Paris", "2026-12-01T00:00:00Z", "2026-12-03T00:00:00Z"),
            ["2026-12-01T02:00:00Z", "2026-12-02T02:00:00Z"]
        );
        assert_eq!(all("0 3 * * *", "UTC", "2026-12-01T03:00:00Z", "2026-12-02T03:00:00Z"), ["2026-12-02T03:00:00Z"]);
        assert_eq!(
            all("30 2 * * mon-fri", "America/New_York", "2026-12-04T00:00:00Z", "2026-12-07T12:00:00Z"),
            ["2026-12-04T07:30:00Z", "2026-12-07T07:30:00Z"]
        );
    }

    #[test]
    fn what_clocks_leave_out_is_made_up_and_nothing_is_missing_when_an_hour_comes_twice() {
        // On 28 March 2027, clocks in Paris go from two to three, which is one o'clock in UTC.
        assert_eq!(
            all("30 2 * * *", "Europe/Paris", "2027-03-27T00:00:00Z", "2027-03-29T12:00:00Z"),
            ["2027-03-27T01:30:00Z", "2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z"]
        );
        let even = all("*/15 * * * *", "Europe/Paris", "2027-03-28T00:00:00Z", "2027-03-28T03:00:00Z");
        assert_eq!(even.len(), 12, "every quarter of an hour, and none twice: {even:?}");
        // On 31 October 2027 they go from three back to two.
        let even = all("*/15 * * * *", "Europe/Paris", "2027-10-31T00:00:00Z", "2027-10-31T03:00:00Z");
        assert_eq!(even.len(), 12, "{even:?}");
    }

    #[test]
    fn the_last_one_that_is_past_is_found_however_long_ago() {
        let schedule = |text| Schedule::read(text, None, "").unwrap();
        let (since, now) = (at("2020-01-01T00:00:00Z"), at("2026-12-01T10:10:30Z"));
        for (text, wanted) in [
            ("* * * * *", Some("2026-12-01T10:10:00Z")),
            ("0 3 * * *", Some("2026-12-01T03:00:00Z")),
            ("0 3 1 1 *", Some("2026-01-01T03:00:00Z")),
            ("0 0 29 2 *", Some("2024-02-29T00:00:00Z")),
        ] {
            assert_eq!(schedule(text).last_before(since, now), wanted.map(at), "{text}");
        }
        assert_eq!(schedule("0 3 * * *").last_before(at("2026-12-01T03:00:00Z"), now), None);
    }

    #[test]
    fn a_schedule_that_can_not_be_used_says_why() {
        for (text, zone, wanted) in [
            ("* * * *", None, "this one has 4"),
            ("0 3 * * * UTC", None, "this one has 6"),
            ("0 25 * * *", None, "can't be read"),
            ("0 3 * * *", Some("Paris/Europe"), "no time zone Paris/Europe"),
            ("0 0 30 2 *", None, "never comes"),
        ] {
            let why = Schedule::read(text, zone, "").unwrap_err().to_string();
            assert!(why.contains(wanted) && !why.contains('\n'), "{text}: {why}");
        }
    }

    #[test]
    fn policies_of_one_schedule_begin_at_different_times_and_always_at_the_same() {
        let moment = at("2026-12-01T03:00:00Z");
        let delays: std::collections::BTreeSet<_> = (0..20).map(|n| delay(&n.to_string(), moment, 3600)).collect();
        assert!(delays.len() > 15 && delays.iter().all(|delay| *delay <= SignedDuration::from_secs(3600)));
        assert_eq!(delay("a", moment, 3600), delay("a", moment, 3600));
        assert_eq!(delay("a", moment, 0), SignedDuration::ZERO);
        let minute =
            |own: u32| Schedule::read("H 3 * * *", None, &own.to_string()).unwrap().next_after(moment).unwrap();
        assert!((0..20).map(minute).collect::<std::collections::BTreeSet<_>>().len() > 5);
    }
}
