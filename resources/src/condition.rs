//! Conditions: what is true of an object, and since when.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The condition of a run that made what it should.
pub const COMPLETE: &str = "Complete";
/// The condition of a run that did not.
pub const FAILED: &str = "Failed";
/// The condition of anything that can be used.
pub const READY: &str = "Ready";

/// A list of conditions, one for each type.
pub trait Conditions {
    /// Sets a condition. The time of its last transition changes only with its status.
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: &str, generation: Option<i64>, now: Time);
    /// Whether a condition is there and true.
    fn is_true(&self, kind: &str) -> bool;
}

impl Conditions for Vec<Condition> {
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: &str, generation: Option<i64>, now: Time) {
        let status = if status { "True" } else { "False" };
        let before = self.iter().find(|condition| condition.type_ == kind && condition.status == status);
        let last_transition_time = before.map_or(now, |condition| condition.last_transition_time.clone());
        self.retain(|condition| condition.type_ != kind);
        self.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: generation,
            last_transition_time,
        });
        self.sort_by(|a, b| a.type_.cmp(&b.type_));
    }

    fn is_true(&self, kind: &str) -> bool {
        self.iter().any(|condition| condition.type_ == kind && condition.status == "True")
    }
}
