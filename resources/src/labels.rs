//! Labels and annotations of what milkrun makes. A step's result is found again by them, and not remembered.

/// The UID of the [`Backup`](crate::Backup) or [`Restore`](crate::Restore) that an object was made for.
pub const RUN: &str = "milkrun.dev/run";
/// The namespace of that object.
pub const RUN_NAMESPACE: &str = "milkrun.dev/run-namespace";
/// The name of that object, as an annotation: a name may be longer than a label's value.
pub const RUN_NAME: &str = "milkrun.dev/run-name";
/// The kind of that object.
pub const RUN_KIND: &str = "milkrun.dev/run-kind";
/// The claim that an object was made for, as an annotation.
pub const CLAIM: &str = "milkrun.dev/claim";
/// The UID of the [`BackupPolicy`](crate::BackupPolicy) that a `Backup` was made by.
pub const POLICY: &str = "milkrun.dev/policy";
/// What an object is to the run.
pub const ROLE: &str = "milkrun.dev/role";
/// Who made it.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "milkrun");

/// The label that a claim has while its group is cut. Each run has its own, so that two runs of one claim do not disturb each other.
#[must_use]
pub fn of_group(name: &str) -> String {
    format!("group.milkrun.dev/{name}")
}
