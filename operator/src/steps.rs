//! When a step began, and how long it has lasted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use milkrun_repository::clock::Moment;

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

/// Bytes as hex digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of hex digits.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len().is_multiple_of(2).then_some(text)?;
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}
