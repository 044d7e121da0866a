//! When a step began, and how long it has lasted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use milkrun_repository::clock::Moment;
use milkrun_resources::condition::{COMPLETE, Conditions, FAILED, READY};

/// How often the bytes of a run are counted.
const COUNT_EVERY: Duration = Duration::from_secs(3);

/// How soon to look again at a step that has just begun.
const SOON: Duration = Duration::from_millis(500);
/// And at one that lasts.
const PATIENT: Duration = Duration::from_secs(5);

/// The present moment.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_millisecond(Moment::now().millis()).unwrap_or_default()
}

/// The moment, as objects write it: in whole seconds.
#[must_use]
pub fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or_default())
}

/// Notes that a step began, if it is new.
pub fn begin(steps: &mut BTreeMap<String, Time>, step: &impl std::fmt::Debug, now: Timestamp) {
    steps.entry(format!("{step:?}")).or_insert_with(|| time(now));
}

/// For how long a step has lasted.
#[must_use]
pub fn lasted(steps: &BTreeMap<String, Time>, step: &impl std::fmt::Debug, now: Timestamp) -> Duration {
    steps.get(&format!("{step:?}")).map_or(Duration::ZERO, |began| since(began, now))
}

/// For how long something is so.
#[must_use]
pub fn since(began: &Time, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(began.0)).unwrap_or_default()
}

/// How soon to look again at a step that has lasted for so long. Changes of our objects are looked at at once; this is for what
/// nobody tells. What takes hours is not asked for twice a second.
#[must_use]
pub fn pause(lasted: Duration) -> Duration {
    (lasted / 10).clamp(SOON, PATIENT)
}

/// Whether it is time to count bytes again. Each change of status is written, and looked at again.
#[must_use]
pub fn count_again(counted: Option<&Time>, now: Timestamp) -> bool {
    counted.is_none_or(|last| since(last, now) >= COUNT_EVERY)
}

/// Says how a run ended: exactly one of `Complete` and `Failed` is true then.
pub fn conclude(
    conditions: &mut Vec<Condition>,
    failure: Option<&str>,
    complete: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let reason = if failure.is_some() { "Failed" } else { complete };
    let text = failure.unwrap_or_default();
    for (kind, status) in [(COMPLETE, failure.is_none()), (FAILED, failure.is_some()), (READY, failure.is_none())] {
        conditions.set(kind, status, reason, text, generation, time(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_looked_at_less_often() {
        let pauses = [0, 4, 20, 3600].map(|seconds| pause(Duration::from_secs(seconds)).as_millis());
        assert_eq!(pauses, [500, 500, 2000, 5000]);
    }
}
