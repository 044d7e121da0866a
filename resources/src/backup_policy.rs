//! When backups of an application are made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::BackupSpec;

/// Makes a [`Backup`](crate::Backup) of its namespace's application again and again.
///
/// Example:
///
/// ```yaml
/// apiVersion: milkrun.dev/v1alpha1
/// kind: BackupPolicy
/// metadata: {name: nightly, namespace: shop}
/// spec: {schedule: "0 3 * * *", timeZone: Europe/Paris, backup: {repository: prod}}
/// ```
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "milkrun.dev",
    version = "v1alpha1",
    kind = "BackupPolicy",
    plural = "backuppolicies",
    namespaced,
    status = "BackupPolicyStatus",
    shortname = "mpolicy",
    category = "milkrun",
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.next"),
    printcolumn(name = "Last point", type_ = "string", json_path = ".status.lastPoint"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupPolicySpec {
    /// When, in the five fields of cron: minute, hour, day of the month, month, day of the week. `H` stands for a number that is
    /// the policy's own, so that many policies do not begin at the same minute.
    #[x_kube(validation = Rule::new("self.size() > 0 && self.size() <= 200").message("five fields, such as 0 3 * * *"))]
    pub schedule: String,
    /// The time zone of the schedule, as `Europe/Paris`. Without it, UTC. An hour that the clocks leave out is made up at once, and
    /// what lies in one that comes twice is made twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Begins up to so many seconds later. How much later differs by policy and by moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 86400").message("0 to 86400 seconds"))]
    pub jitter_seconds: Option<i32>,
    /// Makes none until this is taken back. What was missed by then is made up once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// How many `Backup` objects that are over are kept, and the last that went well besides. Restore points are not touched.
    /// Without it, 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 100").message("1 to 100"))]
    pub history: Option<i32>,
    /// What each of them backs up, and where.
    pub backup: BackupSpec,
}

/// What the operator says of a policy.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupPolicyStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the schedule can be read.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What it waits for, or what is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The last moment of the schedule that a `Backup` was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule: Option<Time>,
    /// That `Backup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<String>,
    /// When the next one begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Time>,
    /// The last restore point that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_point: Option<String>,
}
